"""Batches that stay on the GPU: one launch a kind, the caller's stream and memory, no waiting."""

from __future__ import annotations

import sys
import types
from collections import Counter
from typing import Any

import numpy as np
import pytest
from cuda_host import assert_same_bits, expected, job
from host_cuda import DeviceArray, HostCuda, installed, some_jobs

import ctgpu
from ctgpu.engines import Job, batch
from ctgpu.engines.cuda import CudaEngine
from ctgpu.engines.on_device import output_on_device
from ctgpu.errors import DecodeError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom

# The kernel is compiled for the host first.
pytestmark = pytest.mark.slow

SIZE_MM = (1.5, 1.25, 3.0)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    return installed(monkeypatch)


def resident(job: Job) -> Job:
    return Job(job.voxels.view(DeviceArray), job.rescale, job.plan, job.out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_volumes_of_one_kind_are_one_launch(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch, layout: str, dtype: str
) -> None:
    engine = CudaEngine((0,))
    jobs = some_jobs(3, layout, dtype=dtype)
    jobs.append(resident(jobs[0]))  # on the device already
    jobs.append(job(jobs[1].voxels.astype(">f4"), jobs[1].plan.spec))
    # The second: sources beyond 32-bit offsets, and more pieces than one launch takes.
    for most_voxels, most_launches in ((2**31 - 1, 1), (20_000, 2)):
        monkeypatch.setattr(batch, "MOST_SOURCE_VOXELS", most_voxels)
        host.launches.clear()
        result = engine.batch_on_device(jobs)
        launches = Counter(host.launches)
        assert len(launches) >= 2
        assert max(launches.values()) == most_launches
        assert result.shape == (5, *jobs[0].plan.spec.stored_shape)
        for made, one in zip(np.asarray(result), jobs, strict=True):
            assert_same_bits(made, expected(one))


def test_nothing_is_waited_for_where_memory_is_lent(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    jobs = some_jobs(2)
    engine.batch_on_device(jobs)
    assert len(host.waits) == 1  # the caller may change its memory now
    lent = []
    for one in jobs:
        one.voxels, buffer = engine.staging.copy_of(one.voxels)
        lent.append(buffer)
    result = engine.batch_on_device(jobs, 7, lent=lent)
    assert len(host.waits) == 1
    for made, one in zip(np.asarray(result), jobs, strict=True):
        assert_same_bits(made, expected(one))
    assert engine.staging.pool.lent_bytes == 0  # whose events are done at once
    engine.close()


def test_into_memory_of_the_caller_on_its_stream(host: HostCuda) -> None:
    engine = CudaEngine((0,))
    jobs = some_jobs(2)
    shape = (2, *jobs[0].plan.spec.stored_shape)
    out = np.full(shape, 7, np.float16).view(DeviceArray)
    result = engine.batch_on_device([resident(one) for one in jobs], 9, out=out)
    assert np.shares_memory(result, out)
    for made, one in zip(np.asarray(out), jobs, strict=True):
        assert_same_bits(made, expected(one))


def cuda_array(dtype: Any = np.float16, shape: tuple[int, ...] = (2, 4, 5, 6)) -> DeviceArray:
    return np.zeros(shape, dtype).view(DeviceArray)


@pytest.mark.parametrize(
    ("out", "found"),
    [
        (np.zeros((2, 4, 5, 6), np.float16), "out is a ndarray on no GPU"),
        (None, "out is a NoneType on no GPU"),
        (cuda_array(np.float32), r"out is float32 \(2, 4, 5, 6\)"),
        (cuda_array(shape=(2, 6, 5, 4)), r"out is float16 \(2, 6, 5, 4\)"),
        (cuda_array().transpose(0, 3, 2, 1), r"out is float16 \(2, 6, 5, 4\), not C-contiguous"),
    ],
)
def test_an_output_that_cannot_be_one(host: HostCuda, out: Any, found: str) -> None:
    wanted = r"; wanted a CuPy array or a torch tensor on cuda:0, C-contiguous, of float16 and "
    with pytest.raises(UsageError, match=found + wanted + r"shape \(2, 4, 5, 6\)"):
        output_on_device(sys.modules["cupy"], out, (2, 4, 5, 6), "float16", 0)
    with pytest.raises(UsageError, match=r"on cuda:0; wanted .* on cuda:1"):
        output_on_device(sys.modules["cupy"], cuda_array(), (2, 4, 5, 6), "float16", 1)


def test_a_bfloat16_tensor_is_written_as_its_bits(
    host: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy has no bfloat16, so that a tensor is handed over as one of int16."""
    memory = np.zeros((2, 4, 5, 6), np.int16)

    class Tensor:
        dtype = "torch.bfloat16"

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def view(self, dtype: str) -> Tensor:
            assert dtype == "int16 of torch"
            return self

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(int16="int16 of torch"))
    from_dlpack = lambda lent: memory.view(DeviceArray)  # noqa: E731
    monkeypatch.setattr(sys.modules["cupy"], "from_dlpack", from_dlpack, raising=False)
    out = output_on_device(sys.modules["cupy"], Tensor(), (2, 4, 5, 6), "bfloat16", 0)
    assert out.dtype == np.uint16
    assert np.shares_memory(out, memory)


# ---- ctgpu.preprocess_batch on a device ----------------------------------------------------------


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_one_call_on_several_scans(host: HostCuda, tmp_path: Any, layout: Any) -> None:
    spec = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(40, 36, 28), layout=layout)
    chests = [chest_phantom((40, 50 + n, 30), SIZE_MM, n) for n in range(3)]
    on_cpu = ctgpu.preprocess_batch(chests, spec=spec, spacing_mm=SIZE_MM, device="cpu")
    engine = CudaEngine((0,))
    waits = len(host.waits)
    given = [chest.copy() for chest in chests]
    made = ctgpu.preprocess_batch(
        given, spec=spec, spacing_mm=SIZE_MM, device=engine, output="cupy"
    )
    assert isinstance(made.volume, DeviceArray)
    assert len(host.waits) == waits
    assert len(host.launches) == 1
    assert_same_bits(np.asarray(made.volume), on_cpu.volume)
    to_host = ctgpu.preprocess_batch(given, spec=spec, spacing_mm=SIZE_MM, device=engine)
    assert_same_bits(to_host.volume, on_cpu.volume)
    engine.close()


def test_a_bad_scan_does_not_lose_the_others(host: HostCuda, tmp_path: Any) -> None:
    spec = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(40, 36, 28))
    chest = chest_phantom((40, 50, 30), SIZE_MM, 1)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no volume")
    engine = CudaEngine((0,))
    out = np.full((3, *spec.stored_shape), 7, np.float16).view(DeviceArray)
    scans = [bad, chest, chest[::-1]]
    options: dict[str, Any] = {
        "spec": spec,
        "spacing_mm": [None, SIZE_MM, SIZE_MM],
        "device": engine,
        "output": "cupy",
        "out": out,
    }
    made = ctgpu.preprocess_batch(scans, on_error="skip", **options)
    assert made.indices == (1, 2)
    assert isinstance(made.failures[0], DecodeError)
    assert np.shares_memory(made.volume, out)
    wanted = ctgpu.preprocess_batch(scans[1:], spec=spec, spacing_mm=SIZE_MM, device="cpu")
    assert_same_bits(np.asarray(out[:2]), wanted.volume)
    with pytest.raises(DecodeError, match=r"^volumes\[0\]: bad.nii.gz"):
        ctgpu.preprocess_batch(scans, **options)
    assert engine.staging.pool.lent_bytes == 0
    with pytest.raises(UsageError, match="out is a ndarray on no GPU; wanted a CuPy array"):
        ctgpu.preprocess_batch(scans, **options | {"out": np.asarray(out)})
