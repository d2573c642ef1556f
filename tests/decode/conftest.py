"""Files made of arrays, and a loader that gives every byte back."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import nibabel
import numpy as np
import pytest

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.decode import decode
from ctgpu.volume.raw import RawVolume

AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.8, 0, -80], [0, 0, 1.5, 30], [0, 0, 0, 1]])


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    """A pool that must have all of its memory back at the end of the test."""
    pool = BufferPool()
    yield pool
    assert pool.lent_bytes == 0


@pytest.fixture
def fill(pool: BufferPool) -> Callable[[bytes], Buffer]:
    """Put bytes into a buffer of the pool."""

    def fill(data: bytes) -> Buffer:
        buffer = pool.acquire(len(data))
        buffer.bytes[:] = np.frombuffer(data, np.uint8)
        return buffer

    return fill


@pytest.fixture
def load(
    pool: BufferPool, fill: Callable[[bytes], Buffer]
) -> Iterator[Callable[[str, bytes], RawVolume]]:
    """Decode bytes; the volume is released after the test."""
    volumes: list[RawVolume] = []

    def load(file_name: str, data: bytes, **options: Any) -> RawVolume:
        volumes.append(decode(file_name, fill(data), pool, **options))
        return volumes[-1]

    yield load
    for volume in volumes:
        volume.release()


@pytest.fixture
def make_nifti() -> Callable[..., bytes]:
    """Write a NIfTI single file by hand: any dtype, byte order, version and header field."""

    def make_nifti(
        voxels: np.ndarray,
        *,
        order: str = "<",
        version: int = 1,
        compress: bool = False,
        **fields: Any,
    ) -> bytes:
        header_class = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
        header = header_class(endianness=order)
        header.set_data_dtype(voxels.dtype.newbyteorder("="))
        header.set_data_shape(voxels.shape)
        header.set_zooms((0.7, 0.8, 1.5, 1, 1)[: voxels.ndim])
        header.set_sform(AFFINE, code=1)
        header["vox_offset"] = header.single_vox_offset
        header["magic"] = header.single_magic
        for name, value in fields.items():
            header[name] = value
        padding = bytes(int(header["vox_offset"]) - header.sizeof_hdr)
        voxel_bytes = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes("F")
        data = header.binaryblock + padding + voxel_bytes
        return gzip.compress(data, 1) if compress else data

    return make_nifti


@pytest.fixture
def make_npz() -> Callable[..., bytes]:
    """Write an ``.npz`` of named arrays."""

    def make_npz(compress: bool = True, zip64: bool = False, **arrays: np.ndarray) -> bytes:
        file = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=zip64) as member:
                    np.lib.format.write_array(member, array, allow_pickle=True)
        return file.getvalue()

    return make_npz
