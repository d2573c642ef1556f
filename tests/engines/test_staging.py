"""Pinned memory for volumes: none is used again or given back while the device still reads it."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest

from ctgpu.engines.cupy_runtime import upload
from ctgpu.engines.staging import Staging
from support.emulated_cupy import EmulatedCupy
from support.pinning import Pinning

VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


@pytest.fixture
def cupy() -> EmulatedCupy:
    return EmulatedCupy()


@pytest.fixture
def pinning(cupy: EmulatedCupy) -> Pinning:
    return Pinning(cupy)


def read(cupy: EmulatedCupy, memory: Any, stream: Any) -> np.ndarray:
    result = np.zeros(memory.size, np.uint8)
    to_host = cupy.cuda.runtime.memcpyDeviceToHost
    cupy.cuda.runtime.memcpyAsync(result.ctypes.data, memory.ptr, memory.size, to_host, stream.ptr)
    stream.synchronize()
    return result


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_a_copy_has_the_voxels_and_the_order_of_the_original(
    cupy: EmulatedCupy, pinning: Pinning, order: tuple[int, ...]
) -> None:
    staging = Staging(cupy, pinning.allocate)
    for voxels in (
        VOXELS.transpose(order),
        VOXELS.transpose(order)[::-1, :, ::2],
        VOXELS.astype(">f4").transpose(order)[1:, ::-1],
        np.broadcast_to(np.int16(7), (3, 4, 5)),
        np.empty((0, 4, 5), np.int16),
    ):
        copy, buffer = staging.copy_of(voxels)
        assert copy.dtype == voxels.dtype
        assert np.array_equal(copy, voxels)
        assert not np.may_share_memory(copy, voxels)
        assert np.argsort(copy.strides).tolist() == np.argsort(np.abs(voxels.strides)).tolist() or (
            0 in voxels.strides or 0 in voxels.shape
        )
        buffer.release()


def test_memory_that_is_still_read_is_not_used_again(cupy: EmulatedCupy, pinning: Pinning) -> None:
    staging = Staging(cupy, pinning.allocate)
    stream = cupy.cuda.Stream(non_blocking=True)
    there = [cupy.cuda.Memory(VOXELS.nbytes) for _ in range(2)]
    for n, memory in enumerate(there):
        copy, buffer = staging.copy_of(VOXELS + n)
        upload(cupy, memory.ptr, copy.ctypes.data, copy.nbytes, stream.ptr)
        staging.release_after(stream, [buffer])
    assert len(pinning.addresses) == 2
    for n, memory in enumerate(there):
        assert np.array_equal(read(cupy, memory, stream), (VOXELS + n).view(np.uint8).ravel())
    # Now both are free again.
    assert staging.copy_of(VOXELS)[0].ctypes.data in pinning.addresses
    assert len(pinning.addresses) == 2


def test_the_third_batch_waits_for_the_first(cupy: EmulatedCupy, pinning: Pinning) -> None:
    staging = Staging(cupy, pinning.allocate)
    stream = cupy.cuda.Stream(non_blocking=True)
    there = [cupy.cuda.Memory(VOXELS.nbytes) for _ in range(8)]
    for n, memory in enumerate(there):
        copy, buffer = staging.copy_of(VOXELS + n)
        upload(cupy, memory.ptr, copy.ctypes.data, copy.nbytes, stream.ptr)
        staging.release_after(stream, [buffer])
    assert len(pinning.addresses) == 3
    for n, memory in enumerate(there):
        assert np.array_equal(read(cupy, memory, stream), (VOXELS + n).view(np.uint8).ravel())


def test_other_arrays_are_there_until_they_were_read(cupy: EmulatedCupy, pinning: Pinning) -> None:
    staging = Staging(cupy, pinning.allocate)
    stream = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.Memory(VOXELS.nbytes)
    converted = VOXELS.copy()
    upload(cupy, memory.ptr, converted.ctypes.data, converted.nbytes, stream.ptr)
    staging.release_after(stream, [], [converted])
    del converted
    gc.collect()
    np.full(VOXELS.shape, 99, np.int16)  # would lie where it was
    assert np.array_equal(read(cupy, memory, stream), VOXELS.view(np.uint8).ravel())


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_memory_is_given_back_only_after_it_was_read(
    cupy: EmulatedCupy, pinning: Pinning, how: str
) -> None:
    """The emulated device reads it when the copy runs: a crash, or other bytes, were it gone."""
    stream = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.Memory(VOXELS.nbytes)
    staging = Staging(cupy, pinning.allocate)
    copy, buffer = staging.copy_of(VOXELS)
    upload(cupy, memory.ptr, copy.ctypes.data, copy.nbytes, stream.ptr)
    staging.release_after(stream, [buffer])
    del copy, buffer
    if how == "closed":
        staging.close()
        staging.close()
    del staging
    gc.collect()
    assert pinning.addresses == set()
    assert np.array_equal(read(cupy, memory, stream), VOXELS.view(np.uint8).ravel())
