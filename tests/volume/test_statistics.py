"""Statistics of a volume against NumPy's own, for all that a volume may be made of."""

from __future__ import annotations

import builtins
import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctgpu.errors import IntensityError
from ctgpu.spec import Spec
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import Statistics, statistics_of

DTYPES = [
    *("int8", "uint8", "int16", "uint16", ">i2", ">u2", "int32", ">u4", "int64", "uint64"),
    *("float16", ">f2", "float32", ">f4", "float64", ">f8"),
]
RESCALES = [Rescale(), Rescale(1.5, -1024.0, "csv"), Rescale(-0.7, 3.25, "csv")]
PERCENTILES = [(0.5, 99.5), (0.0, 100.0), (25.0, 50.0), (90.0, 99.99)]

MEMORY = {
    "C": lambda voxels: np.ascontiguousarray(voxels),
    "F": lambda voxels: np.asfortranarray(voxels),
    "turned": lambda voxels: voxels[::-1, :, ::-1].transpose(2, 0, 1),
    "with gaps": lambda voxels: voxels[1:-1:2, :, 1:],
}


def volume(dtype: str, seed: int = 0) -> npt.NDArray[Any]:
    kind, random = np.dtype(dtype), np.random.default_rng(seed)
    low, high = -3000, 3000
    if kind.kind != "f":
        limits = np.iinfo(kind)
        low, high = max(limits.min, low), min(limits.max, high)
    voxels = random.normal((low + high) / 2, (high - low) / 9, (17, 13, 11)).clip(low, high)
    return (voxels if kind.kind == "f" else voxels.round()).astype(kind)


def hu(voxels: npt.NDArray[Any], rescale: Rescale, window: Any) -> npt.NDArray[np.float64]:
    """As the module states it, in one line each."""
    x = voxels.astype(np.float32).astype(np.float64)
    x = np.float64(np.float32(rescale.slope)) * x + np.float64(np.float32(rescale.intercept))
    return x if window is None else np.clip(x, *window)


def close(mine: float, wanted: Any) -> bool:
    """Equal but for one rounding to float32."""
    return abs(mine - wanted) <= np.spacing(np.float32(abs(wanted))) * 0.5001 + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_numpys(dtype):
    for rescale in RESCALES:
        for arrange in MEMORY.values():
            voxels = arrange(volume(dtype))
            some = np.percentile(hu(voxels, rescale, None), (20, 70)) + 0.3
            for window in (None, tuple(some)):
                wanted = hu(voxels, rescale, window)
                found = statistics_of(voxels, rescale, Spec(hu_window=window, normalise="zscore"))
                assert found.minimum == np.float32(wanted.min())
                assert found.maximum == np.float32(wanted.max())
                assert close(found.mean, wanted.mean())
                assert close(found.std, wanted.std())


@pytest.mark.parametrize("percentiles", PERCENTILES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_percentiles_are_numpys(dtype, percentiles):
    spec = Spec(hu_window=None, normalise="percentiles", percentiles=percentiles)
    for rescale in RESCALES:
        for arrange in MEMORY.values():
            voxels = arrange(volume(dtype))
            wanted = np.percentile(hu(voxels, rescale, None), percentiles)
            found = statistics_of(voxels, rescale, spec)
            assert close(found.percentile_lo, wanted[0])
            assert close(found.percentile_hi, wanted[1])


@given(
    st.lists(st.integers(-3000, 3000), min_size=2, max_size=40).filter(lambda v: len(set(v)) > 1),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted).filter(lambda p: p[0] < p[1]),
    st.sampled_from(RESCALES),
)
def test_few_voxels_at_any_percentile(values, percentiles, rescale):
    spec = Spec(hu_window=None, normalise="percentiles", percentiles=percentiles)
    for dtype in ("int16", "float32"):
        voxels = np.array(values, dtype).reshape(-1, 1, 1)
        lo, hi = np.percentile(hu(voxels, rescale, None), percentiles)
        if hi - lo < 0.11:
            continue
        found = statistics_of(voxels, rescale, spec)
        assert (found.percentile_lo, found.percentile_hi) == pytest.approx(
            (lo, hi), rel=1e-7, abs=1e-6
        )


def test_counting_needs_no_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        Spec(normalise="zscore"),
        Spec(hu_window=None, normalise="percentiles", percentiles=(1, 99)),
    ]
    found = [statistics_of(volume(d), Rescale(), s) for d in ("int16", ">i2", "u1") for s in specs]
    real = builtins.__import__

    def without_native(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ctgpu._native":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_native)
    assert found == [
        statistics_of(volume(d), Rescale(), s) for d in ("int16", ">i2", "u1") for s in specs
    ]


def test_the_compiled_counts_are_numpys():
    native = pytest.importorskip("ctgpu._native")
    for dtype, n in (("u1", 0), ("u1", 7), ("u2", 5), ("u1", 4099), ("u2", 4099), ("u2", 8)):
        # At an odd address, which no type of the compiler may read directly.
        memory = np.random.default_rng(n).integers(0, 256, n * np.dtype(dtype).itemsize + 1)
        data = memory.astype(np.uint8)[1:]
        wanted = np.bincount(data.view(dtype), minlength=1 << 8 * np.dtype(dtype).itemsize)
        counts = np.ones_like(wanted)
        native.count_words(data, counts)
        assert (counts == wanted + 1).all()
    for size in (255, 257, 0, 65535):
        with pytest.raises(ValueError, match="words"):
            native.count_words(np.zeros(2, np.uint8), np.zeros(size, np.int64))
    with pytest.raises(ValueError, match="words"):
        native.count_words(np.zeros(3, np.uint8), np.zeros(65536, np.int64))


@pytest.mark.parametrize("dtype", ["int16", ">i2", "float32"])
@pytest.mark.parametrize("normalise", ["minmax", "zscore", "percentiles"])
def test_they_take_little_memory(dtype, normalise):
    voxels = np.zeros((128, 128, 256), dtype)
    voxels[0, 0, :2] = (-1000, 3000)
    fields: dict[str, Any] = {"hu_window": None, "normalise": normalise}
    if normalise == "percentiles":
        fields["percentiles"] = (0, 100)
    spec = Spec(**fields)
    statistics_of(voxels[:2], Rescale(), spec)
    tracemalloc.start()
    try:
        statistics_of(voxels, Rescale(), spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # float32 is partitioned in a copy; all else is read in parts of a million voxels.
    copied = voxels.size * 4 if normalise == "percentiles" and dtype == "float32" else 0
    assert peak < copied + 32 * 2**20


def test_what_is_not_asked_for_is_not_there():
    voxels = volume("int16")
    assert statistics_of(voxels, Rescale(), Spec(hu_window=None, dtype="int16")).to_dict() == {
        "minimum": voxels.min(),
        "maximum": voxels.max(),
    }
    minmax = statistics_of(voxels, Rescale(), Spec(normalise="minmax", hu_window=(-50, 50)))
    assert minmax.to_dict() == {"minimum": -50, "maximum": 50}
    assert minmax.range_of("minmax") == (-50, 50)
    zscore = statistics_of(voxels, Rescale(), Spec(normalise="zscore"))
    assert set(zscore.to_dict()) == {"minimum", "maximum", "mean", "std"}
    assert Statistics().to_dict() == {}


def test_a_zero_has_no_sign():
    found = statistics_of(
        np.array([[[-0.0, 100.0]]]), Rescale(), Spec(hu_window=None, normalise="minmax")
    )
    assert math.copysign(1, found.minimum) == 1


CONTRACTS: list[dict[str, Any]] = [
    {"normalise": "minmax"},
    {"normalise": "zscore"},
    {"normalise": "minmax", "hu_window": None},
    {"normalise": "zscore", "hu_window": None},
    {"normalise": "percentiles", "percentiles": (1, 99), "hu_window": None},
]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("fields", CONTRACTS, ids=str)
def test_a_volume_of_one_value_is_refused(fields, dtype):
    with pytest.raises(IntensityError, match=f"normalise is '{fields['normalise']}'.* 0 HU"):
        statistics_of(np.full((4, 5, 6), -1000, dtype), Rescale(), Spec(**fields))


@pytest.mark.parametrize("normalise", ["minmax", "zscore"])
def test_a_volume_outside_the_window_is_refused(normalise):
    with pytest.raises(IntensityError, match=normalise):
        statistics_of(volume("int16"), Rescale(), Spec(hu_window=(4000, 5000), normalise=normalise))


def test_what_float32_cannot_tell_apart_is_refused():
    spec = Spec(hu_window=None, normalise="minmax")
    with pytest.raises(IntensityError, match=r"range is 0\.01\d* HU; wanted 0\.1"):
        statistics_of(np.array([[[1000.0, 1000.01]]]), Rescale(), spec)


@pytest.mark.parametrize("far", [3e38, -1e30, 2e6])
def test_hu_that_no_scale_holds_are_refused_unless_a_window_clips_them(far):
    voxels = np.array([[[0.0, 1.0, 500.0, far]]], np.float32)
    for fields in CONTRACTS[2:]:
        with pytest.raises(IntensityError, match="reach from"):
            statistics_of(voxels, Rescale(), Spec(**fields))
    for fields in CONTRACTS[:2]:
        assert not any(
            math.isnan(value)
            for value in statistics_of(voxels, Rescale(), Spec(**fields)).to_dict().values()
        )
