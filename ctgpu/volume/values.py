"""How the HU of one volume become the numbers that are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctgpu.spec import Spec
from ctgpu.volume.statistics import Statistics


@dataclass(frozen=True, slots=True)
class ValueMap:
    """What an engine does to HU, in float32.

    Attributes
    ----------
    clip_lo, clip_hi : float
        What they are clipped to, before or after resampling as the spec says; infinite where they
        are not.
    scale, offset : float
        ``hu * scale + offset`` is the number that is stored, before it is rounded to its type.
    pad : float
        The number that is stored where there is no source, likewise.
    """

    clip_lo: float
    clip_hi: float
    scale: float
    offset: float
    pad: float


def value_map(spec: Spec, statistics: Statistics | None = None) -> ValueMap:
    """The map of one volume.

    Parameters
    ----------
    spec : Spec
        The contract.
    statistics : Statistics, optional
        Of the volume; needed where ``spec.needs_statistics``.

    Raises
    ------
    ValueError
        If they are needed and missing.
    """
    if statistics is None and spec.needs_statistics:
        raise ValueError("this spec needs the statistics of the volume")
    lo, hi = spec.hu_window or (-math.inf, math.inf)
    if statistics is None or spec.normalise == "window":
        scale, offset = spec.scale_offset
    elif spec.normalise == "zscore":
        mean, std = statistics.mean, statistics.std
        scale, offset = spec.map_hu(mean - std, mean + std)
    else:
        lo, hi = statistics.range_of(spec.normalise)
        scale, offset = spec.map_hu(lo, hi)
    if spec.padding is not None:
        pad = spec.encoded(spec.padding)
    elif statistics is not None and spec.hu_window is None:
        pad = statistics.minimum * scale + offset
    else:
        pad = lo * scale + offset
    return ValueMap(lo, hi, scale, offset, pad)
