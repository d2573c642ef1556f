"""The CUDA kernel's blocks and threads, compiled for the host, against exact arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import engine_cases
import nibabel
import numpy as np
import pytest
from cuda_host import (
    CONTRACTS,
    assert_same_bits,
    blank,
    build,
    expected,
    fields_of,
    fma,
    job,
    launch,
    rounded,
    spec,
    twin_of,
)
from cuda_host import emulation as build_emulation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctgpu.engines import Job, open_engine
from ctgpu.engines.batch import KernelKey, Piece, Span, plan_batches, readable
from ctgpu.engines.packing import Placed, pack, stored_bits
from ctgpu.spec import Dtype, Spec
from ctgpu.testing.voxels import DTYPES, MEMORY_ORDERS, random_voxels
from ctgpu.volume.raw import Rescale
from ctgpu.volume.stored import Stored
from support.compiling import REPOSITORY, compiler

LIBC = ctypes.CDLL(None)
LIBC.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

# The kernel is compiled for the host first.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def emulation() -> ctypes.CDLL:
    return build_emulation()


def emulate(
    library: ctypes.CDLL,
    jobs: Sequence[Job],
    *,
    limit_bytes: int = 1 << 62,
    backwards: bool = False,
) -> int:
    """What `CudaEngine` does with `jobs`, host memory in the place of the device's.

    Sources and outputs are copied through memory of exactly their size, so that a build with
    AddressSanitizer sees every access beside them.  Returns the number of batches.
    """
    batches = list(plan_batches(jobs, limit_bytes))
    for batch in batches:
        run_batch(library, batch, backwards)
    return len(batches)


def run_batch(library: ctypes.CDLL, batch: Sequence[Piece], backwards: bool) -> None:
    placed, sources, outs = [], [], []
    for piece in batch:
        voxels = readable(piece.voxels) if piece.voxels.size else piece.voxels
        out = blank(piece.out_shape, piece.out_dtype)
        address = 0
        if voxels.size:
            span = Span.of(voxels)
            sources.append(copied(span))
            address = sources[-1] + span.origin_bytes
        outs.append(out)
        placed.append(Placed(piece, voxels, address, out.ctypes.data))
    size = len(pack(placed, 0)[0])
    memory = np.empty(size, np.uint8)
    header, launches = pack(placed, memory.ctypes.data)
    memory[:] = header
    for launched in launches:
        launch(library, launched, backwards=backwards)
    for piece, out in zip(batch, outs, strict=True):
        piece.out_view()[...] = out
    for address in sources:
        LIBC.free(ctypes.c_void_p(address))


def copied(span: Span) -> int:
    """The address of a copy, aligned as device memory is, with nothing behind its last byte."""
    held = ctypes.c_void_p()
    assert not LIBC.posix_memalign(ctypes.byref(held), 256, span.size_bytes)
    assert held.value is not None
    ctypes.memmove(held.value, span.address, span.size_bytes)
    return held.value


def check(library: ctypes.CDLL, jobs: Sequence[Job], **options: Any) -> int:
    batches = emulate(library, jobs, **options)
    for made in jobs:
        assert_same_bits(made.out, expected(made))
    return batches


def test_the_oracles_fma_rounds_once() -> None:
    # 1 + 2^-24 + 2^-60: above the middle between two floats, which float64 cannot hold.
    a = np.float32(2.0**-30)
    assert fma(a, a, np.float32(1)) == 1
    exact = fma(np.float32(1 + 2**-12), np.float32(2**-12 * (1 + 2**-12)), np.float32(1))
    product = (1 + 2**-12) * (2**-12 * (1 + 2**-12))
    assert exact == np.float32(math.fsum([product, 1.0]))


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("order", MEMORY_ORDERS)
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4"])
def test_every_memory_order(emulation: ctypes.CDLL, dtype: str, order: str, layout: str) -> None:
    voxels = random_voxels(1, (37, 29, 41), dtype, order)
    made = job(voxels, spec((72, 40, 88), layout), (1.9, 1.2, 2.3))
    check(emulation, [made])
    emulate(emulation, [again := twin_of(made)], backwards=True)
    assert_same_bits(again.out, made.out)


#: Sources whose rows lie together: enlarged with padding; coarse and cropped; not resampled at all;
#: steps that share columns, then ones that have more than one row to each.
FOUR_ROWS = (
    ((36, 29, 41), (72, 40, 88), (1.9, 1.2, 2.3)),
    ((80, 9, 70), (33, 13, 27), (0.48, 1.7, 0.3)),
    ((40, 40, 17), (40, 40, 17), (1.0, 1.0, 1.0)),
    ((44, 50, 9), (200, 90, 20), (2.9, 2.7, 1.0)),
)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["<u1", "<i2", ">u2", "<f4", ">f8"])
def test_four_rows_at_once(emulation: ctypes.CDLL, dtype: str, layout: str) -> None:
    """From either end of a row, clipped in pairs where that is possible, and as it is not."""
    for n, (source, out, spacing_mm) in enumerate(FOUR_ROWS):
        for flipped in ((), (0,), (1, 2)):
            voxels = random_voxels(n, source, dtype, "DWH", flipped=flipped)
            jobs = [
                job(voxels, spec(out, layout), spacing_mm, Rescale(1.0, -24.0, "header")),
                job(voxels, spec(out, layout, hu_window=(-150.5, 250.0)), spacing_mm),
                job(voxels, spec(out, layout, clip="after"), spacing_mm, Rescale(0.5, 3.0, "csv")),
            ]
            check(emulation, jobs)
            assert {key.rows for key in keys_of(jobs)} == {4}
            assert {key.pairs for key in keys_of(jobs)} == {False, dtype == "<i2"}
            emulate(emulation, again := [twin_of(made) for made in jobs], backwards=True)
            for made, twin in zip(jobs, again, strict=True):
                assert_same_bits(twin.out, made.out)


def keys_of(jobs: Sequence[Job]) -> set[KernelKey]:
    """The kernels for jobs whose sources lie as well aligned as a device's memory."""
    keys = set()
    for made in jobs:
        piece = whole(made)
        origin = Span.of(piece.voxels).origin_bytes
        keys |= {one.key for one in pack([Placed(piece, piece.voxels, origin, 0)], 0)[1]}
    return keys


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_type_of_the_output(emulation: ctypes.CDLL, contract: str, layout: str) -> None:
    """In whole vectors with padding, and coarse, cropped, with a rest on every axis."""
    cases = (
        ((37, 29, 41), (72, 40, 88), (1.9, 1.2, 2.3), Rescale()),
        ((80, 9, 70), (33, 13, 27), (0.48, 1.7, 0.3), Rescale(30.5, -9000.0, "header")),
    )
    for clip in ("before", "after"):
        fields = CONTRACTS[contract]
        unclipped = (
            "hu_window" in fields and "percentiles" not in fields and not fields["hu_window"]
        )
        if clip == "after" and unclipped:
            continue
        for n, (source, out, spacing_mm, rescale) in enumerate(cases):
            voxels = random_voxels(n, source, "<i2", MEMORY_ORDERS[n])
            chosen = spec(out, layout, clip=clip, **CONTRACTS[contract])
            made = job(voxels, chosen, spacing_mm, rescale)
            check(emulation, [made])
            emulate(emulation, [again := twin_of(made)], backwards=True)
            assert_same_bits(again.out, made.out)


@pytest.mark.parametrize("stored", get_args(Stored))
def test_padding_is_rounded_as_every_voxel(stored: Stored) -> None:
    values = [0.0, -0.0, 0.1, -1.0, 0.5, 1.5, 2.5, -2.5, 254.5, 300.0, 4e4, -4e4, 7e4, 1e-41]
    values += [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -3e38]
    values += [2.0**-11, -(2.0**-11), 3 * 2.0**-11, -1e-9, 2047.9998, 2.0**-12, -5 * 2.0**-12]
    made = [stored_bits(value, Spec(**fields_of(stored))) for value in values]
    with np.errstate(over="ignore"):
        wanted = rounded(np.float32(values), stored)
    assert made == wanted.view(f"u{wanted.dtype.itemsize}").tolist()


@pytest.mark.parametrize("swap", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(emulation: ctypes.CDLL, dtype: str, swap: str) -> None:
    for order, layout in (("HWD", "HWD"), ("DWH", "HWD"), ("HDW", "DHW")):
        voxels = random_voxels(2, (33, 12, 21), swap + dtype, order)
        rescale = Rescale(0.75, -100.5, "header")
        check(emulation, [job(voxels, spec((32, 16, 24), layout), (1.1, 1.0, 1.3), rescale)])


def test_a_dtype_the_kernel_does_not_know_is_converted(emulation: ctypes.CDLL) -> None:
    check(
        emulation, [job(random_voxels(3, (9, 9, 9), "<f8").astype(np.longdouble), spec((8, 8, 8)))]
    )


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_volumes(emulation: ctypes.CDLL, data: st.DataObject) -> None:
    def one() -> Job:
        draw = data.draw
        shape = draw(st.tuples(*[st.integers(1, 60)] * 3))
        voxels = random_voxels(
            draw(st.integers(0, 99)),
            shape,
            draw(st.sampled_from("<>")) + draw(st.sampled_from(DTYPES)),
            draw(st.sampled_from(MEMORY_ORDERS)),
            flipped=draw(st.sets(st.integers(0, 2))),
            step=draw(st.integers(1, 3)),
        )
        spacing = draw(st.tuples(*[st.floats(0.05, 3.0)] * 3))
        slope = draw(st.sampled_from([1.0, 0.5, -1.25]))
        intercept = draw(st.sampled_from([0.0, -1024.0, 0.1]))
        return job(voxels, chosen, spacing, Rescale(slope, intercept, "header"))

    chosen = spec(
        data.draw(st.tuples(*[st.integers(1, 80)] * 3)),
        data.draw(st.sampled_from(["HWD", "DHW"])),
        clip=data.draw(st.sampled_from(["before", "after"])),
        hu_window=data.draw(st.sampled_from([(-1000.0, 1000.0), (-150.0, 250.0), (0.0, 80.0)])),
        **data.draw(
            st.sampled_from(
                [
                    {"pad_value": -1.0},
                    {"pad_value": 0.1},
                    {"pad_value": -0.0},
                    {"precision": "2^-10", "pad_value": -0.0},
                    {"precision": "2^-11", "standardise": (0.1, 0.3)},
                    {"dtype": "bfloat16", "standardise": (0.1, 0.3)},
                    {"dtype": "int16"},
                    {"dtype": "uint8", "output_range": (0.0, 1.0)},
                ]
            )
        ),
    )
    jobs = [one() for _ in range(data.draw(st.integers(1, 3)))]
    largest = max(piece.device_bytes for made in jobs for piece in [whole(made)])
    limit = data.draw(st.sampled_from([1 << 62, largest, max(largest // 2, 1 << 18)]))
    check(emulation, jobs, limit_bytes=limit, backwards=data.draw(st.booleans()))


def whole(made: Job) -> Piece:
    return Piece.of(made, 0, made.plan.axes[2].n_out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint8"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_volume_is_split_where_it_does_not_fit(
    emulation: ctypes.CDLL, layout: str, dtype: Dtype
) -> None:
    chosen = spec((48, 48, 100), layout, dtype=dtype)
    made = job(random_voxels(5, (40, 40, 60)), chosen, (1.0, 1.0, 1.4))
    assert whole(made).out_bytes == chosen.size_bytes == made.out.nbytes
    assert check(emulation, [made]) == 1
    again = twin_of(made)
    assert check(emulation, [again], limit_bytes=whole(made).device_bytes // 3) > 3


def test_broadcast_and_overlapping_views(emulation: ctypes.CDLL) -> None:
    plane = random_voxels(7, (30, 20, 1))
    check(emulation, [job(np.broadcast_to(plane, (30, 20, 11)), spec((32, 24, 16)))])
    line = np.arange(-500, 500, dtype=np.int16)
    single = np.lib.stride_tricks.as_strided(plane, (30, 20, 1), (*plane.strides[:2], 2**50))
    check(emulation, [job(single, spec((32, 24, 16)))])
    windows = np.lib.stride_tricks.as_strided(line, (12, 14, 16), (2 * 30, 2 * 7, 2))
    check(emulation, [job(windows, spec((16, 16, 16)))])


def test_voxels_off_their_alignment(emulation: ctypes.CDLL) -> None:
    voxels = random_voxels(8, (11, 12, 13), "<i4")
    packed = np.zeros(voxels.shape, np.dtype([("tag", "u1"), ("value", "<i4")]))
    packed["value"] = voxels
    check(emulation, [job(packed["value"], spec((16, 16, 16)))])
    shifted = np.frombuffer(b"\0" + voxels.tobytes(), np.uint8)[1:].view("<i4")
    check(emulation, [job(shifted.reshape(voxels.shape), spec((16, 16, 16)))])


def test_subnormal_voxels_keep_their_sign(emulation: ctypes.CDLL) -> None:
    voxels = random_voxels(9, (8, 9, 10), "<f4") * np.float32(1e-42)
    for clip in ("before", "after"):
        check(emulation, [job(voxels, spec((16, 16, 16), clip=clip, hu_window=(-1000, 1000)))])


def test_real_ct(emulation: ctypes.CDLL, real_ct: Path) -> None:
    image = nibabel.load(real_ct / "lidcidri0001_small.nii.gz")
    voxels = np.asanyarray(image.dataobj.get_unscaled())
    spacing_mm = tuple(float(s) for s in image.header.get_zooms())
    check(emulation, [job(voxels, Spec(shape_hwd=(200, 184, 96)), spacing_mm)])


def test_the_same_bits_as_the_cpu_engine(emulation: ctypes.CDLL) -> None:
    engine = open_engine("cpu")
    for seed, order in enumerate(MEMORY_ORDERS):
        for layout in ("HWD", "DHW"):
            voxels = random_voxels(seed, (70, 66, 50), "<i2", order)
            made = job(voxels, spec((96, 80, 64), layout), (1.3, 0.7, 1.1))
            emulate(emulation, [made])
            engine.run([twin := twin_of(made)])
            assert_same_bits(made.out, twin.out)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(made=engine_cases.jobs())
def test_the_bits_of_the_cpu_engine_for_random_specs(emulation: ctypes.CDLL, made: Job) -> None:
    emulate(emulation, [made])
    open_engine("cpu").run([twin := twin_of(made)])
    assert_same_bits(made.out, twin.out)


def test_no_access_beside_any_memory() -> None:
    """The same cases under AddressSanitizer and UBSan: a memcheck without a GPU."""
    library = build("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    runtime = subprocess.run(
        [compiler() or "c++", "-print-file-name=libasan.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    ran = subprocess.run(
        [sys.executable, __file__, str(library)],
        env={
            **os.environ,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout == "32 volumes\n"


def sanitized(library: ctypes.CDLL) -> int:
    """Every order, layout and contract, at sizes that leave a rest on every axis."""
    cases = [
        ((37, 29, 41), (61, 43, 59), (1.0, 1.0, 1.0)),
        ((80, 9, 70), (33, 16, 24), (0.48, 1.7, 0.3)),
    ]
    done = 0
    for source, out, spacing_mm in cases:
        for order in MEMORY_ORDERS:
            for layout in ("HWD", "DHW"):
                voxels = random_voxels(done, source, "<i2", order, flipped=(done % 3,))
                contract = list(CONTRACTS.values())[done % len(CONTRACTS)]
                check(library, [job(voxels, spec(out, layout, **contract), spacing_mm)])
                done += 1
    for source, out, spacing_mm in FOUR_ROWS:
        for layout in ("HWD", "DHW"):
            dtype, flipped = ("<i2", ">f4", "<u1", "<f8")[done % 4], (done % 3,)
            voxels = random_voxels(done, source, dtype, "DWH", flipped=flipped)
            check(library, [job(voxels, spec(out, layout), spacing_mm)])
            done += 1
    return done


if __name__ == "__main__":
    print(sanitized(ctypes.CDLL(sys.argv[1])), "volumes")


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u8", ">u8"])
def test_64_bit_integers_give_the_bits_of_the_cpu_engine(
    emulation: ctypes.CDLL, dtype: str
) -> None:
    random = np.random.default_rng(1)
    for bits, order, rescale in itertools.product(
        (11, 40, 62), ("C", "F"), (Rescale(), Rescale(2.0**-30, -100.5, "csv"))
    ):
        low = 0 if "u" in dtype else -(2**bits)
        voxels = np.asarray(random.integers(low, 2**bits, (33, 29, 41)).astype(dtype), order=order)
        made = job(voxels, spec((32, 24, 40), "HWD"), (1.1, 0.9, 1.3), rescale)
        emulate(emulation, [made])
        with contextlib.closing(open_engine("cpu")) as cpu:
            cpu.run([twin := twin_of(made)])
        assert_same_bits(made.out, twin.out)
