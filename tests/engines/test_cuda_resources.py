"""What the CUDA engine takes of a machine: cores, devices, memory, a folder for kernels."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda_host import assert_same_bits, expected, job, spec
from host_cuda import CUDARuntimeError, DeviceArray, HostCuda, check, installed, some_jobs

import ctgpu
from ctgpu.engines import Job, batch, open_engine, packing
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError, UsageError
from ctgpu.testing.voxels import random_voxels

# The kernel is compiled for the host first.
pytestmark = pytest.mark.slow


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    return installed(monkeypatch)


def test_lanes_sleep_until_their_work_is_done(host: HostCuda) -> None:
    """To synchronise the stream itself, which this one cannot, would keep a core busy."""
    engine = CudaEngine((0,))
    jobs = some_jobs(3)
    engine.run(jobs)
    check(jobs)
    assert host.waits == [(True, True)]
    engine.preprocess_on_device(jobs[0])
    assert host.waits == [(True, True)] * 2
    resident = Job(jobs[0].voxels.view(DeviceArray), jobs[0].rescale, jobs[0].plan, jobs[0].out)
    engine.preprocess_on_device(resident)
    assert len(host.waits) == 2  # nothing of the caller's is on the host


def test_the_first_device_is_left_alone_where_another_was_asked_for(host: HostCuda) -> None:
    def everything() -> None:
        engine = CudaEngine((1,))
        memory = engine.allocate(5 << 20)
        for made in some_jobs(2):
            engine.run([made])
            engine.preprocess_on_device(made)
        engine.close()
        del memory
        gc.collect()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(everything).result()
    assert host.contexts == {1}
    assert host.registered == {}


def test_what_another_thread_gives_back_goes_to_the_device_that_it_came_from(
    host: HostCuda,
) -> None:
    engine = CudaEngine((1,))
    held = [engine.allocate(5 << 20)]
    engine.run(some_jobs(2))

    def give_back() -> None:
        held.clear()
        gc.collect()

    for work in (give_back, engine.close):
        with ThreadPoolExecutor(1) as thread:  # one that has chosen no device
            thread.submit(work).result()
        gc.collect()
    assert host.contexts == {1}
    assert host.registered == {}


def test_a_thread_goes_back_to_the_device_that_it_used(host: HostCuda) -> None:
    host.set_device(0)
    engine = CudaEngine((1,))
    engine.run(some_jobs(1))
    engine.close()
    assert host.device == 0


def test_memory_for_every_device_is_pinned_on_one_of_the_engines(host: HostCuda) -> None:
    with ThreadPoolExecutor(1) as thread:  # as the pipeline's, which chose no device
        engine = CudaEngine((1,))
        memory = thread.submit(engine.allocate, 5 << 20).result()
        assert memory.ctypes.data in host.registered
    assert host.contexts == {1}


def test_headers_are_uploaded_from_pinned_memory(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    for count in (4, 1, 3):
        jobs = some_jobs(count)
        host.uploads.clear()
        engine.run(jobs)
        check(jobs)
        address, size = host.uploads[0]
        assert size == packing.header_bytes([batch.Piece.of(j, 0, 56) for j in jobs])
        assert any(
            at <= address and address + size <= at + pinned
            for at, pinned in host.registered.items()
        )


def test_a_lane_that_meets_larger_and_larger_volumes_rarely_allocates(host: HostCuda) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 << 30)
    rising = [job(random_voxels(0, (40, 40, n)), spec((48, 40, 56))) for n in range(40, 56)]
    for made in rising:
        for _ in range(engine.concurrency):  # one after the other, every lane has its turn
            engine.run([made])
    check(rising)
    assert len(host.allocations) <= 2 * engine.concurrency


def test_room_to_grow_is_not_taken_from_what_is_needed(host: HostCuda) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 << 30)
    made = some_jobs(1)[0]
    piece = batch.Piece.of(made, 0, 56)
    host.free_bytes = piece.device_bytes
    engine.run([made])
    check([made])
    assert len(host.allocations) == 1


def test_voxels_of_another_framework_are_taken_on_the_work_stream(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lender makes the stream that is current then wait for what it still writes."""
    engine = CudaEngine()
    made = some_jobs(1)[0]
    seen: list[tuple[int, list[int]]] = []

    class Lent:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

    def from_dlpack(lent: Lent) -> DeviceArray:
        seen.append((host.device, list(host.streams)))
        return made.voxels.view(DeviceArray)

    monkeypatch.setattr(sys.modules["cupy"], "from_dlpack", from_dlpack, raising=False)
    result = engine.preprocess_on_device(
        Job(Lent(), made.rescale, made.plan, made.out),  # type: ignore[arg-type]
        stream=7,
    )
    assert seen == [(1, [7])]
    assert_same_bits(np.asarray(result), expected(made))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("Failed to find CUDA headers.\n\nInstall them (e.g. cupy[ctk])."),
            r"CuPy cannot compile the kernel \(Failed to find CUDA headers\. Install them \(e\.g\. "
            r"cupy\[ctk\]\)\): `pip install .*\[cuda13\]'` brings CUDA's headers, or use",
        ),
        (
            PermissionError(13, "Permission denied", "/home/me/.cupy/kernel_cache/tmp1"),
            r"CuPy cannot keep compiled kernels in .*kernel_cache \(Permission denied\): set "
            r"CUPY_CACHE_DIR to a folder that can be written, or use --device cpu",
        ),
        (CUDARuntimeError(209), r"cuda:0 failed \(cudaError 209\)"),
    ],
)
def test_a_kernel_that_cannot_be_compiled_is_one_sentence(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    host.module_error = error
    with pytest.raises(DeviceError, match=sentence) as caught:
        CudaEngine((0,))
    assert "\n" not in str(caught.value)
    assert open_engine("auto").name == "cpu"


def test_a_kernel_that_cannot_be_compiled_later_spares_the_others(host: HostCuda) -> None:
    """A cache that has filled up meanwhile is not a device that is lost."""
    engine = CudaEngine((0,))
    host.module_error = OSError(28, "No space left on device", "/home/me/.cupy/kernel_cache/tmp1")
    other = job(random_voxels(0, (30, 30, 30), ">f4"), spec((48, 40, 56)))
    with pytest.raises(DeviceError, match=r"\(No space left on device\): set CUPY_CACHE_DIR"):
        engine.run([other])
    host.module_error = None
    engine.run([other])
    check([other])


@pytest.mark.parametrize("output", ["torch", "cupy"])
def test_memory_of_the_host_is_refused_for_a_result_that_stays_on_the_gpu(
    host: HostCuda, output: Any
) -> None:
    made = some_jobs(1)[0]
    with pytest.raises(UsageError, match=f"out is memory of the host, and output='{output}' stays"):
        ctgpu.preprocess(
            made.voxels,
            (1.0, 1.0, 1.0),
            made.plan.spec,
            device=CudaEngine(),
            output=output,
            out=np.empty_like(made.out),
        )
