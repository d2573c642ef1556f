"""The types that volumes are stored as: their arrays, their numbers, their tensors."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ctgpu.spec import Dtype, Spec
from ctgpu.volume.stored import Stored, numbers_of, numpy_dtype, on_grid, stored_as, tensor_of

DTYPES = get_args(Dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_each_type_has_the_bytes_of_a_volume(dtype: Dtype) -> None:
    held = numpy_dtype(dtype)
    assert held.newbyteorder("<") == held
    spec = Spec(shape_hwd=(3, 4, 5), dtype=dtype)
    assert np.zeros(spec.stored_shape, held).nbytes == spec.size_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_is_the_number_that_torch_takes_it_for(dtype: Dtype) -> None:
    torch = pytest.importorskip("torch")
    held = numpy_dtype(dtype)
    codes = np.arange(1 << 8 * held.itemsize, dtype=f"<u{held.itemsize}").view(held)
    numbers, tensor = numbers_of(codes, dtype), tensor_of(codes, dtype)
    assert numbers.dtype == np.float32
    assert tensor.dtype == getattr(torch, dtype)
    theirs = tensor.float().numpy()
    assert np.array_equal(numbers, theirs, equal_nan=True)
    known = ~np.isnan(numbers)
    assert np.array_equal(np.signbit(numbers[known]), np.signbit(theirs[known]))
    assert tensor.data_ptr() == codes.ctypes.data  # no copy


def test_what_is_stored_is_a_type_or_float16_of_a_precision() -> None:
    specs = [Spec(dtype=dtype) for dtype in DTYPES]
    specs += [Spec(precision="2^-10"), Spec(precision="2^-11")]
    assert tuple(map(stored_as, specs)) == get_args(Stored)


@pytest.mark.parametrize("step", [2.0**-10, 2.0**-11])
def test_multiples_are_the_nearest_and_of_two_the_even(step: float) -> None:
    units = np.float32([-1.5, -0.5, -0.49, -0.0, 0.5, 1.5, 2.5, 2.51, 1e6 + 0.5, 2.0**25 + 4])
    found = on_grid(units * np.float32(step), step)
    assert found.dtype == np.float32
    assert (found / step).tolist() == [-2, 0, 0, 0, 0, 2, 2, 3, 1e6, 2.0**25 + 4]
    assert np.signbit(found).tolist() == [True] + [False] * 9
    assert np.array_equal(on_grid(found, step), found)
    assert on_grid(np.float32([3e38, -3e38]), step).tolist() == [np.inf, -np.inf]


def test_what_bfloat16_holds_is_the_upper_half_of_a_float32() -> None:
    numbers = np.array([0, -0.0, 1, -2.5, 3.0e38, np.inf], np.float32)
    codes = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    assert numbers_of(codes, "bfloat16")[:4].tolist() == [0, -0.0, 1, -2.5]
    assert numbers_of(codes.reshape(2, 3), "bfloat16").shape == (2, 3)
    assert np.isinf(numbers_of(codes, "bfloat16")[5])
