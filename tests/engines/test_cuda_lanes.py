"""The CUDA engine's host side: batches, copies, memory, failures.

No GPU is pretended to give results.  The stand-in for CuPy has host memory in the place of the
device's and runs the kernel itself, compiled for the host, so that every address, size and pitch
that the engine computes is used as a GPU would use it.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from cuda_host import emulation, expected, job, launch, spec

from ctgpu.buffers import BufferPool
from ctgpu.engines import Job, _batch, _cupy
from ctgpu.engines._batch import _VOXEL_TYPES, VOLUME, KernelKey
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.geometry import plan_volume
from ctgpu.testing.voxels import MEMORY_ORDERS, random_voxels


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class DeviceArray(np.ndarray):
    """What stands for ``cupy.ndarray``."""

    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))  # type: ignore[assignment]
    device = property(lambda self: types.SimpleNamespace(id=0))  # type: ignore[assignment]


class HostCuda:
    """A device's memory and runtime, over host memory.

    Attributes
    ----------
    free_bytes : int
        What an allocation may still take.
    lost : bool
        Whether every call fails, as after a device fell off the bus.
    """

    def __init__(self) -> None:
        self.free_bytes = 1 << 40
        self.lost = False
        self.launches: list[KernelKey] = []
        self.largest = 0

    def copy(self, to: int, address: int, size: int, kind: int, stream: int) -> None:
        if self.lost:
            raise CUDARuntimeError(719)
        ctypes.memmove(to, address, size)

    def copy_2d(
        self, to: int, to_pitch: int, at: int, pitch: int, width: int, rows: int, *_: int
    ) -> None:
        assert width <= min(to_pitch, pitch)
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, at + row * pitch, width)

    def memory(self, size: int) -> Any:
        if size > self.free_bytes:
            raise CUDARuntimeError(2)
        self.largest = max(self.largest, size)
        held = np.full(size + 256, 0xAA, np.uint8)
        return types.SimpleNamespace(size=size, held=held, ptr=-(-held.ctypes.data // 256) * 256)

    def module(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert "ctgpu_preprocess" in code
        assert backend == "nvrtc"
        defines = dict(re.findall(r"-DCTGPU_(\w+)=(.+)", "\n".join(options)))
        voxel = next(kind for kind, name in _VOXEL_TYPES.items() if name == defines["VOXEL"])
        flags = (defines["RESCALES"] == "1", defines["CLIPS_BEFORE"] == "1")
        axes = (int(defines["FAST"]), int(defines["OUT"]))
        key = KernelKey(voxel, defines["SWAP"] == "1", *axes, *flags)
        return types.SimpleNamespace(get_function=lambda name: self.kernel(key))

    def kernel(self, key: KernelKey) -> Callable[..., None]:
        def run(grid: tuple[int], block: tuple[int], args: tuple[np.uint64, np.int32]) -> None:
            assert block == (320,)
            address, count = (int(argument) for argument in args)
            described = (ctypes.c_uint8 * (count * VOLUME.itemsize)).from_address(address)
            assert (np.frombuffer(described, VOLUME)["first_tile"] < grid[0]).all()
            launch(emulation(), key, address, count)
            self.launches.append(key)

        return run

    def cupy(self) -> Any:
        stream = type("Stream", (nullcontext,), {"ptr": 0, "synchronize": lambda _: None})
        runtime = types.SimpleNamespace(
            runtimeGetVersion=lambda: 13000,
            getDeviceCount=lambda: 2,
            memGetInfo=lambda: (self.free_bytes, 1 << 40),
            memcpyAsync=self.copy,
            memcpy2DAsync=self.copy_2d,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            hostAllocPortable=1,
            CUDARuntimeError=CUDARuntimeError,
        )
        other_error = type("OtherError", (Exception,), {})
        return types.SimpleNamespace(
            __version__="14.0.0",
            RawModule=self.module,
            ndarray=DeviceArray,
            empty=lambda shape, dtype: np.empty(shape, dtype).view(DeviceArray),
            cuda=types.SimpleNamespace(
                runtime=runtime,
                nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0), NVRTCError=other_error),
                driver=types.SimpleNamespace(CUDADriverError=other_error),
                compiler=types.SimpleNamespace(CompileException=other_error),
                memory=types.SimpleNamespace(OutOfMemoryError=other_error),
                Device=lambda ordinal: nullcontext(),
                Stream=lambda non_blocking: stream(),
                ExternalStream=lambda pointer: stream(),
                get_current_stream=stream,
                Memory=self.memory,
                PinnedMemory=lambda size, flags: np.zeros(size, np.uint8),
                PinnedMemoryPointer=lambda memory, offset: memory[offset:],
            ),
        )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    emulation()  # skips where there is no compiler
    host = HostCuda()
    monkeypatch.setattr(_cupy, "driver_cuda_version", lambda: 13000)
    monkeypatch.setitem(sys.modules, "cupy", host.cupy())
    return host


def some_jobs(count: int, layout: str = "HWD") -> list[Job]:
    orders = MEMORY_ORDERS * count
    return [
        job(random_voxels(n, (37 + n, 29, 41 - n), order=orders[n]), spec((48, 40, 56), layout))
        for n in range(count)
    ]


def check(jobs: list[Job]) -> None:
    for made in jobs:
        np.testing.assert_array_equal(made.out.view(np.uint16), expected(made).view(np.uint16))


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_batch_is_one_launch_for_each_kind(host: HostCuda, layout: str) -> None:
    engine = CudaEngine((1,))
    jobs = some_jobs(4, layout)
    jobs += [job(made.voxels.astype(">f4"), made.plan.spec) for made in jobs]
    engine.run(jobs)
    check(jobs)
    assert len(host.launches) == len(set(host.launches)) == 2 * 3  # dtypes × contiguous axes
    assert engine.name == "cuda:1"


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_slabs_land_where_they_belong(host: HostCuda, layout: str) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 * 120_000)
    jobs = some_jobs(3, layout)
    engine.run(jobs)
    check(jobs)
    assert host.largest <= 120_000


def test_out_of_memory_shrinks_the_batch_for_good(
    host: HostCuda, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 << 30)
    host.free_bytes = 200_000  # somebody else took the rest
    jobs = some_jobs(5)
    with caplog.at_level(logging.WARNING, "ctgpu"):
        for _ in range(2 * engine.concurrency):
            engine.run(jobs)
            check(jobs)
            for made in jobs:
                made.out.fill(np.nan)
    assert 1 <= caplog.text.count("going on with batches of at most") <= 4 * engine.concurrency
    host.free_bytes = 0
    starved = CudaEngine((0,), memory_limit_bytes=3 << 30)
    with pytest.raises(DeviceError, match=r"one slice of a volume .* --device cpu"):
        starved.run(jobs)


def test_lanes_work_side_by_side_on_every_device(host: HostCuda) -> None:
    engine = CudaEngine()
    assert engine.name == "cuda:0,1"
    assert engine.concurrency == 6
    jobs = some_jobs(18)
    with ThreadPoolExecutor(engine.concurrency) as threads:
        list(threads.map(lambda made: engine.run([made]), jobs))
    check(jobs)


def test_a_lost_device_fails_every_call_from_then_on(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    host.lost = True
    for _ in range(engine.concurrency + 1):
        with pytest.raises(DeviceError, match=r"cuda:0 failed \(cudaError 719\).*run the same"):
            engine.run(some_jobs(1))


def test_a_closed_engine_says_so(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    engine.close()
    engine.close()
    with pytest.raises(DeviceError, match="was closed"):
        engine.run(some_jobs(1))


def test_pinned_buffers_are_whole_pages_for_the_pool(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    pool = BufferPool(allocate=engine.allocate)
    with pool.acquire(10_001) as buffer:
        assert buffer.bytes.ctypes.data % 4096 == 0
        assert len(buffer.capacity) == 12_288
    made = some_jobs(1)[0]
    made.out = pool.acquire(made.out.nbytes).array(made.out.shape, np.float16)
    engine.run([made])
    check([made])


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_result_that_stays_on_the_device(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    engine = CudaEngine((0,))
    for most_voxels in (2**31 - 1, 20_000):  # the second: a source beyond 32-bit offsets
        monkeypatch.setattr(_batch, "_MOST_SOURCE_VOXELS", most_voxels)
        for made in some_jobs(3, layout):
            there = Job(made.voxels.view(DeviceArray), made.rescale, made.plan, made.out)
            flipped = Job(there.voxels[::-1, :, ::3], made.rescale, made.plan, made.out)
            flipped.plan = plan_volume(flipped.voxels.shape, (1.0, 1.0, 3.0), made.plan.spec)
            for on_device in (made, there, flipped):
                result = engine.preprocess_on_device(on_device, stream=0)
                assert isinstance(result, DeviceArray)
                wanted = expected(on_device)
                np.testing.assert_array_equal(result.view(np.uint16), wanted.view(np.uint16))
