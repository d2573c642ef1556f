"""What callers pass as arrays: looked at in place where that is possible, or refused in words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from ctgpu.errors import UsageError
from ctgpu.spec import Dtype
from ctgpu.volume.arrays import on_host, output_of, spacing_of, voxels_of

SHAPE = (3, 4, 5)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u4", "i8", "f2", ">f4", "f8"])
def test_arrays_of_every_type_are_looked_at_in_place(dtype: str) -> None:
    array = np.zeros(SHAPE, dtype)[::-1, :, ::2]
    assert voxels_of(array) is array


def test_tensors_are_looked_at_in_place_and_lists_are_copied() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(60, dtype=torch.int16).reshape(SHAPE)
    found = voxels_of(tensor.permute(2, 0, 1))
    assert found.ctypes.data == tensor.data_ptr()
    assert found.shape == (5, 3, 4)
    assert np.array_equal(voxels_of(tensor.tolist()), tensor.numpy())
    # float32 holds every bfloat16.
    rounded = tensor.to(torch.bfloat16)
    assert voxels_of(rounded).dtype == np.float32
    assert np.array_equal(voxels_of(rounded), tensor.numpy())
    assert np.array_equal(voxels_of(tensor.float().requires_grad_()), tensor.numpy())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(SHAPE, bool), "the array has dtype bool; wanted an integer or floating dtype"),
        (np.zeros(SHAPE, "c8"), "the array has dtype complex64"),
        (np.zeros(SHAPE, "U1"), "the array has dtype <U1"),
        ("scan.nii", "the str has dtype .*: pass the path of a file, or an array of its voxels"),
        ([[1, 2], [3]], "the volume is a list that NumPy cannot look at .*wanted an array"),
    ],
    ids=["bool", "complex", "text", "path", "ragged"],
)
def test_what_holds_no_voxels_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        voxels_of(value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value",
    [(1, 2, 3), [1.0, 2.0, 3.0], np.array([1, 2, 3], ">f4"), [Decimal(1), Decimal(2), Decimal(3)]],
    ids=["ints", "floats", "array", "decimals"],
)
def test_three_numbers_are_a_spacing(value: Any) -> None:
    found = spacing_of(value)
    assert found == (1.0, 2.0, 3.0)
    assert [type(number) for number in found] == [float] * 3


@pytest.mark.parametrize(
    "value", [(1, 2), "123", b"123", {1, 2, 3}, {1: 1, 2: 2, 3: 3}, np.ones((3, 1)), "abc", None, 3]
)
def test_anything_else_is_no_spacing(value: Any) -> None:
    with pytest.raises(UsageError, match=r"spacing_mm is .*; wanted three numbers, H, W and D in"):
        spacing_of(value)


@pytest.mark.parametrize(
    ("dtype", "held"), [("float16", "<f2"), ("bfloat16", "<u2"), ("int16", "<i2"), ("uint8", "u1")]
)
def test_an_output_is_written_where_it_lies(dtype: Dtype, held: str) -> None:
    torch = pytest.importorskip("torch")
    array = np.empty(SHAPE, held)
    assert output_of(array, SHAPE, dtype) is array
    tensor = torch.empty(SHAPE, dtype=getattr(torch, dtype))
    found = output_of(tensor, SHAPE, dtype)
    assert found.dtype == np.dtype(held)
    assert found.ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (
            [1, 2],
            "float16",
            "out is a list; wanted a NumPy array, or a torch tensor on the CPU, of",
        ),
        (
            np.empty((3, 4), "f2"),
            "float16",
            r"out is float16 \(3, 4\); wanted .* shape \(3, 4, 5\)",
        ),
        (np.empty(SHAPE, ">f2"), "float16", "out is >f2"),
        (np.empty(SHAPE, "f2"), "bfloat16", r"wanted .*bfloat16 \(in NumPy uint16\)"),
        (
            np.empty(SHAPE, "f2", order="F"),
            "float16",
            r"out is not C-contiguous; wanted .*numpy\.empty",
        ),
        (np.zeros((1, *SHAPE[1:]), "f2").repeat(3, 0)[::-1], "float16", "out is not C-contiguous"),
    ],
)
def test_what_no_engine_can_write_to_is_refused(value: Any, dtype: Dtype, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        output_of(value, SHAPE, dtype)


def test_every_fault_of_an_output_is_named() -> None:
    memory = np.zeros(2 * 60 + 1, np.uint8)
    array = memory[1:].view(np.float16).reshape(SHAPE)
    array.flags.writeable = False
    with pytest.raises(UsageError, match="out is not aligned and read-only; wanted"):
        output_of(array, SHAPE, "float16")


def test_a_message_calls_the_value_what_its_caller_does() -> None:
    with pytest.raises(UsageError, match="the weights is a list that NumPy cannot look at"):
        on_host([[1], [1, 2]], "the weights")
    array = np.zeros(3)
    assert on_host(array, "it") is array
