"""Other HU windows than the one that was stored, chosen when a batch is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctgpu.arguments import shown
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

#: A name of :data:`WINDOWS`, or (lo, hi) in HU.
Window = str | tuple[float, float]

# Small enough that what is made of a part in float32 stays in the cache.
_PART_VOXELS = 1 << 18
# What int16 holds where nothing was clipped.
_ALL_HU = (-32768.0, 32767.0)


class Scaling(NamedTuple):
    """``value * scale + offset`` of what is stored, and the type of the result."""

    scale: float
    offset: float
    dtype: Dtype


def chosen_scalings(
    spec: Spec, window: Window | None, windows: Sequence[Window] | None
) -> tuple[Scaling, ...]:
    """What makes each channel of the stored numbers; empty where these are left as they are.

    Parameters
    ----------
    spec : Spec
        What the stored numbers mean.
    window : str or tuple of float, optional
        The one channel, as :func:`rewindow` takes it.
    windows : sequence of str or tuple of float, optional
        A channel each, as :func:`rewindow_each` takes them.

    Raises
    ------
    UsageError
        If both are given, and as these.
    """
    if window is not None and windows is not None:
        raise UsageError(
            f"window is {shown(window)} and windows is {shown(windows)}; give one of them: window "
            "for one channel, windows for a channel each"
        )
    if windows is not None:
        return rewindow_each(spec, windows)
    return () if window is None else (rewindow(spec, window),)


def rewindow(spec: Spec, window: Window) -> Scaling:
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
    _require_one_scale(spec, "window", window)
    lo, hi = _bounds_hu("window is", window)
    stored_lo, stored_hi = spec.hu_window or _ALL_HU
    if hi <= stored_lo or lo >= stored_hi:
        raise UsageError(
            f"window is {(lo, hi)}, and the data set holds {stored_lo:g} to {stored_hi:g} HU only; "
            "choose a window within, or build with another --hu-window"
        )
    return _scaling(spec, lo, hi)


def rewindow_each(spec: Spec, windows: Sequence[Window]) -> tuple[Scaling, ...]:
    """What takes stored numbers to several windows, each mapped to [-1, 1], in their order.

    Parameters
    ----------
    spec : Spec
        What the stored numbers mean.
    windows : sequence of str or tuple of float
        Names of :data:`WINDOWS`, or (lo, hi) in HU, within what is stored; one may come twice.

    Raises
    ------
    UsageError
        If it is no list of windows, or empty, or one of them is unknown or not within the stored
        window, or each volume has a scale of its own.
    """
    if (
        not isinstance(windows, list | tuple)
        or not windows
        or not all(isinstance(one, str | list | tuple | np.ndarray) for one in windows)
    ):
        raise UsageError(
            f"windows is {shown(windows)}; it takes a list of windows, a channel each, such as "
            "['lung', (-1150, 350)]"
        )
    _require_one_scale(spec, "windows", windows)
    bounds_hu = [_bounds_hu("windows has", one) for one in windows]
    stored_lo, stored_hi = spec.hu_window or _ALL_HU
    for one, (lo, hi) in zip(windows, bounds_hu, strict=True):
        if not stored_lo <= lo < hi <= stored_hi:
            least = min(stored_lo, *(lo for lo, _ in bounds_hu))
            largest = max(stored_hi, *(hi for _, hi in bounds_hu))
            raise UsageError(
                f"windows has {shown(one)}, which is {lo:g} to {hi:g} HU, and the data set holds "
                f"{stored_lo:g} to {stored_hi:g} HU only; choose windows within, or build with "
                f"--hu-window {least:g},{largest:g}, or with --dtype int16 --hu-window none"
            )
    return tuple(_scaling(spec, lo, hi) for lo, hi in bounds_hu)


def _require_one_scale(spec: Spec, name: str, value: object) -> None:
    if spec.normalise != "window":
        raise UsageError(
            f"{name} is {value!r}, and the data set was built with normalise={spec.normalise!r}, "
            "so each volume has a scale of its own; build with dtype='int16' to choose windows "
            f"when loading, or leave {name} out"
        )


def _bounds_hu(found: str, window: Window) -> tuple[float, float]:
    if isinstance(window, str):
        if window not in WINDOWS:
            raise UsageError(
                f"{found} {window!r}; it is one of {', '.join(WINDOWS)}, or (lo, hi) in HU"
            )
        window = WINDOWS[window]
    Spec(hu_window=window)  # or it says what is wrong with it
    lo, hi = map(float, window)
    return lo, hi


def _scaling(spec: Spec, lo: float, hi: float) -> Scaling:
    """From stored numbers to [-1, 1], by way of HU."""
    scale, offset = Spec(hu_window=(lo, hi)).scale_offset
    dtype: Dtype = "bfloat16" if spec.dtype == "bfloat16" else "float16"
    if spec.stores_hu:
        return Scaling(scale, offset, dtype)
    stored_lo, stored_hi = spec.hu_window or _ALL_HU
    # Where -1 and 1 would be stored: half a window, in stored numbers, and its middle.
    stored_half, stored_middle = spec.map_hu(-1.0, 1.0)
    hu_per_number = (stored_hi - stored_lo) / 2 / stored_half
    hu_of_zero = (stored_hi + stored_lo) / 2 - stored_middle * hu_per_number
    return Scaling(scale * hu_per_number, scale * hu_of_zero + offset, dtype)


def apply_scalings(stored: torch.Tensor, scalings: Sequence[Scaling], out: torch.Tensor) -> None:
    """``clamp(stored * scale + offset, -1, 1)`` for each channel, in float32, rounded once.

    What is stored is read once, part by part, and each part makes all channels while it is in the
    cache.

    Parameters
    ----------
    stored : torch.Tensor
        Shape (B, …), contiguous.
    scalings : sequence of Scaling
        The map of each channel.
    out : torch.Tensor
        Shape (B, channels, …), contiguous, of the type ``scaling.dtype`` or of float32.  It may
        share memory with `stored`, if that is the last part of it: parts are read from the front
        before they are written.
    """
    import torch

    samples = stored.view(len(stored), -1)
    voxels = samples.shape[1]
    step = min(voxels, _PART_VOXELS) if stored.device.type == "cpu" else voxels
    # What is read, widened, and each channel.  The last is made in place of what was read.
    buffers = stored.new_empty((min(2, len(scalings)), step), dtype=torch.float32)
    widened, others = buffers[0], buffers[-1]
    places = [others] * (len(scalings) - 1) + [widened]
    for sample, channels in zip(samples, out.view(len(out), len(scalings), -1), strict=True):
        for first in range(0, voxels, step):
            part = sample[first : first + step]
            numbers = widened[: len(part)].copy_(part)
            for scaling, channel, place in zip(scalings, channels, places, strict=True):
                made = torch.mul(numbers, scaling.scale, out=place[: len(part)])
                made.add_(scaling.offset).clamp_(-1, 1)
                channel[first : first + step].copy_(made)
