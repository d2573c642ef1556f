"""Which stored values are above a HU, and the box of the voxels that have them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctgpu.volume.foreground import Box, Values
from ctgpu.volume.raw import Rescale

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*INTEGERS, "float16", "float32", "float64", ">i2", ">u4", ">f4", ">f8")
# Rising, falling, flat, and too flat for float32.
RESCALES = [(1, 0), (1, -1024), (-1, 0), (0.5, -1000), (-2.5, 100), (0, 0), (0, -900), (1e-50, 3)]


def above(voxels: npt.NDArray[Any], rescale: Rescale, hu: float) -> npt.NDArray[np.bool_]:
    """What the contract says: float32 voxels, slope and intercept, and no rounding behind these."""
    slope, intercept = (float(np.float32(x)) for x in (rescale.slope, rescale.intercept))
    return voxels.astype(np.float32).astype(np.float64) * slope + intercept > hu


def box_of(inside: npt.NDArray[np.bool_]) -> Box | None:
    """By the places of all of them."""
    places = np.argwhere(inside)
    if not len(places):
        return None
    start, stop = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
    return Box(tuple(start), tuple(stop))


@pytest.mark.parametrize("hu", [-500.0, -500.25, 0.0, 3.0, 1e6, -1e6])
@pytest.mark.parametrize("pair", RESCALES, ids=str)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", ">u2", "float16"])
def test_every_value_of_a_small_type_is_on_its_side(dtype: str, pair: Any, hu: float) -> None:
    kind = np.dtype(dtype)
    values = np.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)
    values = values[np.isfinite(values)]
    rescale = Rescale(*pair)
    found = Values.above(hu, kind, rescale)
    held = np.zeros(values.shape, bool) if found is None else found.hold(values)
    assert np.array_equal(held, above(values, rescale, hu))


@pytest.mark.parametrize("pair", RESCALES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[4:])
def test_voxels_of_a_wide_type_are_on_their_side(dtype: str, pair: Any) -> None:
    kind = np.dtype(dtype)
    random = np.random.default_rng(3)
    voxels = random.normal(0, 1500, 20_000)
    # Neighbours of the threshold too.
    voxels[:4000] = random.integers(-1000, 2000, 4000)
    voxels[4000:8000] = np.nextafter(voxels[:4000], np.inf)
    voxels = (np.abs(voxels) if kind.kind == "u" else voxels).astype(kind)
    rescale = Rescale(*pair)
    for hu in (-500.0, -499.9999, 0.0, 524.0):
        found = Values.above(hu, kind, rescale)
        held = np.zeros(voxels.shape, bool) if found is None else found.hold(voxels)
        assert np.array_equal(held, above(voxels, rescale, hu))


def test_the_threshold_itself_is_not_above() -> None:
    assert Values.above(-500, np.dtype(np.int16), Rescale()) == Values(-499, 32767)
    assert Values.above(-500, np.dtype(np.int16), Rescale(-1, 0)) == Values(-32768, 499)
    assert Values.above(-500, np.dtype(np.uint16), Rescale(1, -1024)) == Values(525, 65535)
    found = Values.above(-500, np.dtype(np.float32), Rescale())
    assert found is not None
    assert found.least == np.nextafter(np.float32(-500), np.float32(0))
    # 64 bits are rounded to float32 first, as engines do it.
    wide = Values.above(2.0**25, np.dtype(np.int64), Rescale())
    assert wide == Values(2**25 + 3, 2**63 - 1)


@st.composite
def volumes(draw: st.DrawFn) -> npt.NDArray[Any]:
    """Few foreground voxels (9) among others (1), in any memory."""
    most = draw(st.sampled_from([5, 12, 700]))
    shape = draw(
        st.permutations([draw(st.integers(1, most)), *draw(st.tuples(*[st.integers(1, 7)] * 2))])
    )
    voxels = np.ones(shape, draw(st.sampled_from(DTYPES)))
    for _ in range(draw(st.integers(0, 4))):
        voxels[tuple(draw(st.integers(0, n - 1)) for n in shape)] = 9
    voxels = voxels.copy(order=draw(st.sampled_from(["C", "F"])))
    voxels = voxels.transpose(draw(st.permutations(range(3))))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, -1, 2])] * 3))
    return voxels[tuple(slice(None, None, step) for step in steps)]


@given(volumes())
def test_the_box_holds_every_voxel_and_no_more(voxels: npt.NDArray[Any]) -> None:
    wanted = box_of(voxels == 9)
    assert Values(5, 9).box_in(voxels) == wanted
    assert Values(9, 120).box_in(voxels) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ctgpu._native", None)  # a pure package
        assert Values(5, 9).box_in(voxels) == wanted


@given(volumes())
def test_nothing_and_everything(voxels: npt.NDArray[Any]) -> None:
    assert Values(10, 100).box_in(voxels) is None
    assert Values(0, 100).box_in(voxels) == Box((0, 0, 0), voxels.shape)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_single_voxels_at_each_place_of_a_long_line(order: Any, dtype: str) -> None:
    """Blocks of the compiled search, and what is left behind them."""
    for at in (0, 1, 511, 512, 513, 1023, 1024, 1299):
        voxels = np.full((3, 2, 1300), -1000, dtype, order=order)
        voxels[1, 1, at] = 0
        for turned in (voxels, voxels.T, voxels[::-1, :, ::-1]):
            assert Values(-499, 32767).box_in(turned) == box_of(turned == 0)


def test_read_only_and_skewed_memory() -> None:
    held = np.zeros(1 + 2 * 60, np.uint8)
    skewed = held[1:].view(np.int16).reshape(3, 4, 5)
    skewed[1, 2, 3] = 7
    skewed.flags.writeable = False
    assert Values(7, 7).box_in(skewed) == Box((1, 2, 3), (2, 3, 4))
    plain = skewed.copy()
    plain.flags.writeable = False
    assert Values(7, 7).box_in(plain) == Box((1, 2, 3), (2, 3, 4))


def test_a_box_is_widened_as_far_as_there_are_voxels() -> None:
    box = Box((2, 0, 5), (4, 3, 6))
    assert box.widened((3, 1, 2), (9, 3, 7)) == Box((0, 0, 3), (7, 3, 7))
    assert box.moved((1, 2, 3)) == Box((3, 2, 8), (5, 5, 9))
    assert box.ends == ((2, 4), (0, 3), (5, 6))
    affine = np.array([[0, 2, 0, 7], [3, 0, 0, -1], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(box.affine_of(affine) @ [1, 1, 1, 1], affine @ [3, 1, 6, 1])
