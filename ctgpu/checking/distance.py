"""How far a stored volume is from the reference, and what may have gone wrong in its making."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

#: The contract's bounds against the reference: ulp or absolute anywhere, and share of voxels.
MAX_ULP = 1
MAX_ABSOLUTE = 2.4e-7
MAX_DIFFERING_SHARE = 1e-3

_SLAB_VOXELS = 1 << 22
_LOOKED_AT_VOXELS = 1 << 18
_FITS = 3
_FEWEST_FITTED = 16


def ulp_distance(
    made: npt.NDArray[np.float16], reference: npt.NDArray[np.float16]
) -> npt.NDArray[np.int32]:
    """How many float16 values apart each pair is; +0 and -0 are the same."""

    def ordered(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
        bits = values.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    distance: npt.NDArray[np.int32] = np.abs(ordered(made) - ordered(reference))
    return distance


def measure(
    made: npt.NDArray[Any], reference: npt.NDArray[np.float16]
) -> tuple[tuple[float, float, float], bool]:
    """Largest and mean distance and share of differing voxels; whether all bounds hold."""
    flat, wanted = made.reshape(-1), reference.reshape(-1)
    largest = total = differing = 0
    near = True
    for start in range(0, flat.size, _SLAB_VOXELS):
        part = slice(start, start + _SLAB_VOXELS)
        distance = ulp_distance(flat[part], wanted[part])
        largest = max(largest, int(distance.max()))
        total += int(distance.sum(dtype=np.int64))
        differing += int(np.count_nonzero(distance))
        far = distance > MAX_ULP
        if far.any():
            apart = np.abs(flat[part][far].astype(np.float32) - wanted[part][far])
            near = near and bool((apart <= MAX_ABSOLUTE).all())
    few = differing <= max(1, flat.size * MAX_DIFFERING_SHARE)
    return (float(largest), total / flat.size, differing / flat.size), near and few


def likely_cause(made: npt.NDArray[Any], reference: npt.NDArray[np.float16]) -> str:
    """What the differences look like, judged on a part of the voxels."""
    for axes in itertools.permutations(range(3)):
        if axes != (0, 1, 2) and np.array_equal(made.transpose(axes).shape, reference.shape):
            step = _step(made)
            swapped = made.transpose(axes)[::step, ::step, ::step]
            part = reference[::step, ::step, ::step]
            if np.abs(swapped.astype(np.float32) - part).mean() < 1e-3:
                return f"its axes are in the order {axes} of the reference's"
    step = _step(made)
    x = reference[::step, ::step, ::step].astype(np.float64).ravel()
    y = made[::step, ::step, ::step].astype(np.float64).ravel()
    kept = (np.abs(x) < 0.99) & (np.abs(y) < 0.99)
    for _ in range(_FITS):
        if np.count_nonzero(kept) < _FEWEST_FITTED or np.ptp(x[kept]) == 0:
            return "it has next to no voxel in common with the reference, as of a wrong rescale"
        slope, offset = np.polyfit(x[kept], y[kept], 1)
        # Voxels between clipped and unclipped ones follow no line: the better half decides.
        apart = np.abs(y - slope * x - offset)
        kept &= apart <= np.median(apart[kept])
    if apart[kept].max() < 2e-3 and abs(slope - 1) + abs(offset) > 1e-2:
        return (
            f"its values are {slope:.3f} times the reference's and {offset:+.3f}, as of another HU "
            "window or of a rescale too many or too few"
        )
    return "it lies elsewhere, as of another spacing, crop or sampling position"


def _step(volume: npt.NDArray[Any]) -> int:
    return max(1, int((volume.size / _LOOKED_AT_VOXELS) ** (1 / 3)))
