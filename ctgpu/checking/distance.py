"""How far a stored volume is from the reference, and what may have gone wrong in its making."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.spec import Dtype, Precision, Spec

#: The contract's bounds against the reference: ulp anywhere, and share of voxels that differ.
MAX_ULP = 1
MAX_DIFFERING_SHARE = 1e-3
#: The share where a number of another range lies near 0, or halfway between two of a coarser type:
#: there float32 that was rounded in another order decides.
MAX_DIFFERING_SHARE_ELSEWHERE = 1e-2
#: What float32 itself is off, for numbers up to 1: less is no difference.
MAX_ABSOLUTE = 2.4e-7

_SLAB_VOXELS = 1 << 22
_LOOKED_AT_VOXELS = 1 << 18
_SAME = 1e-3
_FITS = 3
_FEWEST_FITTED = 16

Numbers = npt.NDArray[Any]


def ulp_distance(made: Numbers, reference: Numbers, dtype: Dtype) -> npt.NDArray[np.int32]:
    """How many numbers of the stored type apart each pair is; +0 and -0 are the same.

    Parameters
    ----------
    made, reference : numpy.ndarray
        One shape, of any type that holds the numbers of `dtype`.
    dtype : str
        As ``Spec.dtype``.
    """
    distance: npt.NDArray[np.int32] = np.abs(_ordered(made, dtype) - _ordered(reference, dtype))
    return distance


def _ordered(numbers: Numbers, dtype: Dtype) -> npt.NDArray[np.int32]:
    """Whole numbers in the order of the stored ones, those of neighbours one apart."""
    if dtype in ("int16", "uint8"):
        return numbers.astype(np.int32)
    if dtype == "float16":
        bits = numbers.astype(np.float16).view(np.int16).astype(np.int32)
    else:
        bits = numbers.astype(np.float32).view(np.int32) >> 16
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def measure(
    made: Numbers, reference: Numbers, spec: Spec
) -> tuple[tuple[float, float, float], bool]:
    """Largest and mean distance and share of differing voxels; whether all bounds hold.

    Of a contract with a precision the distance of its numbers is in steps of that, where these are
    larger than an ulp; numbers that are none of its are as many ulp apart as they are.

    The largest distance is of voxels that are further apart than float32 itself is off: near 0 a
    float16 or bfloat16 is so fine that any rounding is many of them.

    Parameters
    ----------
    made, reference : numpy.ndarray
        As :func:`ulp_distance` takes them.
    spec : Spec
        The contract of the reference.
    """
    flat, wanted = made.reshape(-1), reference.reshape(-1)
    no_difference = MAX_ABSOLUTE * max(1.0, float(-wanted.min()), float(wanted.max()))
    largest = total = differing = counted = 0
    for start in range(0, flat.size, _SLAB_VOXELS):
        part = slice(start, start + _SLAB_VOXELS)
        distance = ulp_distance(flat[part], wanted[part], spec.dtype)
        if spec.precision_step is not None:
            distance = _in_steps(distance, flat[part], wanted[part], spec.precision_step)
        total += int(distance.sum(dtype=np.int64))
        differing += int(np.count_nonzero(distance))
        differs = np.flatnonzero(distance)
        apart = np.abs(flat[part][differs].astype(np.float32) - wanted[part][differs])
        # What is NaN counts too.
        differs = differs[~(apart <= no_difference)]
        counted += len(differs)
        largest = max(largest, int(distance[differs].max(initial=0)))
    if spec.is_first_version:
        few = differing <= max(1, flat.size * MAX_DIFFERING_SHARE)
    else:
        few = counted <= max(1, flat.size * MAX_DIFFERING_SHARE_ELSEWHERE)
    return (float(largest), total / flat.size, differing / flat.size), largest <= MAX_ULP and few


def _in_steps(
    distance_ulp: npt.NDArray[np.int32], made: Numbers, reference: Numbers, step: float
) -> npt.NDArray[np.int32]:
    """Distances between multiples of a step in steps, where float16 is finer than these."""
    numbers = made.astype(np.float32)
    steps = np.ceil(np.abs(numbers - reference.astype(np.float32)) / step)
    return np.where(
        _are_multiples(numbers, step), np.fmin(steps, distance_ulp), distance_ulp
    ).astype(np.int32)


def _are_multiples(numbers: Numbers, step: float) -> npt.NDArray[np.bool_]:
    units = numbers.astype(np.float32) / np.float32(step)
    multiples: npt.NDArray[np.bool_] = np.rint(units) == units
    return multiples


def likely_cause(made: Numbers, reference: Numbers, spec: Spec) -> str:
    """What the differences look like, judged on a part of the voxels.

    Parameters
    ----------
    made, reference : numpy.ndarray
        Numbers as stored, of one shape.
    spec : Spec
        The contract of the reference.
    """
    low, high = _ends(spec, reference)
    half, middle = (high - low) / 2, (high + low) / 2

    def looked_at(volume: Numbers) -> npt.NDArray[np.float64]:
        """Every so many voxels, the ends of the output as -1 and 1."""
        return (_part_of(volume).astype(np.float64) - middle) / half

    wanted = looked_at(reference)
    for axes, flips, turned in _turned(made):
        if turned.shape == reference.shape and np.abs(looked_at(turned) - wanted).mean() < _SAME:
            backwards = f", {' and '.join(flips)} backwards" if flips else ""
            return (
                f"its axes are in the order {axes} of the reference's{backwards}, as of another "
                "orientation or layout"
            )
    x, y = wanted.ravel(), looked_at(made).ravel()
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
    if spec.dtype == "float16":
        precision, wanted_precision = _precision_of(made), _precision_of(reference)
        if precision != wanted_precision:
            return f"its precision is {precision}, and that of the reference {wanted_precision}"
    return "it lies elsewhere, as of another spacing, crop, orientation or sampling position"


def _part_of(volume: Numbers) -> Numbers:
    """Every so many voxels."""
    step = max(1, int((volume.size / _LOOKED_AT_VOXELS) ** (1 / 3)))
    return volume[::step, ::step, ::step]


def _precision_of(volume: Numbers) -> Precision:
    """The coarsest that all its numbers have."""
    part = _part_of(volume)
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        step = Spec(precision=precision).precision_step
        if step is not None and _are_multiples(part, step).all():
            return precision
    return "exact"


def _ends(spec: Spec, reference: Numbers) -> tuple[float, float]:
    """The stored numbers between which those of a volume lie."""
    if spec.normalise == "zscore" or (spec.stores_hu and spec.hu_window is None):
        low, high = float(reference.min()), float(reference.max())
        return low, max(high, low + 1)
    if spec.stores_hu and spec.hu_window is not None:
        return spec.hu_window
    scale, low = spec.map_hu(0.0, 1.0)
    return low, low + scale


def _turned(volume: Numbers) -> Iterator[tuple[tuple[int, ...], list[str], Numbers]]:
    """A volume in every other orientation: order of axes, those that are turned around, a view."""
    for axes, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        if axes != (0, 1, 2) or -1 in signs:
            flips = [name for name, sign in zip("012", signs, strict=True) if sign < 0]
            view = volume.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
            yield axes, flips, view
