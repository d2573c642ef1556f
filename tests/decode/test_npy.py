"""A bare array against ``numpy.load``."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ctgpu.data_sets.fields import ArrayRule
from ctgpu.decode.npy import read_header
from ctgpu.errors import DecodeError

VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3) - 30


def saved(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["i1", "u2", "<i2", ">i2", "<f2", ">f4", "f8", "i8"])
def test_every_dtype_order_and_version(dtype, version, order, load):
    data = saved(np.asarray(VOXELS.clip(0).astype(dtype), order=order), version=version)
    volume = load("a.npy", data)
    oracle = np.load(io.BytesIO(data))
    np.testing.assert_array_equal(volume.voxels, oracle)
    assert volume.voxels.dtype == oracle.dtype
    assert np.shares_memory(volume.voxels, volume.buffer.bytes)
    assert (volume.format, volume.spacing_mm, volume.affine) == ("npy", None, None)


def test_its_axes_are_those_that_the_data_set_says(load):
    stored = saved(np.ascontiguousarray(VOXELS.transpose(2, 0, 1)))
    volume = load("a.npy", stored, arrays=ArrayRule(axes="DHW"))
    np.testing.assert_array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x93NUMPY", "readable .npy header"),
        (saved(VOXELS)[:-1], "and its header declares"),
        (saved(VOXELS) + b"\0", "and its header declares"),
        (saved(VOXELS[0]), "wanted three axes"),
        (saved(VOXELS[None]), "wanted three axes"),
        (saved(VOXELS.astype(complex)), "holds complex128"),
        (saved(VOXELS.astype(object), allow_pickle=True), "never opened"),
        (saved(VOXELS).replace(b"(5, 4, 3)", b"(9999999, 9999999, 9)"), "a.npy"),
    ],
)
def test_what_is_refused_and_why(data, message, load):
    with pytest.raises(DecodeError, match=message):
        load("a.npy", data)


def test_a_volume_that_is_too_large(load):
    with pytest.raises(DecodeError, match="at most 100 are accepted"):
        load("a.npy", saved(VOXELS), limit_bytes=100)


def test_a_header_tells_where_the_numbers_begin():
    data = saved(VOXELS)
    header = read_header("a", data)
    assert (header.shape, header.fortran_order, header.dtype) == ((5, 4, 3), False, np.dtype("i2"))
    assert data[header.size_bytes :] == VOXELS.tobytes()
