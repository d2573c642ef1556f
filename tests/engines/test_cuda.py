"""The CUDA engine's host side: batches, copies, memory, failures.

No GPU is pretended to give results: ``host_cuda.py`` says what stands in its place.
"""

from __future__ import annotations

import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda_host import assert_same_bits, expected, job
from host_cuda import DeviceArray, HostCuda, check, installed, some_jobs

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.engines import Job, batch
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.volume.geometry import plan_volume
from forking import Child

# The kernel is compiled for the host first.
pytestmark = pytest.mark.slow


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    return installed(monkeypatch)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_batch_is_one_launch_for_each_kind(host: HostCuda, layout: str) -> None:
    engine = CudaEngine((1,))
    jobs = some_jobs(4, layout)
    jobs += [job(made.voxels.astype(">f4"), made.plan.spec) for made in jobs]
    jobs += some_jobs(4, layout, dtype="uint8")
    engine.run(jobs)
    check(jobs)
    # Types of source and output × contiguous axes.
    assert len(host.launches) == len(set(host.launches)) == 3 * 3
    assert engine.name == "cuda:1"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint8"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_slabs_land_where_they_belong(host: HostCuda, layout: str, dtype: str) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 * 120_000)
    jobs = some_jobs(3, layout, dtype=dtype)
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
    pool = BufferPool(0, engine.allocate)
    with pool.acquire(10_001) as buffer:
        assert buffer.bytes.ctypes.data % 4096 == 0
        assert len(buffer.capacity) == 12_288
        assert host.registered == {buffer.bytes.ctypes.data: 12_288}
    made = some_jobs(1)[0]
    with pool.acquire(made.out.nbytes) as buffer:
        made.out = buffer.array(made.out.shape, np.float16)
        engine.run([made])
    check([made])
    engine.close()  # gives back the lanes' own
    assert len(host.registered) == 1
    del buffer, made
    gc.collect()
    assert host.registered == {}


def test_memory_that_cannot_be_pinned_serves_unpinned(
    host: HostCuda, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CudaEngine((0,))
    host.pins = False
    made = some_jobs(1)[0]
    with caplog.at_level(logging.WARNING, "ctgpu"):
        memory = engine.allocate(5 << 20)
    assert "5 MiB of host memory cannot be pinned: cudaError 2" in caplog.text
    made.out = np.ndarray(made.out.shape, np.float16, buffer=memory.data)
    engine.run([made])
    check([made])
    assert host.registered == {}


def test_pinned_memory_of_a_lost_device_goes_quietly(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    memory = CudaEngine((0,)).allocate(5 << 20)
    host.lost = True
    del memory
    gc.collect()
    assert complaints == []


def test_what_a_caller_gets_is_not_pinned(host: HostCuda) -> None:
    """A forked child inherits it, and it takes nothing from what may be pinned."""
    made = some_jobs(1)[0]
    engine = CudaEngine((0,))
    got = ctgpu.preprocess(
        made.voxels, made.plan.spacing_mm, made.plan.spec, engine, intensity="hu"
    )
    engine.close()
    assert host.registered == {}
    child = Child(got.tobytes)
    assert child.sees() == got.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint8"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_result_that_stays_on_the_device(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch, layout: str, dtype: str
) -> None:
    engine = CudaEngine((0,))
    for most_voxels in (2**31 - 1, 20_000):  # the second: a source beyond 32-bit offsets
        monkeypatch.setattr(batch, "MOST_SOURCE_VOXELS", most_voxels)
        for made in some_jobs(3, layout, dtype=dtype):
            there = Job(made.voxels.view(DeviceArray), made.rescale, made.plan, made.out)
            flipped = Job(there.voxels[::-1, :, ::3], made.rescale, made.plan, made.out)
            flipped.plan = plan_volume(flipped.voxels.shape, (1.0, 1.0, 3.0), made.plan.spec)
            for on_device in (made, there, flipped):
                result = engine.preprocess_on_device(on_device, stream=0)
                assert isinstance(result, DeviceArray)
                wanted = expected(on_device)
                assert_same_bits(np.asarray(result), wanted)
