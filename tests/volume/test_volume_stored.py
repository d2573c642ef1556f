"""The types that volumes are stored as: their arrays, their numbers, their tensors."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ctgpu.spec import Dtype, Spec
from ctgpu.volume.stored import numbers_of, numpy_dtype, tensor_of

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


def test_what_bfloat16_holds_is_the_upper_half_of_a_float32() -> None:
    numbers = np.array([0, -0.0, 1, -2.5, 3.0e38, np.inf], np.float32)
    codes = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    assert numbers_of(codes, "bfloat16")[:4].tolist() == [0, -0.0, 1, -2.5]
    assert numbers_of(codes.reshape(2, 3), "bfloat16").shape == (2, 3)
    assert np.isinf(numbers_of(codes, "bfloat16")[5])
