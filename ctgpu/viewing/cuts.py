"""A volume in three planes, as the patient lies, each as a few of its slices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ctgpu.checking.picking import spread
from ctgpu.checking.sheet import View, as_displayed, cut
from ctgpu.spec import Dtype
from ctgpu.viewing.pictures import jpeg, outlines
from ctgpu.volume.stored import numbers_of

#: Of a plane.
MOST_SLICES = 64
#: Along the longest side of a picture.
MOST_PIXELS = 256

# For axial, coronal and sagittal slices the axis across which they lie, and what is at the left,
# right, top and bottom.
_PLANES = (
    ("axial", 2, "RLAP"),
    ("coronal", 1, "RLSI"),
    ("sagittal", 0, "APSI"),
)


@dataclass(frozen=True, slots=True)
class Plane:
    """Slices of a volume that lie one behind the other.

    Attributes
    ----------
    name : str
        ``axial``, ``coronal`` or ``sagittal``.
    marks : str
        The patient's directions at the left, right, top and bottom; empty where not known.
    size : tuple of int
        Width and height of the pictures, in pixels that are square.
    count : int
        Slices that there are.
    places : tuple of int
        Which of them are here, counted towards the patient's head, back or left.
    pictures : tuple of bytes
        JPEG.
    outlines : tuple of bytes
        PNG, of the mask; empty where a slice has nothing of it.
    """

    name: str
    marks: str
    size: tuple[int, int]
    count: int
    places: tuple[int, ...]
    pictures: tuple[bytes, ...]
    outlines: tuple[bytes, ...]

    def thinned(self, most: int) -> Plane:
        """At most so many of its slices, evenly spaced."""
        kept = spread(len(self.places), most)
        return replace(
            self,
            places=tuple(self.places[k] for k in kept),
            pictures=tuple(self.pictures[k] for k in kept),
            outlines=tuple(self.outlines[k] for k in kept),
        )


def planes_of(view: View, dtype: Dtype, black: float, white: float) -> tuple[Plane, ...]:
    """A volume as pictures.

    Parameters
    ----------
    view : View
        Its ``hu`` is what is stored: the numbers of `dtype`, shape (H, W, D).
    dtype : str
        As ``Spec.dtype``.
    black, white : float
        The stored numbers that are shown as these.
    """
    volume, spacing_mm, known = as_displayed(view)
    mask = None if view.mask is None else as_displayed(replace(view, hu=view.mask))[0]
    extent_mm = [n * mm for n, mm in zip(volume.shape, spacing_mm, strict=True)]
    # One scale for all three, and no finer than the voxels.
    pixel_mm = max(max(extent_mm) / MOST_PIXELS, min(spacing_mm))
    planes = []
    for name, axis, marks in _PLANES:
        across, down = (k for k in range(3) if k != axis)
        width, height = (max(1, round(extent_mm[k] / pixel_mm)) for k in (across, down))
        places = spread(volume.shape[axis], MOST_SLICES)
        planes.append(
            Plane(
                name,
                marks if known else "",
                (width, height),
                volume.shape[axis],
                tuple(places),
                tuple(
                    jpeg(
                        _grey(numbers_of(cut(volume, axis, place), dtype), black, white),
                        (width, height),
                    )
                    for place in places
                ),
                tuple(outlines(cut(mask, axis, place), (width, height)) for place in places)
                if mask is not None
                else (b"",) * len(places),
            )
        )
    return tuple(planes)


def _grey(numbers: npt.NDArray[np.float32], black: float, white: float) -> npt.NDArray[np.uint8]:
    scaled = (numbers - np.float32(black)) * np.float32(255 / (white - black))
    grey: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey
