"""Where each contract maps the ends of its window, and padding, by straightforward arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctgpu.engines import Job, open_engine
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import Statistics, statistics_of
from ctgpu.volume.stored import numbers_of, numpy_dtype
from ctgpu.volume.values import ValueMap, value_map

FOUND = Statistics(
    minimum=-1100.0,
    maximum=2900.0,
    mean=-350.0,
    std=430.0,
    percentile_lo=-1010.0,
    percentile_hi=640.0,
)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (-3.5, 7.25), (0.0, 255.0)]
BY: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "window": ({"hu_window": (-1000, 400)}, (-1000, 400)),
    "window from 0": ({"hu_window": (0, 80)}, (0, 80)),
    "minmax": ({"normalise": "minmax", "hu_window": None}, (-1100, 2900)),
    "minmax of a window": ({"normalise": "minmax"}, (-1100, 2900)),
    "percentiles": (
        {"normalise": "percentiles", "percentiles": (1, 99), "hu_window": None},
        (-1010, 640),
    ),
}


def stored(values: ValueMap, hu: float) -> float:
    return min(max(hu, values.clip_lo), values.clip_hi) * values.scale + values.offset


@pytest.mark.parametrize("output_range", RANGES)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(
    ("dtype", "standardise"),
    [("float16", None), ("float16", (0.45, 0.22)), ("bfloat16", (-3, 2)), ("uint8", None)],
)
def test_the_ends_go_to_the_ends_of_the_range(by, output_range, standardise, dtype):
    fields, (lo, hi) = BY[by]
    spec = Spec(**fields, output_range=output_range, standardise=standardise, dtype=dtype)
    values = value_map(spec, FOUND)
    mean, std = standardise or (0, 1)
    low, high = (0, 255) if dtype == "uint8" else ((end - mean) / std for end in output_range)
    assert (values.clip_lo, values.clip_hi) == (lo, hi)
    for hu, wanted in ((lo, low), (hi, high), ((lo + hi) / 2, (low + high) / 2)):
        assert stored(values, hu) == pytest.approx(wanted, abs=1e-9)
    # Beyond them, what is clipped ends there.
    assert stored(values, -5000) == pytest.approx(low, abs=1e-9)
    assert stored(values, 5000) == pytest.approx(high, abs=1e-9)
    assert values.pad == pytest.approx(low, abs=1e-12)


@pytest.mark.parametrize("window", [None, (-800.0, 300.0)])
def test_a_zscore_has_mean_0_and_deviation_1(window):
    values = value_map(Spec(hu_window=window, normalise="zscore"), FOUND)
    for hu in (-700, -350, 80, 290):
        assert stored(values, hu) == pytest.approx((hu + 350) / 430)
    assert (values.clip_lo, values.clip_hi) == (window or (-math.inf, math.inf))
    # The low end: of the window, or the least of the volume.
    low_hu = -1100 if window is None else -800
    assert values.pad == pytest.approx((low_hu + 350) / 430)


def test_hu_stay_hu():
    values = value_map(Spec(dtype="int16", hu_window=(-1024, 600)))
    assert (values.scale, values.offset, values.pad) == (1, 0, -1024)
    assert (values.clip_lo, values.clip_hi) == (-1024, 600)
    values = value_map(Spec(dtype="int16", hu_window=None), FOUND)
    assert values == ValueMap(-math.inf, math.inf, 1.0, 0.0, -1100.0)


@pytest.mark.parametrize(
    ("fields", "pad"),
    [
        ({"pad_value": 0.25}, 0.25),
        ({"pad_value": -7, "normalise": "zscore"}, -7),
        ({"pad_value": -7, "normalise": "minmax", "output_range": (0, 1)}, -7),
        ({"pad_value": -2000, "dtype": "int16", "hu_window": None}, -2000),
        ({"pad_value": 0, "dtype": "uint8"}, 127.5),
        ({"pad_value": 1, "dtype": "uint8"}, 255),
        ({"pad_value": 3, "output_range": (0, 1), "standardise": (0.45, 0.22)}, 3),
    ],
)
def test_stated_padding_is_on_the_scale_of_the_output(fields, pad):
    assert value_map(Spec(**fields), FOUND).pad == pad


def test_statistics_that_are_needed_have_to_be_there():
    for fields in ({"normalise": "zscore"}, {"dtype": "int16", "hu_window": None}):
        with pytest.raises(ValueError, match="statistics"):
            value_map(Spec(**fields))


@given(
    st.tuples(st.floats(-2000, 2000), st.floats(0.1, 4000)),
    st.sampled_from(["float16", "bfloat16"]),
)
def test_the_first_formats_numbers_are_the_very_ones_that_they_were(window, dtype):
    lo, hi = window[0], window[0] + window[1]
    if hi - lo < 0.1:
        return
    half = (hi - lo) / 2
    scale, offset = 1.0 / half, -((lo + hi) / 2) / half
    values = value_map(Spec(hu_window=(lo, hi), dtype=dtype))
    assert (values.scale, values.offset) == (scale, offset)
    if lo < 0 < hi:
        assert math.copysign(1, values.offset) == math.copysign(1, offset)


def test_zeros_have_the_sign_that_every_engine_gives_them():
    """Engines clip -0.0 to 0.0 or not, so that the offset must not keep its sign."""
    for window in ((0, 100), (-100, 0)):
        output_range = (0, 1) if window[0] == 0 else (-1, 0)
        values = value_map(Spec(hu_window=window, output_range=output_range))
        assert math.copysign(1, values.offset) == 1
    assert math.copysign(1, value_map(Spec(pad_value=-0.0)).pad) == -1
    assert math.copysign(1, value_map(Spec()).offset) == -1  # as ever


VOLUME = np.random.default_rng(3).normal(-300, 500, (9, 7, 5)).astype(np.float32)
WHOLE: list[dict[str, Any]] = [
    {},
    {"output_range": (0, 1), "standardise": (0.45, 0.22)},
    {"output_range": (0, 1), "dtype": "bfloat16", "hu_window": (-150, 250)},
    {"dtype": "uint8"},
    {"dtype": "uint8", "output_range": (0, 255), "normalise": "minmax", "hu_window": None},
    {"dtype": "int16"},
    {"dtype": "int16", "hu_window": None},
    {"normalise": "zscore", "hu_window": None},
    {"normalise": "zscore", "clip": "after"},
    {"normalise": "minmax", "clip": "after"},
    {"normalise": "percentiles", "percentiles": (2, 98), "hu_window": None, "clip": "after"},
    {"hu_window": (0, 0.5)},
]


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("fields", WHOLE, ids=str)
def test_a_whole_volume_by_straightforward_arithmetic(fields, engine):
    """Not resampled, padded by one on every side, in float64 from the words of the contract."""
    shape = tuple(n + 2 for n in VOLUME.shape)
    spec = Spec(shape_hwd=shape, **fields)
    x = VOLUME.astype(np.float64)
    lo, hi = spec.hu_window or (x.min(), x.max())
    if spec.normalise == "percentiles":
        lo, hi = np.percentile(x, spec.percentiles or ())
    x = np.clip(x, lo, hi)
    low, high = spec.output_range
    if spec.normalise == "zscore":
        low_end, wanted = (lo - x.mean()) / x.std(), (x - x.mean()) / x.std()
    elif spec.dtype == "int16":
        low_end, wanted = lo, x
    else:
        if spec.normalise == "minmax":
            lo, hi = x.min(), x.max()
        low_end, wanted = low, low + (x - lo) / (hi - lo) * (high - low)
    if spec.standardise is not None:
        mean, std = spec.standardise
        low_end, wanted = (low_end - mean) / std, (wanted - mean) / std
    if spec.dtype == "uint8":
        low_end, wanted = ((v - low) / (high - low) * 255 for v in (low_end, wanted))

    statistics = statistics_of(VOLUME, Rescale(), spec) if spec.needs_statistics else None
    plan = plan_volume(VOLUME.shape, spec.target_spacing_mm, spec, statistics=statistics)
    out = np.zeros(shape, numpy_dtype(spec.dtype))
    open_engine(engine).run([Job(VOLUME, Rescale(), plan, out)])
    mine = numbers_of(out, spec.dtype).astype(np.float64)
    # Whole numbers to the nearest, but for what float32 leaves at a half; floats to their rounding.
    near = {"int16": (0, 0.5001), "uint8": (0, 0.5001), "bfloat16": (2**-8, 3e-6)}
    relative, absolute = near.get(spec.dtype, (2**-11, 3e-6))
    padded = np.pad(wanted, 1, constant_values=low_end)
    np.testing.assert_allclose(mine, padded, rtol=relative * 1.01, atol=absolute)


def test_specs_do_without_numpy():
    code = "import sys, ctgpu.spec; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
