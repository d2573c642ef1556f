"""The emulated GPU behaves as a CUDA runtime does, and shows what a test on it does wrong."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from support.emulated_cupy import DeviceArray, EmulatedCupy, OutOfMemoryError
from support.gpu import CudaError, Gpus, UnwrittenError
from support.ptx import KernelFault

DOUBLE = """
extern "C" __global__ void twice(int *out, const int *in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = 2 * in[i];
}
"""


@pytest.fixture
def cupy() -> EmulatedCupy:
    return EmulatedCupy(Gpus(count=2, total_bytes=1 << 20))


def pinned(cupy: EmulatedCupy, array: np.ndarray) -> np.ndarray:
    cupy.cuda.runtime.hostRegister(array.ctypes.data, array.nbytes, 1)
    return array


def upload(cupy: EmulatedCupy, to: int, array: np.ndarray, stream: Any) -> None:
    runtime = cupy.cuda.runtime
    kind = runtime.memcpyHostToDevice
    runtime.memcpyAsync(to, array.ctypes.data, array.nbytes, kind, stream.ptr)


def download(cupy: EmulatedCupy, array: np.ndarray, source: int, stream: Any) -> None:
    runtime = cupy.cuda.runtime
    kind = runtime.memcpyDeviceToHost
    runtime.memcpyAsync(array.ctypes.data, source, array.nbytes, kind, stream.ptr)


def test_a_kernel_runs_on_what_was_uploaded(cupy: EmulatedCupy) -> None:
    given = cupy.asarray(np.arange(100, dtype=np.int32))
    result = cupy.empty(100, np.int32)
    kernel = cupy.RawModule(code=DOUBLE, options=("--std=c++17",), backend="nvrtc").get_function(
        "twice"
    )
    arguments = (np.uint64(result.data.ptr), np.uint64(given.data.ptr), np.int32(100))
    kernel((4,), (32,), arguments)
    np.testing.assert_array_equal(cupy.asnumpy(result), 2 * np.arange(100))
    kernel((4,), (32,), (*arguments[:2], np.int32(101)))
    with pytest.raises(KernelFault, match="out of bounds"):
        cupy.cuda.get_current_stream().synchronize()
    kernel((4,), (32,), (*arguments[:2], np.int64(100)))
    with pytest.raises(ValueError, match="takes"):
        cupy.cuda.get_current_stream().synchronize()


def test_what_is_queued_is_not_done_before_somebody_waits(cupy: EmulatedCupy) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.Memory(64)
    given, result = pinned(cupy, np.arange(8)), pinned(cupy, np.zeros(8, np.int64))
    upload(cupy, memory.ptr, given, stream)
    download(cupy, result, memory.ptr, stream)
    given[0] = 99  # too early: the device reads it later
    assert not result.any()
    stream.synchronize()
    np.testing.assert_array_equal(result, [99, 1, 2, 3, 4, 5, 6, 7])


def test_pageable_memory_is_read_at_once_and_written_before_the_call_returns(
    cupy: EmulatedCupy,
) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.Memory(64)
    given, result = np.arange(8), np.zeros(8, np.int64)
    upload(cupy, memory.ptr, given, stream)
    given[0] = 99
    download(cupy, result, memory.ptr, stream)
    np.testing.assert_array_equal(result, np.arange(8))


def test_an_event_waits_for_what_was_queued_before_it(cupy: EmulatedCupy) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.Memory(64)
    first, second = pinned(cupy, np.zeros(8, np.int64)), pinned(cupy, np.zeros(8, np.int64))
    upload(cupy, memory.ptr, np.arange(8), stream)
    download(cupy, first, memory.ptr, stream)
    event = cupy.cuda.Event(block=True, disable_timing=True)
    event.record(stream)
    download(cupy, second, memory.ptr, stream)
    event.synchronize()
    assert first.any()
    assert not second.any()
    stream.synchronize()
    assert second.any()


def test_device_memory_that_nobody_wrote_does_not_reach_the_host(cupy: EmulatedCupy) -> None:
    memory = cupy.cuda.Memory(64)
    stream = cupy.cuda.get_current_stream()
    upload(cupy, memory.ptr, np.arange(7), stream)
    with pytest.raises(UnwrittenError, match=r"8 bytes of row 0 that nobody wrote.* at 56"):
        download(cupy, np.zeros(8, np.int64), memory.ptr, stream)
    with pytest.raises(UnwrittenError):
        cupy.asnumpy(cupy.empty(3, np.int8))


def test_rows_are_copied_with_their_pitch(cupy: EmulatedCupy) -> None:
    runtime, stream = cupy.cuda.runtime, cupy.cuda.get_current_stream()
    memory = cupy.cuda.Memory(24)
    upload(cupy, memory.ptr, np.arange(24, dtype=np.uint8), stream)
    result = np.zeros((4, 10), np.uint8)
    to_host = runtime.memcpyDeviceToHost
    runtime.memcpy2DAsync(result.ctypes.data, 10, memory.ptr, 6, 5, 4, to_host, stream.ptr)
    np.testing.assert_array_equal(result[:, :5], np.arange(24).reshape(4, 6)[:, :5])
    assert not result[:, 5:].any()
    with pytest.raises(CudaError, match="wider than their pitch"):
        runtime.memcpy2DAsync(result.ctypes.data, 10, memory.ptr, 4, 5, 4, to_host, stream.ptr)


def test_a_copy_beside_any_memory_of_the_device_is_refused(cupy: EmulatedCupy) -> None:
    stream = cupy.cuda.get_current_stream()
    memory = cupy.cuda.Memory(64)
    for address in (memory.ptr + 8, memory.ptr - 8, np.zeros(9).ctypes.data):
        with pytest.raises(CudaError, match="no memory of cuda:0") as caught:
            upload(cupy, address, np.arange(8), stream)
        assert caught.value.status == 1
    address = memory.ptr
    upload(cupy, address, pinned(cupy, np.arange(8)), stream)
    del memory  # cudaFree waits for what is queued
    with pytest.raises(CudaError, match="no memory of cuda:0"):
        upload(cupy, address, np.arange(8), stream)


def test_memory_of_one_device_is_not_of_the_other(cupy: EmulatedCupy) -> None:
    with cupy.cuda.Device(1):
        there = cupy.cuda.Memory(64)
    with pytest.raises(CudaError, match="no memory of cuda:0"):
        upload(cupy, there.ptr, np.arange(8), cupy.cuda.get_current_stream())
    with pytest.raises(CudaError, match="there is no device 2"), cupy.cuda.Device(2):
        pass


def test_a_device_has_only_so_much_memory(cupy: EmulatedCupy) -> None:
    free, total = cupy.cuda.runtime.memGetInfo()
    assert free == total == 1 << 20
    memory = cupy.cuda.Memory(free - 1000)
    assert cupy.cuda.runtime.memGetInfo()[0] == 1000
    with pytest.raises(CudaError) as caught:
        cupy.cuda.Memory(1001)
    assert caught.value.status == 2
    with pytest.raises(OutOfMemoryError):
        cupy.empty(1001, np.uint8)
    del memory
    assert cupy.cuda.Memory(free).size == free


@pytest.mark.slow
def test_memory_of_the_pool_goes_back_in_the_order_of_the_stream(cupy: EmulatedCupy) -> None:
    first = cupy.asarray(np.arange(50_000))
    copy = cupy.empty(50_000, np.int64)
    copy[:] = first
    del first  # what is queued still reads it
    gc.collect()
    np.testing.assert_array_equal(cupy.asnumpy(copy), np.arange(50_000))
    assert cupy.cuda.runtime.memGetInfo()[0] == (1 << 20) - 400_000
    del copy
    gc.collect()
    cupy.empty(1_000_000, np.uint8)  # fits once the pool has waited


def test_arrays_of_the_device_keep_their_strides_and_do_not_become_numpys(
    cupy: EmulatedCupy,
) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    array = cupy.asarray(np.asfortranarray(values))
    assert isinstance(array, DeviceArray)
    assert array.strides == np.asfortranarray(values).strides
    np.testing.assert_array_equal(cupy.asnumpy(array[::-1, :, 1::2]), values[::-1, :, 1::2])
    np.testing.assert_array_equal(cupy.asnumpy(array.astype(np.float32)), values)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(array)
    with pytest.raises(AttributeError):
        array.mean()  # type: ignore[attr-defined]


def test_host_memory_is_pinned_once(cupy: EmulatedCupy) -> None:
    memory = pinned(cupy, np.zeros(100, np.uint8))
    runtime, address = cupy.cuda.runtime, memory.ctypes.data
    assert runtime.pointerGetAttributes(address).type == runtime.memoryTypeHost
    with pytest.raises(CudaError, match="pinned already"):
        runtime.hostRegister(address + 50, 10, 1)
    runtime.hostUnregister(address)
    assert runtime.pointerGetAttributes(address).type == runtime.memoryTypeUnregistered
    with pytest.raises(CudaError, match="not pinned"):
        runtime.hostUnregister(address)


def test_a_source_that_does_not_compile_says_so(cupy: EmulatedCupy) -> None:
    compile_exception = cupy.cuda.compiler.CompileException
    with pytest.raises(compile_exception, match="error"):
        cupy.RawModule(code="no C++", options=(), backend="nvrtc")
