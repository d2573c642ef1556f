"""The CUDA engine on a GPU: the bits of the CPU engine, whatever way the work takes.

Where there is no GPU, ``conftest.py`` gives an emulated one.  Tests marked ``gpu`` need what only
a real one has, and are skipped without; those marked ``large`` wait for ``make exhaustive`` then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import BufferPool
from ctgpu.engines import Job, open_engine
from ctgpu.engines.base import Engine
from ctgpu.engines.batch import KernelKey
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.spec import Dtype, Layout, Spec
from ctgpu.testing.voxels import DTYPES, MEMORY_ORDERS, random_voxels
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.stored import numpy_dtype

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

SMALL = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(64, 48, 40))
SMALL_DHW = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(64, 48, 40), layout="DHW")
SMALL_UINT8 = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(64, 48, 40), dtype="uint8")
SPACING_MM = (1.3, 0.7, 1.1)


@pytest.fixture(scope="module")
def cuda(device: None) -> Iterator[CudaEngine]:
    engine = CudaEngine((0,))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cpu() -> Engine:
    return open_engine("cpu")


def job(
    voxels: Any,
    spec: Spec = SMALL,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    rescale: Rescale = Rescale(),  # noqa: B008
) -> Job:
    plan = plan_volume(voxels.shape, spacing_mm, spec)
    return Job(voxels, rescale, plan, blank(spec))


def blank(spec: Spec) -> np.ndarray:
    """Room for an output, that holds what hardly any voxel is."""
    memory = np.full(spec.size_bytes, 0xA5, np.uint8)
    return memory.view(numpy_dtype(spec.dtype)).reshape(spec.stored_shape)


def check(engine: Engine, cpu: Engine, jobs: list[Job]) -> None:
    engine.run(jobs)
    for made in jobs:
        assert_bits(made.out, made, cpu)


def assert_bits(result: np.ndarray, made: Job, cpu: Engine) -> None:
    twin = Job(made.voxels, made.rescale, made.plan, blank(made.plan.spec))
    cpu.run([twin])
    assert result.dtype == twin.out.dtype
    bits = f"u{result.itemsize}"
    np.testing.assert_array_equal(result.view(bits), twin.out.view(bits))


@pytest.mark.parametrize("spec", [SMALL, SMALL_DHW], ids=["HWD", "DHW"])
@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_every_memory_order(cuda: CudaEngine, cpu: Engine, order: str, spec: Spec) -> None:
    for flipped in ((), (0, 2)):
        for step in (1, 3):
            voxels = random_voxels(1, (70, 66, 50), "<i2", order, flipped=flipped, step=step)
            check(cuda, cpu, [job(voxels, spec)])


@pytest.mark.parametrize("spec", [SMALL, SMALL_DHW], ids=["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["<i2", ">f4"])
def test_four_rows_at_once(cuda: CudaEngine, cpu: Engine, dtype: str, spec: Spec) -> None:
    for flipped in ((), (0, 1)):
        voxels = random_voxels(1, (72, 66, 50), dtype, "DWH", flipped=flipped)
        check(cuda, cpu, [job(voxels, spec), job(voxels[:, ::2], spec)])


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(cuda: CudaEngine, cpu: Engine, dtype: str, byte_order: str) -> None:
    for n, (order, spec) in enumerate((("DWH", SMALL), ("HWD", SMALL), ("HDW", SMALL_DHW))):
        voxels = random_voxels(n, (70, 66, 50), byte_order + dtype, order)
        check(cuda, cpu, [job(voxels, spec, rescale=Rescale(0.75, -100.5, "header"))])


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int16", "uint8"])
def test_every_type_of_the_output(
    cuda: CudaEngine, cpu: Engine, dtype: Dtype, layout: Layout
) -> None:
    cupy = pytest.importorskip("cupy")
    for shape in ((64, 48, 40), (33, 13, 27)):  # whole vectors, and a rest
        spec = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=shape, layout=layout, dtype=dtype)
        made = job(random_voxels(9, (70, 66, 50), "<i2", "DWH"), spec)
        check(cuda, cpu, [made])
        assert_bits(cupy.asnumpy(cuda.preprocess_on_device(made)), made, cpu)


@pytest.mark.parametrize("clip", ["before", "after"])
def test_subnormals_are_kept(cuda: CudaEngine, cpu: Engine, clip: Any) -> None:
    # CuPy compiles with -ftz=true; the kernel's arithmetic must not follow.
    voxels = random_voxels(2, (70, 66, 50), "<f4") * np.float32(1e-42)
    check(cuda, cpu, [job(voxels, Spec(shape_hwd=(96, 80, 64), clip=clip))])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 200, 7), (33, 31, 129)])
def test_shapes_that_leave_a_rest(
    cuda: CudaEngine, cpu: Engine, shape: tuple[int, int, int]
) -> None:
    for out in ((61, 43, 59), (5, 1, 3), (64, 64, 64)):
        for layout in ("HWD", "DHW"):
            spec = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=out, layout=layout)
            for spacing_mm in ((1.0, 1.0, 1.0), (0.3, 2.7, 0.1)):
                check(cuda, cpu, [job(random_voxels(3, shape), spec, spacing_mm)])


@pytest.mark.large
def test_the_usual_volume(cuda: CudaEngine, cpu: Engine) -> None:
    voxels = random_voxels(4, (512, 512, 150), "<i2", "DWH")
    for layout in ("HWD", "DHW"):
        check(cuda, cpu, [job(voxels, Spec(layout=layout), (0.7, 0.7, 2.5))])


@pytest.mark.large
def test_real_ct(cuda: CudaEngine, cpu: Engine, real_ct: Path) -> None:
    from ctgpu.decode import decode

    path = min(real_ct.glob("*.nii.gz"), key=lambda file: file.stat().st_size)
    pool = BufferPool(allocate=cuda.allocate)
    compressed = pool.acquire(path.stat().st_size)
    compressed.bytes[:] = np.fromfile(path, np.uint8)
    raw = decode(path.name, compressed, pool)
    assert raw.spacing_mm is not None
    for layout in ("HWD", "DHW"):
        check(cuda, cpu, [job(raw.voxels, Spec(layout=layout), raw.spacing_mm, raw.header_rescale)])


def test_a_batch_of_everything(cuda: CudaEngine, cpu: Engine) -> None:
    jobs = [
        job(random_voxels(n, (40 + n, 30, 50 - n), dtype, order), spec)
        for n, (dtype, order, spec) in enumerate(
            [
                ("<i2", "DWH", SMALL),
                (">i2", "HWD", SMALL),
                ("<f4", "HWD", SMALL_DHW),
                ("<i2", "DWH", SMALL),
                ("<u1", "WHD", SMALL),
                ("<i2", "DWH", SMALL),
                ("<i2", "DWH", SMALL_UINT8),
            ]
        )
    ]
    check(cuda, cpu, jobs)


def test_every_lane_at_once(cuda: CudaEngine, cpu: Engine) -> None:
    pool = BufferPool(allocate=cuda.allocate)
    jobs = []
    for n in range(24):
        made = job(random_voxels(n, (60 + n, 66, 50), "<i2", MEMORY_ORDERS[n % 6]))
        made.out = pool.acquire(made.out.nbytes).array(made.out.shape, np.float16)
        jobs.append(made)
    assert cuda.concurrency >= 2
    with ThreadPoolExecutor(cuda.concurrency) as threads:
        list(threads.map(lambda made: cuda.run([made]), jobs))
    for made in jobs:
        assert_bits(made.out, made, cpu)


@pytest.mark.parametrize("spec", [SMALL, SMALL_DHW, SMALL_UINT8], ids=["HWD", "DHW", "uint8"])
def test_a_volume_larger_than_its_share(cpu: Engine, spec: Spec) -> None:
    engine = CudaEngine((0,), memory_limit_bytes=3 * 500_000)
    check(engine, cpu, [job(random_voxels(5, (70, 66, 50)), spec) for _ in range(3)])
    engine.close()
    starved = CudaEngine((0,), memory_limit_bytes=3 * 9_000)
    with pytest.raises(DeviceError, match="one slice of a volume"):
        starved.run([job(random_voxels(5, (70, 66, 50)), spec)])
    starved.close()


@pytest.mark.large
def test_out_of_memory_makes_the_batch_smaller(
    cpu: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    cupy = pytest.importorskip("cupy")
    voxels = random_voxels(6, (256, 256, 128))
    spec = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(256, 256, 128))
    jobs = [job(voxels, spec, (1.0, 1.0, 1.0)) for _ in range(8)]  # 34 MB each
    engine = CudaEngine((0,), memory_limit_bytes=1 << 40)  # more than there is
    free, _ = cupy.cuda.runtime.memGetInfo()
    hog = cupy.cuda.Memory(free - (160 << 20))
    try:
        with caplog.at_level(logging.WARNING, "ctgpu"):
            engine.run(jobs)
    finally:
        del hog
    assert "going on with batches of at most" in caplog.text
    for made in jobs:
        assert_bits(made.out, made, cpu)
    engine.close()


def test_pinned_memory_is_page_aligned(cuda: CudaEngine) -> None:
    cupy = pytest.importorskip("cupy")
    memory = cuda.allocate(100_001)
    assert memory.ctypes.data % 4096 == 0
    assert len(memory) >= 100_001
    assert len(memory) % 4096 == 0
    attributes = cupy.cuda.runtime.pointerGetAttributes(memory.ctypes.data)
    assert attributes.type == cupy.cuda.runtime.memoryTypeHost


@pytest.mark.parametrize("spec", [SMALL, SMALL_DHW], ids=["HWD", "DHW"])
def test_the_result_stays_on_the_device(cuda: CudaEngine, cpu: Engine, spec: Spec) -> None:
    cupy = pytest.importorskip("cupy")
    made = job(random_voxels(7, (70, 66, 50), "<i2", "DWH"), spec)
    from_host = cuda.preprocess_on_device(made)
    assert isinstance(from_host, cupy.ndarray)
    assert_bits(cupy.asnumpy(from_host), made, cpu)
    on_device = Job(cupy.asarray(made.voxels), made.rescale, made.plan, made.out)
    assert_bits(cupy.asnumpy(cuda.preprocess_on_device(on_device)), made, cpu)
    strided = Job(cupy.asarray(made.voxels)[::-1, :, ::-1], made.rescale, made.plan, made.out)
    host_view = Job(made.voxels[::-1, :, ::-1], made.rescale, made.plan, made.out)
    assert_bits(cupy.asnumpy(cuda.preprocess_on_device(strided)), host_view, cpu)


def test_a_batch_stays_on_the_device(cuda: CudaEngine, cpu: Engine) -> None:
    """What is queued reads the copies, so that the caller's arrays can change at once."""
    cupy = pytest.importorskip("cupy")
    made = [job(random_voxels(n, (70, 66, 50), "<i2", "DWH"), SMALL_DHW) for n in range(2)]
    stream = cupy.cuda.Stream(non_blocking=True)
    staged, lent = zip(*(cuda.staging.copy_of(one.voxels) for one in made), strict=True)
    jobs = [Job(v, j.rescale, j.plan, j.out) for v, j in zip(staged, made, strict=True)]
    result = cuda.batch_on_device(jobs, stream.ptr, lent=lent)
    stream.synchronize()
    for row, one in zip(cupy.asnumpy(result), made, strict=True):
        assert_bits(row, one, cpu)


@pytest.mark.gpu
def test_beside_torch_on_its_stream(cuda: CudaEngine, cpu: Engine) -> None:
    torch = pytest.importorskip("torch")
    made = job(random_voxels(8, (70, 66, 50)))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.from_numpy(made.voxels).cuda(non_blocking=True)
        doubled = torch.zeros_like(tensor) + tensor  # queued on `stream`, read by the kernel
        on_device = Job(doubled, made.rescale, made.plan, made.out)
        result = cuda.preprocess_on_device(on_device, stream.cuda_stream)
        taken = torch.from_dlpack(result)
        moved = (taken + 0).cpu()
    assert taken.data_ptr() == result.data.ptr
    assert_bits(moved.numpy(), made, cpu)


def test_several_devices_share_the_work(cpu: Engine) -> None:
    engine = CudaEngine()
    assert engine.concurrency == 3 * len(engine.ordinals)
    jobs = [job(random_voxels(n, (70, 66, 50))) for n in range(2 * engine.concurrency)]
    for made in jobs:
        check(engine, cpu, [made])
    assert [device["ordinal"] for device in engine.describe()["devices"]] == [*engine.ordinals]
    engine.close()
    with pytest.raises(DeviceError, match="was closed"):
        engine.run(jobs)


@pytest.mark.gpu
def test_the_usual_kernel_spills_nothing(cuda: CudaEngine) -> None:
    usual = KernelKey(
        "i2", swap=False, fast=0, out=2, rescales=False, clips_before=True, rows=4, pairs=True
    )
    assert cuda.kernels.get(0, usual).attributes["local_size_bytes"] == 0
