"""Pictures of volumes: as stored, anatomical cuts with outlines of masks, histogram, labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctgpu.checking.originals import Originals
from ctgpu.checking.recipe import Recipe
from ctgpu.errors import StorageError, UsageError, reason_of, shortage
from ctgpu.installation import install_command
from ctgpu.printable import printable
from ctgpu.shards.patterns import expand_pattern
from ctgpu.volume.orientation import Orientation
from ctgpu.volume.raw import RawVolume, Rescale, Spacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class View:
    """One volume to draw.

    Attributes
    ----------
    title : str
        Above the pictures.
    hu : numpy.ndarray
        float32, shape (H, W, D).
    spacing_mm : tuple of float
        Voxel size (H, W, D).
    affine : numpy.ndarray or None
        4 × 4, index to RAS+ millimetres; None where the orientation is not known.
    labels : dict of str to float, or None
        By name, NaN where not known; None where there are none.
    mask : numpy.ndarray or None
        The number of each voxel's label, 0 for none, shape (H, W, D); None where there is no mask.
    """

    title: str
    hu: npt.NDArray[np.float32]
    spacing_mm: Spacing
    affine: npt.NDArray[np.float64] | None
    labels: Mapping[str, float] | None
    mask: npt.NDArray[Any] | None = None


def draw_originals(
    where: str | PathLike[str], source: str | PathLike[str], keys: Iterable[str]
) -> Iterator[View]:
    """The volumes that samples of a data set were made of; their source is opened at once.

    Parameters
    ----------
    where : path
        The data set, as :func:`inspect_samples` takes it.
    source : path
        The originals: a folder of volumes, or raw tars.
    keys : iterable of str
        Which samples; asked for as the views are.

    Returns
    -------
    iterator of View
        For each key.

    Raises
    ------
    UsageError, EnvironmentFailure
        If the source cannot be opened.
    SampleError
        If an original cannot be had, when its turn comes.
    """
    recipe = Recipe.beside(expand_pattern(where)[0])
    return _draw_originals(Originals.open(source, recipe), keys)


def _draw_originals(opened: Originals, keys: Iterable[str]) -> Iterator[View]:
    with opened as originals:
        for key in keys:
            prepared = originals.prepare(key)
            hu = to_hu(prepared.raw.voxels, prepared.rescale)
            affine = stated_affine(prepared.raw)
            mask = None if prepared.mask is None else prepared.mask.voxels.copy()
            prepared.release()
            h, w, d = prepared.plan.reorientation.stored(prepared.plan.spacing_mm)
            yield View(f"source of {key}", hu, (h, w, d), affine, None, mask)


def draw_sheet(views: Sequence[View], out: Path, *, dots_per_inch: int = 80) -> None:
    """Draw the array as stored, anatomical cuts, the histogram of HU and the positive labels.

    Each view is a row.  The first picture is the middle slice of the third axis with H down and W
    across, whatever these are.  Axial, coronal and sagittal cuts go through the middle as well,
    turned by the affine to what radiologists see: the patient's right at the left, front and head
    at the top.  All have their true aspect, and the outlines of what a mask marks.

    Parameters
    ----------
    views : sequence of View
        What to draw.
    out : Path
        The picture; its suffix decides the format.
    dots_per_inch : int
        Resolution; a row is 17 × 3.2 inches.

    Raises
    ------
    UsageError
        If matplotlib is missing, or does not know the format.
    StorageError
        If the file cannot be written.
    """
    require_drawable(out)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.2 * len(views)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(views), 6, squeeze=False, width_ratios=(3, 3, 3, 3, 3, 2))
    for view, row in zip(views, grid, strict=True):
        stored, *axes = row
        _draw_as_stored(stored, view)
        volume, spacing_mm, known = as_displayed(view)
        masks = (
            (None,) * 3 if view.mask is None else cuts(as_displayed(replace(view, hu=view.mask))[0])
        )
        ends = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))
        names = ("axial", "coronal", "sagittal")
        for axis, name, image, mask, ax, marks in zip(
            (2, 1, 0), names, cuts(volume), masks, axes[:3], ends, strict=True
        ):
            _draw_cut(ax, image, mask, *_extent_mm(axis, volume.shape, spacing_mm))
            ax.set_title(name if known else f"{name}, orientation not stated", fontsize=8)
            for mark, place in zip(marks, _MARK_PLACES if known else (), strict=False):
                ax.text(*place, mark, color="yellow", fontsize=7, transform=ax.transAxes)
        axes[3].hist(view.hu.ravel()[::7], bins=100, range=(-1100, 1100), color="0.4", log=True)
        axes[3].set_title("HU", fontsize=8)
        axes[3].tick_params(labelsize=6)
        axes[4].axis("off")
        axes[4].text(
            *(0, 1, _label_text(view)),
            va="top",
            fontsize=7,
            parse_math=False,
            transform=axes[4].transAxes,
        )
    try:
        figure.savefig(out, dpi=dots_per_inch)
    except ValueError as error:
        raise UsageError(f"--preview {out} cannot be drawn: {error}") from error
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {reason_of(error)}") from error


def require_drawable(out: Path) -> None:
    """Refuse a picture that could not be drawn, before there is anything to draw.

    Raises
    ------
    UsageError
        If matplotlib is missing, or does not know the format.
    StorageError
        If there is no folder that the file could be written to.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise shortage(error) or UsageError(
            f"--preview needs matplotlib: install it with `{install_command('preview')}`"
        ) from error
    formats = FigureCanvasAgg.get_supported_filetypes()
    if out.suffix and out.suffix[1:].lower() not in formats:
        raise UsageError(
            f"--preview {out} cannot be drawn: its name ends in {out.suffix}; wanted "
            f"{', '.join(f'.{name}' for name in sorted(formats))}"
        )
    if out.is_dir():
        raise UsageError(f"--preview {out} is a folder; name a file in it, such as sheet.png")
    if not os.access(out.parent, os.W_OK):
        raise StorageError(
            f"--preview {out} cannot be written: {out.parent} is no folder that this account may "
            "write to; choose another"
        )


def _draw_as_stored(ax: Axes, view: View) -> None:
    height_mm, width_mm = (n * s for n, s in zip(view.hu.shape[:2], view.spacing_mm, strict=False))
    middle = view.hu.shape[2] // 2
    mask = None if view.mask is None else view.mask[:, :, middle]
    _draw_cut(ax, view.hu[:, :, middle], mask, width_mm, height_mm)
    codes = "orientation not stated" if view.affine is None else Orientation.of(view.affine).codes
    ax.set_title(f"as stored ({codes}): H down, W across, middle D", fontsize=8)
    ax.set_ylabel(printable(view.title), fontsize=8, parse_math=False)


def _draw_cut(
    ax: Axes,
    image: npt.NDArray[np.float32],
    mask: npt.NDArray[Any] | None,
    width_mm: float,
    height_mm: float,
) -> None:
    ax.imshow(image, cmap="gray", vmin=-1000, vmax=400, extent=(0, width_mm, height_mm, 0))
    if mask is not None:
        _draw_outlines(ax, mask, width_mm, height_mm)
    ax.set_xticks([])
    ax.set_yticks([])


def _draw_outlines(ax: Axes, mask: npt.NDArray[Any], width_mm: float, height_mm: float) -> None:
    """A line around each label, in a colour of its own."""
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    rows, columns = mask.shape
    # The middles of the voxels, and of those around the picture, so that every line is closed.
    across_mm = (np.arange(-1, columns + 1) + 0.5) * width_mm / columns
    down_mm = (np.arange(-1, rows + 1) + 0.5) * height_mm / rows
    around = np.pad(mask, 1)
    for number in np.unique(mask[mask > 0]).tolist():
        ax.contour(
            across_mm,
            down_mm,
            around == number,
            levels=[0.5],
            colors=[colours[(number - 1) % len(colours)]],
            linewidths=0.8,
        )
    ax.set_xlim(0, width_mm)
    ax.set_ylim(height_mm, 0)


# Left, right, top and bottom edge, in the axes' own coordinates.
_MARK_PLACES = ((0.01, 0.5), (0.95, 0.5), (0.5, 0.93), (0.5, 0.01))


def as_displayed(view: View) -> tuple[npt.NDArray[Any], Spacing, bool]:
    """The volume with axes to the patient's left, back and head, in this order.

    Returns
    -------
    (numpy.ndarray, tuple of float, bool)
        A view of the voxels, their size in its order, and whether the orientation is known;
        otherwise the axes are taken as a scanner stores them.
    """
    import nibabel.orientations as orientations

    if view.affine is None:
        # Left, back, and slices from foot to head: what DICOM series become.
        return view.hu, view.spacing_mm, False
    own: Any = orientations.io_orientation(view.affine)  # type: ignore[no-untyped-call]
    target = orientations.axcodes2ornt(("L", "P", "S"))  # type: ignore[no-untyped-call]
    turn = orientations.ornt_transform(own, target)  # type: ignore[no-untyped-call]
    volume: npt.NDArray[Any] = orientations.apply_orientation(  # type: ignore[no-untyped-call]
        view.hu, turn
    )
    spacing = [0.0, 0.0, 0.0]
    for axis, goes_to in enumerate(turn[:, 0].astype(int)):
        spacing[goes_to] = view.spacing_mm[axis]
    return volume, (spacing[0], spacing[1], spacing[2]), True


def cuts(volume: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Axial, coronal and sagittal cut through the middle, rows from the top of the picture.

    Parameters
    ----------
    volume : numpy.ndarray
        Axes to the patient's left, back and head.
    """
    return tuple(cut(volume, axis, volume.shape[axis] // 2) for axis in (2, 1, 0))


def cut(volume: npt.NDArray[Any], axis: int, place: int) -> npt.NDArray[Any]:
    """A slice across `axis`; volume and rows as :func:`cuts` has them."""
    rows: npt.NDArray[Any] = np.moveaxis(volume, axis, 0)[place].T
    return rows if axis == 2 else rows[::-1]


def _extent_mm(axis: int, shape: tuple[int, ...], spacing_mm: Spacing) -> tuple[float, float]:
    """Width and height of the cut across `axis`."""
    across, down = (k for k in range(3) if k != axis)
    return shape[across] * spacing_mm[across], shape[down] * spacing_mm[down]


def _label_text(view: View) -> str:
    if view.labels is None:
        return ""
    return "\n".join(("labels:", *map(printable, label_words(view.labels))))


def label_words(labels: Mapping[str, float]) -> list[str]:
    """Names of the positive labels, or that none is, and how many are not known."""
    unknown = sum(value != value for value in labels.values())
    if unknown and unknown == len(labels):
        return ["not known"]
    named = [name for name, value in labels.items() if value > 0] or ["none is positive"]
    return [*named, f"{unknown} of {len(labels)} not known"] if unknown else named


def stated_affine(raw: RawVolume) -> npt.NDArray[np.float64] | None:
    """The affine; None where it is a bare spacing, which is no orientation."""
    return None if raw.affine_source == "spacing" else raw.affine


def to_hu(voxels: npt.NDArray[Any], rescale: Rescale) -> npt.NDArray[np.float32]:
    hu = voxels.astype(np.float32)
    hu *= np.float32(rescale.slope)
    hu += np.float32(rescale.intercept)
    return hu
