"""One arithmetic: every variant, any number of threads and any strides give the same bits."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_cases import DTYPES, jobs, make_job, random_voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgpu import _native
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.spec import Spec

REPOSITORY = Path(__file__).resolve().parents[2]


def bits_of(job: Job, variant: str, threads: int) -> npt.NDArray[np.uint16]:
    fresh = Job(job.voxels, job.rescale, job.plan, np.full_like(job.out, np.nan))
    preprocess(_native, fresh, variant=variant, threads=threads)
    return fresh.out.view(np.uint16)


def test_scalar_is_always_there() -> None:
    assert _native.cpu_variants()[-1] == "scalar"
    assert _native.cpu_variant("") == _native.cpu_variants()[0]


@settings(deadline=None, max_examples=300)
@given(jobs(), st.integers(2, 5))
def test_variants_and_threads_give_the_same_bits(job: Job, threads: int) -> None:
    wanted = bits_of(job, "scalar", 1)
    assert np.isfinite(wanted.view(np.float16)).all()
    for variant in _native.cpu_variants():
        for count in (1, threads):
            assert np.array_equal(bits_of(job, variant, count), wanted), (variant, count)


@settings(deadline=None, max_examples=100)
@given(jobs())
def test_strides_and_byte_order_do_not_matter(job: Job) -> None:
    plain = np.ascontiguousarray(job.voxels).astype(job.voxels.dtype.newbyteorder("="))
    wanted = bits_of(Job(plain, job.rescale, job.plan, job.out), "", 1)
    for variant in _native.cpu_variants():
        assert np.array_equal(bits_of(job, variant, 1), wanted), variant


# Long axes are cut into tiles: rows along H, columns along W for threads, slices along D.
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "out"),
    [((1300, 6, 5), (1210, 5, 7)), ((5, 700, 6), (7, 650, 9)), ((6, 5, 800), (5, 6, 790))],
)
def test_tiles_leave_no_seams(
    shape: tuple[int, ...], out: tuple[int, int, int], order: Any, layout: Any
) -> None:
    voxels = np.asarray(random_voxels(1, shape, "int16"), order=order)
    job = make_job(voxels, (0.74, 0.72, 1.49), Spec(shape_hwd=out, layout=layout))
    wanted = bits_of(job, "scalar", 1)
    for variant in _native.cpu_variants():
        for threads in (1, 2, 7):
            assert np.array_equal(bits_of(job, variant, threads), wanted)


# Every exponent, with mantissas at, just below and just above every rounding boundary.
def half_test_values() -> npt.NDArray[np.float32]:
    exponents = np.arange(256, dtype=np.uint32)[:, None] << 23
    random = np.random.default_rng(0)
    mantissas = np.concatenate(
        [
            np.arange(0, 1 << 23, 1 << 12, dtype=np.uint32),
            np.arange(1, 1 << 23, 1 << 12, dtype=np.uint32),
            np.arange(4095, 1 << 23, 1 << 12, dtype=np.uint32),
            random.integers(0, 1 << 23, 4096, np.uint32),
        ]
    )
    positive = (exponents | mantissas).ravel().view(np.float32)
    positive = positive[np.isfinite(positive)]
    return np.concatenate([positive, -positive, np.float32([np.inf, -np.inf])])


@pytest.mark.parametrize("variant", _native.cpu_variants())
def test_to_half_rounds_as_ieee_says(variant: str) -> None:
    values = half_test_values()
    got = np.empty(len(values), np.uint16)
    _native.to_half(values, got, variant)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).view(np.uint16)
    assert np.array_equal(got, wanted)


def test_to_half_keeps_nans_as_the_hardware_does() -> None:
    values = np.array([0x7F800001, 0x7FC00000, 0xFFABCDEF, 0x7FFFFFFF], np.uint32)
    outputs = []
    for variant in _native.cpu_variants():
        # Enough of them for whole vectors.
        got = np.empty(32, np.uint16)
        _native.to_half(np.tile(values, 8).view(np.float32), got, variant)
        outputs.append(got)
        assert np.isnan(got.view(np.float16)).all()
    assert all(np.array_equal(got, outputs[0]) for got in outputs)


@pytest.fixture(scope="module")
def neon_test_bits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs kernels/cpu/test_bits.cpp for AArch64, natively or emulated."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    cmake = shutil.which("cmake")
    if compiler is None or emulator is None or cmake is None:
        pytest.skip("needs cmake, g++-aarch64-linux-gnu and qemu-user")
    build = tmp_path_factory.mktemp("neon")
    configure = [
        cmake,
        "-S",
        str(REPOSITORY),
        "-B",
        str(build),
        "-DCTGPU_PYTHON=OFF",
        "-DCTGPU_TESTS=ON",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    ]
    for command in (configure, [cmake, "--build", str(build), "--target", "test_bits"]):
        subprocess.run(command, check=True, capture_output=True)
    return [emulator, str(build / "test_bits")]


def write_case(path: Path, job: Job) -> None:
    """The file that read_case of kernels/cpu/test_bits.cpp reads, for contiguous voxels."""
    spec, voxels = job.plan.spec, job.voxels
    memory = voxels.tobytes(order="A")
    dtype = DTYPES.index(voxels.dtype.newbyteorder("=").name)
    scale, offset = spec.scale_offset
    parts = [
        struct.pack(
            "=9q",
            dtype,
            not voxels.dtype.isnative,
            spec.layout == "DHW",
            not job.rescale.is_identity,
            spec.clip == "before",
            *voxels.strides,
            0,
        ),
        struct.pack(
            "=7f",
            job.rescale.slope,
            job.rescale.intercept,
            *spec.hu_window,
            scale,
            offset,
            spec.pad_value,
        ),
    ]
    for axis in job.plan.axes:
        parts.append(struct.pack("=3i", axis.n_valid, axis.n_out, axis.pad_before))
        parts += [axis.i0.tobytes(), axis.i1.tobytes(), axis.w.tobytes()]
    parts += [struct.pack("=i", len(memory)), memory]
    path.write_bytes(b"".join(parts))


@pytest.mark.slow
def test_neon_gives_the_same_bits(neon_test_bits: list[str], tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for number in range(40):
        shape = tuple(random.integers(1, 40, 3).tolist())
        out = tuple(random.integers(1, 45, 3).tolist())
        spec = Spec(
            shape_hwd=(out[0], out[1], out[2]),
            layout=("HWD", "DHW")[number % 2],
            clip=("before", "after")[number // 2 % 2],
        )
        voxels = random_voxels(number, shape, DTYPES[number % len(DTYPES)])
        voxels = np.asarray(voxels, order="CF"[number // 4 % 2])
        spacing = tuple(np.array((0.75, 0.75, 1.5)) * 2 ** random.uniform(-1.5, 1.5, 3))
        job = make_job(voxels, (spacing[0], spacing[1], spacing[2]), spec)
        case, result = tmp_path / "case", tmp_path / "result"
        write_case(case, job)
        subprocess.run([*neon_test_bits, case, result, "neon"], check=True)
        got = np.fromfile(result, np.uint16).reshape(job.out.shape)
        assert np.array_equal(got, bits_of(job, "scalar", 1)), number


@pytest.mark.slow
def test_neon_agrees_with_scalar_on_odd_strides(neon_test_bits: list[str]) -> None:
    subprocess.run([*neon_test_bits, "--random", "200", "11"], check=True, capture_output=True)
