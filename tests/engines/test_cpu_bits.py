"""One arithmetic: every variant, any number of threads and any strides give the same bits."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from cuda_host import expected, fields_of, rounded
from engine_cases import DTYPES, jobs, make_job, poisoned, random_voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgpu import _native
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.spec import Layout, Precision, Spec
from ctgpu.volume.stored import Stored, stored_as
from support.compiling import built_for_arm


def bits_of(job: Job, variant: str, threads: int, poison: int = 0xFF) -> npt.NDArray[Any]:
    fresh = Job(job.voxels, job.rescale, job.plan, poisoned(job.plan.spec, poison))
    preprocess(_native, fresh, variant=variant, threads=threads)
    return fresh.out.view(f"u{fresh.out.itemsize}")


def test_scalar_is_always_there() -> None:
    assert _native.cpu_variants()[-1] == "scalar"
    assert _native.cpu_variant("") == _native.cpu_variants()[0]


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(jobs(), st.integers(2, 5))
def test_variants_and_threads_give_the_same_bits(job: Job, threads: int) -> None:
    wanted = bits_of(job, "scalar", 1)
    for variant in _native.cpu_variants():
        for count in (1, threads):
            # Into other bytes, so that it shows where nothing is written.
            got = bits_of(job, variant, count, poison=0x55)
            assert np.array_equal(got, wanted), (variant, count)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(jobs())
def test_strides_and_byte_order_do_not_matter(job: Job) -> None:
    plain = np.ascontiguousarray(job.voxels).astype(job.voxels.dtype.newbyteorder("="))
    wanted = bits_of(Job(plain, job.rescale, job.plan, job.out), "", 1)
    for variant in _native.cpu_variants():
        assert np.array_equal(bits_of(job, variant, 1), wanted), variant


# Long axes are cut into tiles: rows along H, columns along W for threads, slices along D.  Lines of
# the cache are no whole number of rows of the output, and longer in voxels of one byte.
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("flipped", [False, True], ids=["as it lies", "flipped"])
@pytest.mark.parametrize("order", ["HWD", "DHW", "DWH"])
@pytest.mark.parametrize(
    ("shape", "out"),
    [((1300, 6, 5), (1210, 5, 7)), ((5, 700, 6), (7, 650, 9)), ((6, 5, 800), (5, 6, 790))],
)
def test_tiles_leave_no_seams(
    shape: tuple[int, ...],
    out: tuple[int, int, int],
    order: str,
    flipped: bool,
    layout: Any,
    dtype: Any,
) -> None:
    voxels = in_memory_order(random_voxels(1, shape, "int16"), order)
    spec = Spec(shape_hwd=out, layout=layout, dtype=dtype)
    job = make_job(voxels[::-1, ::-1, ::-1] if flipped else voxels, (0.74, 0.72, 1.49), spec)
    wanted = bits_of(job, "scalar", 1)
    for variant in _native.cpu_variants():
        for threads in (1, 2, 7):
            assert np.array_equal(bits_of(job, variant, threads), wanted)


def in_memory_order(voxels: npt.NDArray[Any], order: str) -> npt.NDArray[Any]:
    """The same voxels with their axes in this order of memory, the last one fastest."""
    axes = ["HWD".index(axis) for axis in order]
    return np.ascontiguousarray(voxels.transpose(axes)).transpose(np.argsort(axes))


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


# Beside them halves, and the ends of the whole numbers and what lies just beyond.
def whole_test_values() -> npt.NDArray[np.float32]:
    ends = np.float32([-32768.5, -32768, -1.5, -0.5, 0, 0.5, 254.5, 255, 255.5, 32766.5, 32767.5])
    ends = np.concatenate([ends, np.float32([2**15, -(2**31), 2**31, 2**32, 3e38, -3e38])])
    halves = np.arange(-600, 600, dtype=np.float32) / 2
    up, down = (np.nextafter(ends, np.float32(to)) for to in (np.inf, -np.inf))
    return np.concatenate([half_test_values(), halves, ends, up, down])


@pytest.mark.parametrize("variant", _native.cpu_variants())
@pytest.mark.parametrize("stored", get_args(Stored))
def test_rounds_to_the_nearest_and_of_two_to_the_even(stored: Stored, variant: str) -> None:
    values = whole_test_values()
    if stored == "bfloat16":
        torch = pytest.importorskip("torch")
        wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    else:
        with np.errstate(over="ignore"):
            wanted = rounded(values, stored)
    wanted = wanted.view(f"u{wanted.itemsize}")
    got = np.empty_like(wanted)
    _native.round_to(stored, values, got, variant)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("precision", ["2^-10", "2^-11"])
@pytest.mark.parametrize(
    "contract", [{}, {"output_range": (-3.0, 5.0)}, {"standardise": (0.1, 0.3)}]
)
def test_a_precision_is_that_of_numpy(
    contract: dict[str, Any], precision: Precision, layout: Layout
) -> None:
    """Every variant, against one NumPy operation after the other: noise that is clipped at both
    ends, padded on two axes; and again made of what it gave."""
    voxels = random_voxels(3, (37, 29, 41), "int16")
    spec = Spec(shape_hwd=(72, 24, 45), layout=layout, precision=precision, **contract)
    job = make_job(voxels, (1.0, 0.8, 1.7), spec)
    wanted, step = expected(job), spec.precision_step
    assert not np.fmod(wanted.astype(np.float32), step).any()
    assert not np.signbit(wanted[wanted == 0]).any()
    for variant in _native.cpu_variants():
        found = bits_of(job, variant, 2)
        assert np.array_equal(found, wanted.view(np.uint16)), variant
        again = np.empty_like(found)
        stored = stored_as(spec)
        numbers = found.view(np.float16).astype(np.float32).ravel()
        _native.round_to(stored, numbers, again.reshape(-1), variant)
        assert np.array_equal(again, found)


def test_refuses_memory_of_another_size() -> None:
    for dtype, memory in (("uint8", np.uint16), ("int16", np.uint8), ("float16", np.float16)):
        with pytest.raises(ValueError, match="out is not unsigned"):
            _native.round_to(dtype, np.zeros(4, np.float32), np.zeros(4, memory), "")
    with pytest.raises(ValueError, match="float64"):
        _native.round_to("float64", np.zeros(4, np.float32), np.zeros(4, np.uint16), "")


def test_to_half_keeps_nans_as_the_hardware_does() -> None:
    values = np.array([0x7F800001, 0x7FC00000, 0xFFABCDEF, 0x7FFFFFFF], np.uint32)
    outputs = []
    for variant in _native.cpu_variants():
        # Enough of them for whole vectors.
        got = np.empty(32, np.uint16)
        _native.round_to("float16", np.tile(values, 8).view(np.float32), got, variant)
        outputs.append(got)
        assert np.isnan(got.view(np.float16)).all()
    assert all(np.array_equal(got, outputs[0]) for got in outputs)


@pytest.fixture(scope="module")
def neon_test_bits() -> list[str]:
    """The command that runs kernels/cpu/test_bits.cpp for AArch64, emulated."""
    return built_for_arm("test_bits")


def write_case(path: Path, job: Job) -> None:
    """The file that read_case of kernels/cpu/test_bits.cpp reads, for voxels without gaps."""
    spec, values, voxels = job.plan.spec, job.plan.values, job.voxels
    upwards = voxels[tuple(slice(None, None, -1 if s < 0 else 1) for s in voxels.strides)]
    memory = upwards.ravel(order="K").tobytes()
    origin = sum(-s * (n - 1) for s, n in zip(voxels.strides, voxels.shape, strict=True) if s < 0)
    parts = [
        struct.pack(
            "=10q",
            DTYPES.index(voxels.dtype.newbyteorder("=").name),
            not voxels.dtype.isnative,
            spec.layout == "DHW",
            get_args(Stored).index(stored_as(spec)),
            not job.rescale.is_identity,
            spec.clip == "before",
            *voxels.strides,
            origin,
        ),
        struct.pack(
            "=7f",
            job.rescale.slope,
            job.rescale.intercept,
            values.clip_lo,
            values.clip_hi,
            values.scale,
            values.offset,
            values.pad,
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
            **fields_of(get_args(Stored)[number // 3 % 6]),
        )
        voxels = random_voxels(number, shape, DTYPES[number % len(DTYPES)])
        voxels = in_memory_order(voxels, ("HWD", "DWH", "DHW")[number // 4 % 3])
        if number % 5 == 0:
            voxels = voxels[::-1, ::-1, ::-1]
        spacing = tuple(np.array((0.75, 0.75, 1.5)) * 2 ** random.uniform(-1.5, 1.5, 3))
        job = make_job(voxels, (spacing[0], spacing[1], spacing[2]), spec)
        case, result = tmp_path / "case", tmp_path / "result"
        write_case(case, job)
        subprocess.run([*neon_test_bits, case, result, "neon"], check=True)
        wanted = bits_of(job, "scalar", 1)
        got = np.fromfile(result, wanted.dtype).reshape(wanted.shape)
        assert np.array_equal(got, wanted), number


@pytest.mark.slow
def test_neon_agrees_with_scalar_on_odd_strides(neon_test_bits: list[str]) -> None:
    subprocess.run([*neon_test_bits, "--random", "200", "11"], check=True, capture_output=True)
