"""Engines make of a box of voxels what they make of a file that holds nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_host import assert_same_bits, expected
from engine_cases import check_against_reference, poisoned
from host_cuda import installed

from ctgpu import _native
from ctgpu.engines import Job, open_engine
from ctgpu.engines.cpu import preprocess
from ctgpu.engines.cuda import CudaEngine
from ctgpu.spec import Spec
from ctgpu.testing.voxels import MEMORY_ORDERS
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume

SPACING_MM = (1.1, 0.9, 2.3)
AFFINE = np.diag([-1.1, -0.9, 2.3, 1.0])
#: Three unequal axes; the box of it is marked by another slope on each.
SHAPE = (61, 47, 33)
START, STOP = (9, 5, 4), (52, 44, 31)
SPEC = Spec(crop="foreground", target_spacing_mm=(1.3, 1.7, 2.0), shape_hwd=(32, 40, 24))
SPECS = {
    "extent": SPEC,
    "DHW": replace(SPEC, layout="DHW", clip="after"),
    "origin": replace(SPEC, grid="origin", dtype="bfloat16"),
    "contain": replace(SPEC, fit="contain", dtype="uint8", layout="DHW"),
    "stretch": Spec(crop="foreground", fit="stretch", shape_hwd=(30, 20, 50), dtype="int16"),
    "turned": replace(SPEC, orientation="SRA"),
    "own": replace(SPEC, hu_window=None, normalise="minmax", margin_mm=2.5),
}


def scan(dtype: str = "int16", order: str = "DWH") -> npt.NDArray[Any]:
    """Air that is no constant, so that a voxel outside of the box would show; foreground in it."""
    h, w, d = np.indices(SHAPE)
    hu = -1000 + h + 2 * w + 3 * d
    inside = tuple(map(slice, START, STOP))
    hu[inside] = (-450 + 11 * h + 17 * w + 23 * d)[inside]
    hu = hu.astype(dtype)
    axes = ["HWD".index(axis) for axis in order]
    return np.ascontiguousarray(hu.transpose(axes)).transpose(np.argsort(axes))


def prepared(voxels: npt.NDArray[Any], spec: Spec) -> PreparedVolume:
    return prepare_volume(
        RawVolume(voxels, spacing_mm=SPACING_MM, affine=AFFINE),
        spec=spec,
        spacing_mm=SPACING_MM,
        spacing_source="header",
        intensity="hu",
        hu_guard=None,
    )


def job_of(volume: PreparedVolume) -> Job:
    return Job(volume.voxels, volume.rescale, volume.plan, poisoned(volume.plan.spec))


@pytest.mark.parametrize("dtype", ["int16", "float32", ">i2"])
@pytest.mark.parametrize("order", MEMORY_ORDERS)
@pytest.mark.parametrize("name", SPECS)
def test_every_variant_reads_the_box_in_place(name: str, order: str, dtype: str) -> None:
    volume = prepared(scan(dtype, order), SPECS[name])
    assert volume.box is not None
    if volume.plan.spec.margin_mm == 0:
        assert (volume.box.start, volume.box.stop) == (START, STOP)
    job = job_of(volume)
    assert np.shares_memory(job.voxels, volume.raw.voxels)
    cut_out = replace(job, voxels=np.array(job.voxels), out=poisoned(volume.plan.spec))
    preprocess(_native, cut_out, variant="scalar", threads=1)
    assert_same_bits(cut_out.out, expected(job))
    for variant in _native.cpu_variants():
        for threads in (1, 3):
            made = replace(job, out=poisoned(volume.plan.spec))
            preprocess(_native, made, variant=variant, threads=threads)
            assert np.array_equal(made.out, cut_out.out), variant


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 40_000], ids=["whole", "in slabs"])
@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_the_kernel_of_a_gpu_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, order: str, limit: int
) -> None:
    host = installed(monkeypatch)
    jobs = [job_of(prepared(scan(order=order), spec)) for spec in SPECS.values()]
    # A small box of a large scan, which is copied before it is uploaded.
    small = scan(order=order)
    small[small < 300] = -1000
    jobs.append(job_of(prepared(small, SPEC)))
    engine = CudaEngine((0,), memory_limit_bytes=3 * limit or None)
    engine.run(jobs)
    for job in jobs:
        assert_same_bits(job.out, expected(job))
    on_device = engine.preprocess_on_device(jobs[0])
    assert_same_bits(np.asarray(on_device), jobs[0].out)
    # Nothing outside of the planes that the box lies in is uploaded.
    whole = scan(order=order).nbytes
    assert max(size for _, size in host.uploads) < whole
    engine.close()


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_values_are_torchs_of_the_voxels_that_were_cut_out(layout: Any) -> None:
    torch = pytest.importorskip("torch")
    voxels = scan()
    spec = replace(SPEC, layout=layout, shape_hwd=(40, 16, 40))
    volume = prepared(voxels, spec)
    inside = voxels[tuple(map(slice, START, STOP))]
    sizes = [
        int(n * (s / t))
        for n, s, t in zip(inside.shape, SPACING_MM, spec.target_spacing_mm, strict=True)
    ]
    x = torch.from_numpy(inside.astype(np.float32)).clamp(-1000, 1000)[None, None]
    x = torch.nn.functional.interpolate(x, size=sizes, mode="trilinear")[0, 0].numpy() / 1000
    wanted = np.full(spec.shape_hwd, -1, np.float32)
    for axis, (n, n_out) in enumerate(zip(sizes, spec.shape_hwd, strict=True)):
        first = max(0, n - n_out) // 2
        x = np.take(x, range(first, first + min(n, n_out)), axis)
    before = [max(0, n_out - n) // 2 for n, n_out in zip(sizes, spec.shape_hwd, strict=True)]
    wanted[tuple(slice(b, b + n) for b, n in zip(before, x.shape, strict=True))] = x
    if layout == "DHW":
        wanted = wanted.transpose(2, 0, 1)
    for name in ("cpu", "reference"):
        job = job_of(volume)
        open_engine(name).run([job])
        check_against_reference(job.out, wanted.astype(np.float16))
    assert before[0] > 0  # what lies outside of the box is padding
    assert volume.plan.crop_start[1] > 0


def test_the_reference_follows_for_every_contract() -> None:
    for name, spec in SPECS.items():
        job = job_of(prepared(scan(), spec))
        wanted = replace(job, out=poisoned(spec))
        open_engine("cpu").run([job])
        open_engine("reference").run([wanted])
        check_against_reference(job.out, wanted.out, dtype=spec.dtype, differing=job.out.size / 50)
        assert name
