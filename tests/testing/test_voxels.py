"""Random volumes of every dtype and memory layout."""

from __future__ import annotations

import numpy as np
import pytest

from ctgpu.testing.voxels import DTYPES, MEMORY_ORDERS, random_voxels

SHAPE_HWD = (5, 6, 7)


@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_axes_lie_in_memory_as_asked_and_mean_the_same(order: str) -> None:
    voxels = random_voxels(1, SHAPE_HWD, "<i2", order)
    assert voxels.shape == SHAPE_HWD
    # The last of the order is the fastest.
    fastest_first = sorted("HWD", key=lambda axis: voxels.strides["HWD".index(axis)])
    assert "".join(reversed(fastest_first)) == order
    assert voxels.strides["HWD".index(order[-1])] == voxels.itemsize


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_byte_order_holds_about_the_range_of_hu(
    dtype: str, byte_order: str
) -> None:
    kind = np.dtype(dtype if dtype[1] == "1" else byte_order + dtype)
    voxels = random_voxels(1, SHAPE_HWD, kind.str)
    assert voxels.dtype == kind
    assert np.isfinite(voxels.astype(np.float64)).all()
    assert voxels.min() < voxels.max()
    assert voxels.astype(np.float64).min() > -6000
    assert voxels.astype(np.float64).max() < 6000


def test_the_seed_decides() -> None:
    one, same, other = (random_voxels(seed, SHAPE_HWD) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_flipped_axes_run_backwards_and_steps_leave_gaps() -> None:
    plain = random_voxels(1, SHAPE_HWD)
    flipped = random_voxels(1, SHAPE_HWD, flipped=(0, 2))
    assert np.array_equal(flipped, plain[::-1, :, ::-1])
    assert [stride < 0 for stride in flipped.strides] == [True, False, True]
    spread = random_voxels(1, SHAPE_HWD, step=3)
    assert spread.shape == SHAPE_HWD
    assert spread.strides[2] == 3 * spread.itemsize
