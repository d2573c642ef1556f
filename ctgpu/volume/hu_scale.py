"""Tells voxels that are not HU at all: normalised, grey values, labels, one value.

HU have a scale of their own: air is at -1000, fat at -100, soft tissue at 50, bone above 300, and
neighbours differ by noise of some HU.  A volume is told by how far its voxels reach and by how
neighbours differ, never by what it shows, for a crop may show one tissue alone.

The limits lie between what was found in nine real volumes and 5,000 random crops of them (as they
are, with noise of 150 HU, padded, shifted by 30 HU, and clipped to windows that reach below -100
HU), and in the same ones normalised, stored as grey values or in other units, and in label maps of
3 to 190 structures:

=============================== ======================== =====================================
fact                            as HU                    as something else
=============================== ======================== =====================================
reach, 48³ voxels and more      below -135 or above 300, [-1, 1], [0, 1], z-score, 1/cm, 1/mm:
                                or in a window           within ±18; percent, 8 bit, HU / 10:
                                                         from -128 to 338
reach, crops of 8³ and more     ±37 at least             the first as above
equal neighbours                at most 0.09             labels: 0.66 to 1
neighbours apart, in windows    8 to 27 HU               HU / 10, signed 8 bit: at most 4.0
neighbours apart, crops         4 HU at 8³, else 5 HU    percent: 0.1 to 3.7; 8 bit: below 4
from -135 to 300 HU             and more                 in 7 of 10
=============================== ======================== =====================================

Crops of less than 48³ voxels as 8-bit grey values are refused where they are smooth, pile up at
the ends of 8 bit, or have that dtype; else they look like HU of one tissue.  Permille, and other
scales that reach beyond all these, are not told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctgpu.volume.raw import Rescale

# Voxels looked at, the fewest whose reach alone says something, and the fewest that have a shape.
_SAMPLED_VOXELS = 1 << 18
_FEWEST_VOXELS = 48**3
_FEWEST_IN_CROP = 8**3

# Normalised voxels lie within the first, those of the smallest crops within the second.
_NORMALISED = 24.0
_NORMALISED_IN_CROP = 12.0
_OUTLIERS = 0.005

# Grey values and percent lie within the first, HU of a whole scan beyond, or clipped.
_LOWEST_GREY = -135.0
_HIGHEST_GREY = 300.0
_HIGHEST_PERCENT = 350.0
_FAT_HU = -50.0
_HIGHEST_SIGNED_GREY = 140.0
_LEAST_CLIPPED_HU = -100.0
_LEAST_TEXTURE_HU = 6.0
_LEAST_TEXTURE_OF_CROP_HU = 4.0
# Where they pile up: the ends of percent and 8-bit grey values, and air of HU / 10.
_GREY_LOWS = (0.0, -100.0, -102.4, -127.0, -128.0)
_GREY_HIGHS = (100.0, 127.0, 255.0)
_MOST_AT_ONE_END = 0.08
_MOST_IN_LOWEST_TENTH = 0.3

_WITHOUT_MASKS = "leave masks out of the source"

# Labels are hardly negative, and neighbours mostly share one.
_LOWEST_LABEL = -128.0
_EQUAL_NEIGHBOURS = 0.55
_FEWEST_PAIRS = 32
_FEW_LABELS = 16
_VOXELS_OF_A_LABEL = 8
_LEAST_OF_A_LABEL = 0.01

# What stands alone here may be the air of a phantom without noise, beside structures of HU.
_AIR_HU = (-1050.0, -900.0)

# Padding stands alone at the low end: nothing lies this close above it, and it is not nearly all.
_ALONE = 0.15
_LEAST_BESIDE_PADDING = 0.05
_MOST_ALONE = 4


class Fault(NamedTuple):
    """What a volume is instead of HU, in parts of a sentence."""

    likeness: str
    found: str
    way_out: str


def sampling_step(voxels: npt.NDArray[Any]) -> int:
    """Distance, along each axis, of the voxels that are looked at."""
    return max(1, round(math.cbrt(voxels.size / _SAMPLED_VOXELS)))


def slabs(voxels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """All voxels, slab by slab along the axis that is slowest in memory: reads are contiguous."""
    slowest_first = sorted(range(voxels.ndim), key=lambda axis: -abs(voxels.strides[axis]))
    return iter(voxels.transpose(slowest_first))


def scale_fault(
    voxels: npt.NDArray[Any], rescale: Rescale, ascending_hu: npt.NDArray[np.float64]
) -> Fault | None:
    """What a volume is whose voxels have not the scale of HU; None where they may have it.

    The sample speaks for HU, but only all voxels speak against them: a rare structure counts.

    Parameters
    ----------
    voxels : numpy.ndarray
        Source voxels, shape (H, W, D), every one finite.
    rescale : Rescale
        How they become HU.
    ascending_hu : numpy.ndarray
        An even sample of their HU, shape (N,), ascending.
    """
    padding, body = _split_padding(ascending_hu)
    if not np.any((body > body[0]) & (body < body[-1])):
        fault = _few_values_fault(voxels, rescale)
        if fault is not None:
            return fault
    normalised_bulk = voxels.size >= _FEWEST_VOXELS and _is_normalised_but_for_outliers(body)
    if body[0] < _LOWEST_GREY and not normalised_bulk:
        return None
    low, high = _reach(voxels, rescale, above=padding)
    has_air = _AIR_HU[0] <= padding <= _AIR_HU[1]
    return _Scale(voxels, rescale, body, low, high, has_air, normalised_bulk).fault


def _split_padding(
    hu: npt.NDArray[np.float64],
) -> tuple[float, npt.NDArray[np.float64]]:
    """Highest of the values that stand alone at the low end, or -inf; and the others."""
    padding, least = -math.inf, _LEAST_BESIDE_PADDING * len(hu)
    for _ in range(_MOST_ALONE):
        lowest, reach = hu[0], hu[-1] - hu[0]
        count, within_gap = np.searchsorted(hu, (lowest, lowest + _ALONE * reach), side="right")
        alone = within_gap == count and len(hu) - count >= least
        if lowest >= _LOWEST_GREY or not alone:
            break
        padding, hu = float(lowest), hu[count:]
    return padding, hu


def _few_values_fault(voxels: npt.NDArray[Any], rescale: Rescale) -> Fault | None:
    """That a volume holds one value or two; None where it holds more, or may be HU even so."""
    values = _at_most_three_values(voxels)
    hu = values * rescale.slope + rescale.intercept
    if len(values) == 1:
        return Fault(
            "holds one value only",
            f"every voxel is {hu[0]:g}",
            "leave it out, or look at how it was made",
        )
    if len(values) > 2 or voxels.size < _FEWEST_IN_CROP or hu.min() < _LOWEST_LABEL:
        return None
    share = np.count_nonzero(voxels == values[0]) / voxels.size
    if voxels.size < _FEWEST_VOXELS and min(share, 1 - share) < _LEAST_OF_A_LABEL:
        return None
    return Fault(
        "looks like labels",
        f"it holds two values only, {hu.min():g} and {hu.max():g}",
        _WITHOUT_MASKS,
    )


def _at_most_three_values(voxels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The distinct voxel values, or three of them where there are more."""
    values: npt.NDArray[Any] = np.empty(0, voxels.dtype)
    for slab in slabs(voxels):
        others = slab.ravel()
        for value in values:
            others = others[others != value]
        while others.size and len(values) < 3:
            values = np.append(values, others[0])
            others = others[others != others[0]]
    return values.astype(np.float64)


def _is_normalised_but_for_outliers(body: npt.NDArray[np.float64]) -> bool:
    last = len(body) - 1
    bulk = body[math.floor(_OUTLIERS * last) : math.ceil((1 - _OUTLIERS) * last) + 1]
    if max(abs(bulk[0]), abs(bulk[-1])) > _NORMALISED:
        return False
    return bool(np.mean(bulk != np.rint(bulk)) > 0.5)


def _reach(voxels: npt.NDArray[Any], rescale: Rescale, *, above: float) -> tuple[float, float]:
    """Lowest and highest HU of all voxels above what is padding."""
    ends: list[float] = []
    for slab in slabs(voxels):
        values = slab
        if above > -math.inf:
            hu = slab.astype(np.float64) * rescale.slope + rescale.intercept
            values = slab[hu > above]
        if values.size:
            ends += [float(values.min()), float(values.max())]
    hu_ends = [end * rescale.slope + rescale.intercept for end in ends]
    return min(hu_ends), max(hu_ends)


@dataclass(frozen=True)
class _Scale:
    """What decides whether voxels have the scale of HU."""

    voxels: npt.NDArray[Any]
    rescale: Rescale
    body: npt.NDArray[np.float64]
    low: float
    high: float
    has_air: bool
    normalised_bulk: bool

    @property
    def fault(self) -> Fault | None:
        """What they are instead; None where they may be HU."""
        if self._like_labels:
            return Fault(
                "looks like labels",
                f"its voxels lie between {self.low:g} and {self.high:g} and "
                f"{self.neighbours.equal:.0%} of neighbours are equal",
                _WITHOUT_MASKS,
            )
        if self._normalised:
            return self._reach_fault(_name_normalised(self.low, self.high, self.body))
        if self._grey:
            return self._reach_fault(_name_grey(self.low, self.high))
        return None

    def _reach_fault(self, likeness: str) -> Fault:
        found = (
            f"every voxel is {self.low:g}"
            if self.low == self.high
            else (
                f"its voxels lie between {self.low:.6g} and {self.high:.6g}, where HU reach from "
                "-1000 for air to 300 and more for bone"
            )
        )
        return Fault(likeness, found, "take the volume as it was before, or scale it back to HU")

    @property
    def _like_labels(self) -> bool:
        if self.low < _LOWEST_LABEL or self.has_air:
            return False
        if self.neighbours.pairs >= _FEWEST_PAIRS and self.neighbours.equal > _EQUAL_NEIGHBOURS:
            return True
        inside = self._between_ends(self.body)
        if not inside.size:  # rare structures, which the sample missed
            hu = (s.astype(np.float64) * self.rescale.slope for s in slabs(self.voxels))
            inside = np.concatenate([self._between_ends(s + self.rescale.intercept) for s in hu])
        values = np.unique(inside)
        few = 0 < len(values) <= _FEW_LABELS and len(inside) >= _VOXELS_OF_A_LABEL * len(values)
        return few and bool((values == np.rint(values)).all())

    def _between_ends(self, hu: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return hu[(hu > self.low) & (hu < self.high)]

    @property
    def _normalised(self) -> bool:
        small = self.voxels.size < _FEWEST_IN_CROP
        within = _NORMALISED_IN_CROP if small else _NORMALISED
        return self.normalised_bulk or max(abs(self.low), abs(self.high)) <= within

    @property
    def _grey(self) -> bool:
        low, high = self.low, self.high
        reaches_fat = low < _FAT_HU
        if low < _LOWEST_GREY or high > (_HIGHEST_PERCENT if reaches_fat else _HIGHEST_GREY):
            return False
        if self.voxels.dtype.itemsize == 1:
            return True
        like_clipped_hu = low < _LEAST_CLIPPED_HU or (reaches_fat and high > _HIGHEST_SIGNED_GREY)
        if like_clipped_hu and self.neighbours.apart >= _LEAST_TEXTURE_HU:
            return False
        if self.voxels.size < _FEWEST_VOXELS:
            return self.voxels.size >= _FEWEST_IN_CROP and (self._smooth or self._piles_up)
        return True

    @property
    def _smooth(self) -> bool:
        """Whether neighbours are more alike than noise lets HU be."""
        pairs, _, apart = self.neighbours
        return pairs >= _FEWEST_PAIRS and apart < _LEAST_TEXTURE_OF_CROP_HU

    @property
    def _piles_up(self) -> bool:
        """Whether many voxels of a crop are where grey values have air, or were clipped."""
        body, low, high = self.body, self.body[0], self.body[-1]
        at_low, in_tenth = (
            np.searchsorted(body, bound, side="right") / len(body)
            for bound in (low, low + 0.1 * (high - low))
        )
        at_high = 1 - np.searchsorted(body, high) / len(body)
        return bool(
            (_is_one_of(low, _GREY_LOWS) and at_low > _MOST_AT_ONE_END)
            or (_is_one_of(low, _GREY_LOWS) and in_tenth > _MOST_IN_LOWEST_TENTH)
            or (_is_one_of(high, _GREY_HIGHS) and at_high > _MOST_AT_ONE_END)
        )

    @cached_property
    def neighbours(self) -> _Neighbours:
        return _Neighbours.measure(self.voxels, self.rescale, self.low, self.high)


class _Neighbours(NamedTuple):
    """How voxels differ from the next one.

    Pairs with a voxel at an end of the reach are left out: clipped voxels are all equal.

    Attributes
    ----------
    pairs : int
        How many were looked at along each axis, at least.
    equal : float
        Share of equal ones, along the axis with the fewest: slices may be repeated.
    apart : float
        Median difference in HU, along the axis with the smallest: slices may lie far apart.
    """

    pairs: int
    equal: float
    apart: float

    @classmethod
    def measure(
        cls, voxels: npt.NDArray[Any], rescale: Rescale, low: float, high: float
    ) -> _Neighbours:
        step = sampling_step(voxels)
        along: list[npt.NDArray[np.float64]] = []
        for axis in range(3):
            ends = np.moveaxis(voxels, axis, 0)
            one, other = (
                part[::step, ::step, ::step].astype(np.float64) * rescale.slope + rescale.intercept
                for part in (ends[:-1], ends[1:])
            )
            inside = (one > low) & (one < high) & (other > low) & (other < high)
            along.append(np.abs(one[inside] - other[inside]))
        along = [apart for apart in along if apart.size]
        if not along:
            return cls(0, 0.0, 0.0)
        return cls(
            min(apart.size for apart in along),
            min(float(np.mean(apart == 0)) for apart in along),
            min(float(np.median(apart)) for apart in along),
        )


def _name_normalised(low: float, high: float, body: npt.NDArray[np.float64]) -> str:
    if (body == np.rint(body)).all():
        return "looks like labels"
    if -1.05 <= low < -0.05 and high <= 1.05:
        return "looks normalised to [-1, 1]"
    if low >= -0.05 and high <= 1.05:
        return (
            "looks normalised to [0, 1]"
            if high > 0.95
            else "looks like linear attenuation, or normalised to [0, 1]"
        )
    return "looks standardised (z-score)" if low < 0 else "looks normalised"


def _name_grey(low: float, high: float) -> str:
    if low >= -103 and high <= 101:
        return "looks like percent"
    return "looks like 8-bit grey values"


def _is_one_of(value: float, marks: tuple[float, ...]) -> bool:
    return any(abs(value - mark) <= 0.5 for mark in marks)
