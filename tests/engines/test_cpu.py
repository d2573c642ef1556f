"""The CPU engine: marks in the right place, the bounds against torch, and how it is chosen."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from engine_cases import (
    GEOMETRIES,
    allowed_difference,
    check_against_reference,
    check_ramp,
    jobs,
    make_job,
    random_voxels,
    run,
)
from hypothesis import given, settings

import ctgpu
from ctgpu.buffers import allocate_pages
from ctgpu.engines import Job
from ctgpu.engines.cpu import CpuEngine
from ctgpu.engines.reference import ReferenceEngine
from ctgpu.errors import DeviceError, UsageError
from ctgpu.spec import Spec
from ctgpu.volume.raw import Rescale


@pytest.fixture(scope="module")
def cpu() -> CpuEngine:
    return CpuEngine()


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_axis_lands_where_the_contract_says(
    cpu: CpuEngine, name: str, layout: Any, order: Any
) -> None:
    check_ramp(cpu, name, layout, order)


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(jobs())
def test_stays_within_the_bounds_of_the_reference(job: Job) -> None:
    got, wanted = run(CpuEngine(), job), run(ReferenceEngine(), job)
    check_against_reference(got, wanted, **allowed_difference(job))


@pytest.mark.parametrize("clip", ["before", "after"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_real_ct_stays_within_the_bounds(
    cpu: CpuEngine, reference: ReferenceEngine, real_ct: Path, layout: Any, clip: Any
) -> None:
    image = nibabel.load(real_ct / "lidcidri0001_small.nii.gz")
    voxels = np.asanyarray(image.dataobj)
    assert voxels.min() == -2048, "the padding outside the field of view is what clip is for"
    spec = Spec(shape_hwd=(200, 280, 20), layout=layout, clip=clip)
    job = make_job(voxels, image.header.get_zooms(), spec)
    check_against_reference(run(cpu, job), run(reference, job))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_full_size_real_ct_stays_within_the_bounds(
    cpu: CpuEngine, reference: ReferenceEngine, real_ct: Path, layout: Any
) -> None:
    image = nibabel.load(real_ct / "qin_QIN-LSC-0028.nii.gz")
    job = make_job(np.asanyarray(image.dataobj), image.header.get_zooms(), Spec(layout=layout))
    check_against_reference(run(cpu, job, threads=2), run(reference, job))


def test_rescale_is_applied_once(cpu: CpuEngine) -> None:
    spec = Spec(shape_hwd=(4, 4, 4))
    job = make_job(np.full((4, 4, 4), 1124, np.int16), (0.75, 0.75, 1.5), spec)
    assert np.unique(run(cpu, job)).tolist() == [1.0]
    job.rescale = Rescale(1.0, -1024.0, "csv")
    assert np.unique(run(cpu, job)).tolist() == [np.float16(0.1)]
    job.rescale = Rescale(0.5, -1062.0, "csv")
    assert np.unique(run(cpu, job)).tolist() == [-0.5]


def test_clip_before_and_after_differ_as_they_should(cpu: CpuEngine) -> None:
    voxels = np.zeros((2, 1, 1), np.int16)
    voxels[0] = -3000
    spacing = (1.5, 0.75, 1.5)
    before = make_job(voxels, spacing, Spec(shape_hwd=(4, 1, 1)))
    after = make_job(voxels, spacing, Spec(shape_hwd=(4, 1, 1), clip="after"))
    assert run(cpu, before).ravel().tolist() == [-1, -0.75, -0.25, 0]
    assert run(cpu, after).ravel().tolist() == [-1, -1, -0.75, 0]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("clip", ["before", "after"])
def test_whole_numbers_are_the_nearest_and_end_where_their_type_does(
    clip: Any, engine: str, request: pytest.FixtureRequest
) -> None:
    hu = [-4e4, -32768.5, -32767.5, -1.5, -0.5, 0.5, 2.5, 2.6, 32766.5, 32767.5, 4e4]
    voxels = np.float32(hu).reshape(-1, 1, 1)

    def stored(**wanted: Any) -> list[int]:
        job = make_job(voxels, (0.75, 0.75, 1.5), Spec(shape_hwd=(11, 1, 1), **wanted))
        return run(request.getfixturevalue(engine), job).ravel().tolist()

    ends, inner = [-32768, 32767], [-32768, -2, 0, 0, 2, 3, 32766]
    assert stored(dtype="int16", hu_window=None) == [*ends[:1] * 2, *inner, *ends[1:] * 2]
    # One HU is one step.
    as_bytes = stored(dtype="uint8", hu_window=(0.0, 255.0), clip=clip)
    assert as_bytes == [0, 0, 0, 0, 0, 0, 2, 3, 255, 255, 255]


def test_cropped_source_and_source_memory_are_left_alone(cpu: CpuEngine) -> None:
    voxels = np.asfortranarray(random_voxels(1, (60, 50, 40), "float32"))
    spec = Spec(shape_hwd=(20, 16, 12))
    job = make_job(voxels, (0.75, 0.75, 1.5), spec)
    wanted = run(cpu, job)
    poisoned = np.full_like(voxels, np.nan, order="F")
    inner = tuple(slice(a.i0[0], a.i1[-1] + 1) for a in job.plan.axes)
    poisoned[inner] = voxels[inner]
    job.voxels = poisoned
    poisoned.flags.writeable = False
    assert np.array_equal(run(cpu, job), wanted)


def test_takes_views_of_pooled_memory(cpu: CpuEngine) -> None:
    voxels = random_voxels(2, (20, 30, 10), "int16")
    job = make_job(voxels, (0.9, 0.8, 2.0), Spec(shape_hwd=(16, 16, 16)))
    memory = allocate_pages(352 + voxels.nbytes)
    shifted = np.ndarray(voxels.shape, "<i2", buffer=memory.data, offset=352, order="F")
    shifted[...] = voxels
    moved = Job(shifted, job.rescale, job.plan, job.out)
    assert np.array_equal(run(cpu, moved), run(cpu, job))


def test_runs_a_batch_of_unlike_jobs(cpu: CpuEngine) -> None:
    spec = Spec(shape_hwd=(12, 10, 8))
    first = make_job(random_voxels(3, (9, 14, 5), "uint16"), (0.9, 0.8, 2.0), spec)
    second = make_job(random_voxels(4, (30, 20, 25), "float64"), (0.4, 0.7, 1.0), spec)
    cpu.run([first, second])
    assert np.array_equal(first.out, run(cpu, first))
    assert np.array_equal(second.out, run(cpu, second))


def test_refuses_what_does_not_belong_together(cpu: CpuEngine) -> None:
    job = make_job(
        random_voxels(5, (8, 8, 8), "int16"), (0.75, 0.75, 1.5), Spec(shape_hwd=(8,) * 3)
    )
    with pytest.raises(ValueError, match=r"\(8, 8, 7\)"):
        cpu.run([Job(job.voxels[:, :, :7], job.rescale, job.plan, job.out)])
    with pytest.raises(ValueError, match="out is not float16"):
        cpu.run([Job(job.voxels, job.rescale, job.plan, job.out[:4])])
    with pytest.raises(ValueError, match="complex64"):
        cpu.run([Job(job.voxels.astype(np.complex64), job.rescale, job.plan, job.out)])
    with pytest.raises(ValueError, match="threads"):
        cpu.run([job], threads=0)


def test_describes_itself(cpu: CpuEngine) -> None:
    facts = cpu.describe()
    assert facts["name"] == cpu.name == "cpu"
    assert facts["variant"] in {"scalar", "avx2", "avx512", "neon"}
    assert cpu.arithmetic == "ctgpu"
    assert 1 <= cpu.concurrency <= (os.cpu_count() or 1)


@pytest.mark.slow
def test_ctgpu_cpu_forces_a_variant() -> None:
    code = "from ctgpu.engines import open_engine; print(open_engine('cpu').describe()['variant'])"
    environment = {**os.environ, "CTGPU_CPU": "scalar"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "scalar"


def test_ctgpu_cpu_must_be_a_known_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTGPU_CPU", "mmx")
    with pytest.raises(UsageError, match=r"CTGPU_CPU.*'mmx'.*scalar"):
        CpuEngine()


def test_ctgpu_cpu_must_be_a_variant_of_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctgpu import _native

    foreign = "avx2" if "neon" in _native.cpu_variants() else "neon"
    monkeypatch.setenv("CTGPU_CPU", foreign)
    with pytest.raises(DeviceError, match=rf"CTGPU_CPU.*{foreign}.*scalar"):
        CpuEngine()


def test_says_so_where_it_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctgpu._native", None)
    monkeypatch.delattr("ctgpu._native", raising=False)
    with pytest.raises(DeviceError, match=r"was not built.*--device reference"):
        CpuEngine()


def reason_without_engine(first: Path, *behind: Path) -> str:
    """What a process says whose ctgpu is the one in `first`, with nothing installed but `behind`.

    Python without ``site`` knows of no editable installation.
    """
    libraries = [path for path in sys.path if path.endswith("-packages")]
    return subprocess.run(
        [
            *(sys.executable, "-S", "-P", "-c"),
            "from ctgpu.engines import available_engines; print(available_engines()['cpu'])",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (first, *behind, *libraries)))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that was never compiled."""
    package = Path(ctgpu.__file__).parent
    uncompiled = shutil.ignore_patterns("__pycache__", "_native*.so", "_native*.dylib")
    checkout = tmp_path / "the checkout's $HOME"
    shutil.copytree(package, checkout / "ctgpu", ignore=uncompiled)
    (checkout / "CMakeLists.txt").touch()
    return checkout


def check_way_out(reason: str, checkout: Path) -> None:
    """That the command which a reason names can be run as it stands, in any folder."""
    (command,) = re.findall(r"`(.*?)`", reason)
    assert shlex.split(command) == ["pip", "install", "--editable", str(checkout)]


def install(folder: Path, *files: str) -> Path:
    """A folder that pip has put a ctgpu of these files in."""
    facts = folder / "ctgpu-0.1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: ctgpu\nVersion: 0.1.0\n")
    (facts / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    return folder


@pytest.mark.slow
def test_a_checkout_that_hides_an_installed_engine_is_named(checkout: Path) -> None:
    installed = install(checkout.parent / "site", "ctgpu/_native.pyi", "ctgpu/_native.abi3.so")
    reason = reason_without_engine(checkout, installed)
    assert f"imported from the checkout in {checkout}" in reason
    assert f"not from {installed / 'ctgpu'}, where it is installed" in reason
    assert "no compiler" not in reason
    check_way_out(reason, checkout)


@pytest.mark.slow
def test_a_checkout_that_was_never_compiled_is_named(checkout: Path) -> None:
    pure = install(checkout.parent / "site", "ctgpu/_native.pyi")
    reason = reason_without_engine(checkout, pure)
    assert f"imported from the checkout in {checkout}" in reason
    assert "where it is installed" not in reason
    check_way_out(reason, checkout)


@pytest.mark.slow
def test_a_pure_installation_says_that_there_was_no_compiler(checkout: Path) -> None:
    (checkout / "CMakeLists.txt").unlink()
    assert "no compiler at install time" in reason_without_engine(checkout)


@pytest.mark.slow
def test_an_engine_that_cannot_be_loaded_says_why(checkout: Path) -> None:
    (checkout / "ctgpu/_native.abi3.so").write_bytes(b"of another machine")
    reason = reason_without_engine(checkout)
    assert "the C++ engine cannot be loaded (" in reason
    assert "_native.abi3.so" in reason
    assert "no compiler" not in reason


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i8", "u8"])
def test_64_bit_integers_are_rounded_once(
    kind: str, order: str, engine: str, request: pytest.FixtureRequest
) -> None:
    # A little above half way between two values of float32: by way of float64, which drops the
    # one, it would go down to the even one, which the rescaling makes 0, and the next one 1.
    low = 2.0**60
    spec = Spec(shape_hwd=(4, 4, 4), hu_window=(-1.0, 1.0))
    voxels = np.full((4, 4, 4), 2**60 + 2**36 + 1, order + kind)
    assert np.unique(voxels.astype(np.float64).astype(np.float32)).tolist() == [low]
    rescale = Rescale(2.0**-37, -(2.0**23), "csv")
    job = make_job(voxels, (0.75, 0.75, 1.5), spec, rescale)
    assert np.unique(run(request.getfixturevalue(engine), job)).tolist() == [1.0]
    voxels[...] = 2**60 + 2**36 - 1
    assert np.unique(run(request.getfixturevalue(engine), job)).tolist() == [0.0]


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u8", ">u8"])
def test_64_bit_integers_give_the_bits_of_32_bit_ones(cpu: CpuEngine, dtype: str) -> None:
    spec = Spec(shape_hwd=(30, 40, 24), layout="DHW")
    same = "<i4" if "i" in dtype else "<u4"
    for voxels in (
        random_voxels(5, (33, 31, 29), same),
        np.asfortranarray(random_voxels(6, (33, 31, 29), same)),
        random_voxels(7, (66, 31, 29), same)[::-2, ::-1],
    ):
        wanted = run(cpu, make_job(voxels, (0.8, 0.9, 1.2), spec))
        got = run(cpu, make_job(voxels.astype(dtype), (0.8, 0.9, 1.2), spec), threads=2)
        assert np.array_equal(got.view(np.uint16), wanted.view(np.uint16))
