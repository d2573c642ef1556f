"""Other HU windows than the one that was stored, chosen when a batch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ctgpu.errors import UsageError
from ctgpu.spec import Dtype, Spec

if TYPE_CHECKING:
    import torch

#: Named windows, (lo, hi) in HU.
WINDOWS: Mapping[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "soft_tissue": (-160.0, 240.0),
    "mediastinum": (-125.0, 225.0),
    "bone": (-450.0, 1050.0),
}

# Small enough that the float32 copy of a part stays in the cache.
_PART_VOXELS = 1 << 18
# What int16 holds where nothing was clipped.
_ALL_HU = (-32768.0, 32767.0)


class Scaling(NamedTuple):
    """``value * scale + offset`` of what is stored, and the type of the result."""

    scale: float
    offset: float
    dtype: Dtype


def rewindow(spec: Spec, window: str | tuple[float, float]) -> Scaling:
    """What takes stored numbers to a window mapped to [-1, 1].

    The result is bfloat16 where that is stored, else float16.

    Parameters
    ----------
    spec : Spec
        What the stored numbers mean.
    window : str or tuple of float
        A name of :data:`WINDOWS`, or (lo, hi) in HU.  HU beyond the stored window are lost: they
        are at its ends.

    Raises
    ------
    UsageError
        If the name is unknown, or lo is not below hi, or the stored window does not reach into it,
        or each volume has a scale of its own.
    """
    if spec.normalise != "window":
        raise UsageError(
            f"window is {window!r}, and the data set was built with normalise={spec.normalise!r}, "
            "so each volume has a scale of its own; build with dtype='int16' to choose windows "
            "when loading, or leave window out"
        )
    if isinstance(window, str):
        if window not in WINDOWS:
            raise UsageError(
                f"window is {window!r}; it is one of {', '.join(WINDOWS)}, or (lo, hi) in HU"
            )
        window = WINDOWS[window]
    scale, offset = Spec(hu_window=window).scale_offset  # or it says what is wrong with it
    lo, hi = map(float, window)
    stored_lo, stored_hi = spec.hu_window or _ALL_HU
    if hi <= stored_lo or lo >= stored_hi:
        raise UsageError(
            f"window is {window}, and the data set holds {stored_lo:g} to {stored_hi:g} HU only; "
            "choose a window within, or build with another --hu-window"
        )
    dtype: Dtype = "bfloat16" if spec.dtype == "bfloat16" else "float16"
    if spec.stores_hu:
        return Scaling(scale, offset, dtype)
    # Where -1 and 1 would be stored: half a window, in stored numbers, and its middle.
    stored_half, stored_middle = spec.map_hu(-1.0, 1.0)
    hu_per_number = (stored_hi - stored_lo) / 2 / stored_half
    hu_of_zero = (stored_hi + stored_lo) / 2 - stored_middle * hu_per_number
    return Scaling(scale * hu_per_number, scale * hu_of_zero + offset, dtype)


def apply_scaling(stored: torch.Tensor, scaling: Scaling, out: torch.Tensor) -> None:
    """``clamp(stored * scale + offset, -1, 1)``, in float32, rounded once.

    Parameters
    ----------
    stored : torch.Tensor
        Contiguous, any shape.
    scaling : Scaling
        The map.
    out : torch.Tensor
        Contiguous, as many voxels, of the type ``scaling.dtype``.  It may share memory with
        `stored`, if that is the last part of it: parts are read from the front before they are
        written.
    """
    numbers, results = stored.view(-1), out.view(-1)
    step = _PART_VOXELS if stored.device.type == "cpu" else max(1, len(numbers))
    for first in range(0, len(numbers), step):
        part = numbers[first : first + step].float()  # a copy, for float32 is never stored
        part.mul_(scaling.scale).add_(scaling.offset).clamp_(-1, 1)
        results[first : first + step].copy_(part)
