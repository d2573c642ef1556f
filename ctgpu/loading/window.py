"""Other HU windows than the one that was stored, chosen when a batch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ctgpu.errors import UsageError
from ctgpu.spec import Spec

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


class Scaling(NamedTuple):
    """``value * scale + offset``."""

    scale: float
    offset: float


def rewindow(spec: Spec, window: str | tuple[float, float]) -> Scaling:
    """What takes stored values to a window mapped to [-1, 1].

    Parameters
    ----------
    spec : Spec
        What the stored values mean.
    window : str or tuple of float
        A name of :data:`WINDOWS`, or (lo, hi) in HU.  HU beyond the stored window are lost: they
        are at its ends.

    Raises
    ------
    UsageError
        If the name is unknown, or lo is not below hi, or the stored window does not reach into it.
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            raise UsageError(
                f"window is {window!r}; it is one of {', '.join(WINDOWS)}, or (lo, hi) in HU"
            )
        window = WINDOWS[window]
    wanted = Spec(hu_window=window)
    stored_lo, stored_hi = spec.hu_window
    lo, hi = wanted.hu_window
    if hi <= stored_lo or lo >= stored_hi:
        raise UsageError(
            f"window is {window}, and the data set holds {spec.hu_window} HU only; choose a window "
            "within, or build with another --hu-window"
        )
    scale, offset = wanted.scale_offset
    half, middle = (stored_hi - stored_lo) / 2, (stored_hi + stored_lo) / 2
    return Scaling(scale * half, scale * middle + offset)


def apply_scaling(volume: torch.Tensor, scaling: Scaling) -> None:
    """``clamp(volume * scale + offset, -1, 1)`` in place, in float32, rounded once."""
    flat = volume.view(-1)
    step = _PART_VOXELS if volume.device.type == "cpu" else len(flat)
    for first in range(0, len(flat), step):
        part = flat[first : first + step]
        part.copy_(part.float().mul_(scaling.scale).add_(scaling.offset).clamp_(-1, 1))
