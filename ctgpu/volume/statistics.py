"""Statistics of one volume, for what is normalised by its own voxels.

Which voxels: all of the source, before anything is cropped away, as HU (rounded to float32, then
``slope * x + intercept`` in float64), clipped to the window where the spec has one.

========== =====================================================================================
minimum,   the least and the largest of them
maximum
percentile of the voxels in ascending order, the one at ``p / 100 * (n - 1)``; between two
           neighbours in proportion (Hyndman and Fan's definition 7, ``numpy.percentile``'s default)
mean       the sum by n
std        the square root of the mean squared distance from the mean (no Bessel's correction)
========== =====================================================================================

Each is rounded to float32.  Whole numbers of 8 and 16 bits are counted by value, so that all of
this is exact up to that rounding, and the same on every machine; others are sorted, or summed in
float64.

References
----------
R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50
(1996), 361-365.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import IntensityError
from ctgpu.spec import Normalise, Spec
from ctgpu.spec.contradictions import HIGHEST_HU, NARROWEST_HU
from ctgpu.volume.raw import Rescale

_PART_VOXELS = 1 << 16  # in the cache, as float64 too

FloatArray = npt.NDArray[np.float64]
ToHu = Callable[[npt.NDArray[Any]], FloatArray]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known about the HU of one volume; NaN where the spec does not ask for it.

    Attributes
    ----------
    minimum, maximum : float
        The least and the largest.
    mean, std : float
        Mean and standard deviation.
    percentile_lo, percentile_hi : float
        Those that the spec names.
    """

    minimum: float = math.nan
    maximum: float = math.nan
    mean: float = math.nan
    std: float = math.nan
    percentile_lo: float = math.nan
    percentile_hi: float = math.nan

    def range_of(self, normalise: Normalise) -> tuple[float, float]:
        """The HU that a spec maps to the ends of its output range."""
        if normalise == "percentiles":
            return self.percentile_lo, self.percentile_hi
        return self.minimum, self.maximum

    def to_dict(self) -> dict[str, float]:
        """Those that are known, as JSON-ready values."""
        return {
            name: value for name in self.__slots__ if not math.isnan(value := getattr(self, name))
        }


def statistics_of(voxels: npt.NDArray[Any], rescale: Rescale, spec: Spec) -> Statistics:
    """The statistics that a spec asks for.

    Parameters
    ----------
    voxels : numpy.ndarray
        All source voxels, any shape, strides, byte order and dtype, every one finite.
    rescale : Rescale
        How they become HU.
    spec : Spec
        The contract.

    Raises
    ------
    IntensityError
        If no scale follows from them: they are all about the same, or one is far beyond any HU.
    """

    def hu_of(values: npt.NDArray[Any]) -> FloatArray:
        hu = rescale.hu_of(values)
        return hu if spec.hu_window is None else np.clip(hu, *spec.hu_window, out=hu)

    flat = np.ravel(voxels, order="K")  # without a copy where its memory has no gaps
    # One slope and intercept for all keep the voxels' order, or turn it around.
    minimum, maximum = sorted(hu_of(np.array([flat.min(), flat.max()])).tolist())
    _check_reach(minimum, maximum)
    found = {"minimum": minimum, "maximum": maximum}
    if spec.normalise in ("percentiles", "zscore"):
        counted = flat.dtype.kind in "iu" and flat.dtype.itemsize <= 2
        voxels_hu = (
            _Counted(flat, hu_of) if counted else _Listed(flat, hu_of, falls=rescale.slope < 0)
        )
        if spec.percentiles is not None:
            lo, hi = _percentiles(voxels_hu, flat.size, spec.percentiles)
            found |= {"percentile_lo": lo, "percentile_hi": hi}
        else:
            mean = voxels_hu.mean(lambda hu: hu)
            variance = voxels_hu.mean(lambda hu: (hu - mean) ** 2)
            found |= {"mean": mean, "std": math.sqrt(variance)}
    # + 0.0, for the sign of a zero says nothing.
    statistics = Statistics(**{name: float(np.float32(x)) + 0.0 for name, x in found.items()})
    if spec.normalise != "window":
        _check_spread(statistics, spec)
    return statistics


def _check_reach(minimum: float, maximum: float) -> None:
    if max(-minimum, maximum) > HIGHEST_HU:
        raise IntensityError(
            f"the volume's HU reach from {minimum:g} to {maximum:g}; wanted at most "
            f"±{HIGHEST_HU:,} where no window clips them: repair the volume, or state a window"
        )


def _check_spread(statistics: Statistics, spec: Spec) -> None:
    if spec.normalise == "zscore":
        spread, what = statistics.std, "standard deviation"
    else:
        lo, hi = statistics.range_of(spec.normalise)
        spread = hi - lo
        what = "range" if spec.percentiles is None else "range between those percentiles"
    if spread < NARROWEST_HU:
        raise IntensityError(
            f"normalise is {spec.normalise!r}, and the volume's {what} is {spread:g} HU; wanted "
            f"{NARROWEST_HU:g} at least: leave the volume out, or normalise by a window"
        )


def _percentiles(
    voxels_hu: _Counted | _Listed, n: int, wanted: tuple[float, float]
) -> tuple[float, float]:
    places = [percentile / 100 * (n - 1) for percentile in wanted]
    ranks = [rank for place in places for rank in (math.floor(place), math.ceil(place))]
    a, b, c, d = voxels_hu.ascending(ranks)
    lo, hi = places
    return a + (b - a) * (lo - ranks[0]), c + (d - c) * (hi - ranks[2])


class _Counted:
    """The HU of a volume as few values and how often each occurs."""

    def __init__(self, flat: npt.NDArray[Any], hu_of: ToHu) -> None:
        words = flat.view(f"u{flat.itemsize}")
        counts = _counts_of_words(words)
        there = np.flatnonzero(counts)
        # The bits mean a number only in the byte order of the volume.
        hu = hu_of(there.astype(words.dtype).view(flat.dtype))
        order = np.argsort(hu, kind="stable")
        self._hu, self._counts = hu[order], counts[there][order]
        self._up_to = np.cumsum(self._counts)

    def mean(self, of: Callable[[FloatArray], FloatArray]) -> float:
        return math.fsum(of(self._hu) * self._counts) / int(self._up_to[-1])

    def ascending(self, ranks: list[int]) -> list[float]:
        """The voxels that have so many before them."""
        found: list[float] = self._hu[np.searchsorted(self._up_to, ranks, side="right")].tolist()
        return found


def _counts_of_words(words: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How often each bit pattern of 8 or 16 bits occurs."""
    counts = np.zeros(1 << 8 * words.itemsize, np.int64)
    try:
        from ctgpu._native import count_words
    except ImportError:  # a pure package, a quarter as fast
        for part in _parts(words, 16 * len(counts)):
            counts += np.bincount(part, minlength=len(counts))
    else:
        count_words(words.view(np.uint8), counts)
    return counts


class _Listed:
    """The HU of a volume, made of its voxels part by part, so that they take little memory."""

    def __init__(self, flat: npt.NDArray[Any], hu_of: ToHu, *, falls: bool) -> None:
        self._flat = flat
        self._hu_of = hu_of
        self._falls = falls

    def mean(self, of: Callable[[FloatArray], FloatArray]) -> float:
        sums = (float(of(self._hu_of(part)).sum()) for part in _parts(self._flat))
        return math.fsum(sums) / self._flat.size

    def ascending(self, ranks: list[int]) -> list[float]:
        """The voxels that have so many before them."""
        voxels = self._flat.astype(np.float32)
        if self._falls:
            ranks = [voxels.size - 1 - rank for rank in ranks]
        voxels.partition(sorted(set(ranks)))
        found: list[float] = self._hu_of(voxels[ranks]).tolist()
        return found


def _parts(flat: npt.NDArray[Any], size: int = _PART_VOXELS) -> Iterator[npt.NDArray[Any]]:
    return (flat[start : start + size] for start in range(0, flat.size, size))
