"""The PTX that NVRTC makes of the CUDA kernel, run with every access checked.

``test_cuda_tiles.py`` runs the kernel's source compiled for the host; this runs what a GPU gets.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import engine_cases
import numpy as np
import pytest
from cuda_host import CONTRACTS, assert_same_bits, expected, fields_of, job, spec, twin_of
from hypothesis import given, settings

from ctgpu.engines import Job, nvrtc, open_engine
from ctgpu.engines.batch import THREADS, VOXEL_TYPES, KernelKey, Piece, Span, plan_batches, readable
from ctgpu.engines.nvrtc import KERNEL_NAME, kernel_options, kernel_source
from ctgpu.engines.packing import Placed, pack
from ctgpu.spec import Spec
from ctgpu.testing.voxels import random_voxels
from ctgpu.volume.raw import Rescale
from ctgpu.volume.stored import Stored, stored_as
from support.nvrtc import CUPY_OPTIONS, Nvrtc
from support.ptx import Buffer, Counts, Kernel, KernelFault

# The kernel is compiled, and then run lane by lane.
pytestmark = pytest.mark.slow

#: NVRTC's major version and the GPUs that it compiles for: the newest, and the oldest that is
#: supported, where two halves are not converted at once.
TARGETS = (("13", 90), ("12", 75))

#: Source, output and spacing: enlarged with padding and in whole vectors; then coarse, with rows
#: that are skipped, cropped, and in no whole vectors.  Both leave a rest on every axis.  The rows
#: of a source are so many more than in these, where four of them are not to lie together.
GEOMETRIES = (
    ((36, 29, 41), (72, 40, 88), (1.9, 1.2, 2.3)),
    ((80, 9, 70), (33, 13, 27), (0.48, 1.7, 0.3)),
)
MORE_ROWS = 1

#: The contiguous axis of a source, by the letters of its memory order.
ORDERS = {0: "DWH", 1: "HDW", 2: "WHD"}


@functools.cache
def kernel_of(key: KernelKey, target: tuple[str, int] = TARGETS[0]) -> Kernel:
    major, architecture = target
    options = (f"-arch=compute_{architecture}", *kernel_options(key), *CUPY_OPTIONS)
    return Kernel(Nvrtc.of_version(major).compile(kernel_source(), options), KERNEL_NAME)


def run(
    jobs: Sequence[Job], target: tuple[str, int] = TARGETS[0], *, limit_bytes: int = 1 << 62
) -> tuple[set[KernelKey], list[Counts]]:
    """What `CudaEngine` does with `jobs`: the kernels that it took, and what they executed."""
    keys: set[KernelKey] = set()
    counts = []
    for batch in plan_batches(jobs, limit_bytes):
        for key, counted in run_batch(batch, target):
            keys.add(key)
            counts.append(counted)
    return keys, counts


def run_batch(batch: Sequence[Piece], target: tuple[str, int]) -> list[tuple[KernelKey, Counts]]:
    placed, buffers, outs = [], [], []
    for n, piece in enumerate(batch):
        voxels, address = piece.voxels, 0
        out = Buffer.blank(piece.out_shape, piece.out_dtype, f"output {n}")
        if voxels.size:
            voxels = readable(voxels)
            span = Span.of(voxels)
            source = Buffer(bytes_of(span), writable=False, name=f"source {n}")
            address = source.address + span.origin_bytes
            buffers.append(source)
        outs.append(out)
        placed.append(Placed(piece, voxels, address, out.address))
    memory = np.empty(len(pack(placed, 0)[0]), np.uint8)
    header, launches = pack(placed, memory.ctypes.data)
    memory[:] = header
    reach = [Buffer(memory, writable=False, name="header"), *buffers, *outs]
    done = []
    for launch in launches:
        kernel = kernel_of(launch.key, target)
        done.append((launch.key, kernel.launch(launch.grid, THREADS, [launch.batch], reach)))
    for piece, out in zip(batch, outs, strict=True):
        assert out.is_written
        piece.out_view()[...] = out.array
    return done


def bytes_of(span: Span) -> np.ndarray:
    """A copy of just these bytes, aligned as device memory is."""
    held = np.empty(span.size_bytes + 256, np.uint8)
    skip = -held.ctypes.data % 256
    part = held[skip : skip + span.size_bytes]
    part[:] = np.frombuffer(ctypes.string_at(span.address, span.size_bytes), np.uint8)
    return part


def check(jobs: Sequence[Job]) -> None:
    for made in jobs:
        assert_same_bits(made.out, expected(made))


def jobs_for(
    key: KernelKey,
    rescale: Rescale = Rescale(0.75, -100.5, "header"),  # noqa: B008
    **others: Any,
) -> list[Job]:
    """Two volumes that the engine gives to that kernel, in one launch."""
    dtype = (">" if key.swap else "<") + key.voxel
    more = MORE_ROWS if key.rows == 1 else 0
    if key.pairs:  # what only adds a whole number leaves them to be clipped
        rescale = Rescale(1.0, -24.0, "header")
    if not key.rescales:
        rescale = Rescale()
    return [
        job(
            random_voxels(n, (h + more, *wd), dtype, ORDERS[key.fast], flipped=(n,)),
            spec(
                out,
                "HWD" if key.out == 2 else "DHW",
                clip="before" if key.clips_before else "after",
                **(fields_of(key.stored) | others),
            ),
            spacing_mm,
            rescale,
        )
        for n, ((h, *wd), out, spacing_mm) in enumerate(GEOMETRIES)
    ]


def all_keys() -> list[KernelKey]:
    """Every kernel to float16; to the other types those of int16, as what is stored does not depend
    on the type that was read."""
    general = [
        KernelKey(voxel, swap, fast, out, rescales, clips_before, stored)
        for stored, voxel, swap, fast, out, rescales, clips_before in itertools.product(
            get_args(Stored),
            VOXEL_TYPES,
            (False, True),
            (0, 1, 2),
            (1, 2),
            (False, True),
            (False, True),
        )
        if not (swap and voxel[1:] == "1")  # single bytes have no other order
        if stored == "float16" or (voxel == "i2" and not swap)
    ]
    in_four_rows = [replace(key, rows=4) for key in general if key.fast == 0]
    in_pairs = [
        replace(key, pairs=True)
        for key in in_four_rows
        if key.voxel == "i2" and not key.swap and key.clips_before
    ]
    # Without a rescale, the volumes of `jobs_for` are clipped in pairs wherever they can be.
    unpaired = {replace(key, pairs=False) for key in in_pairs if not key.rescales}
    return [*general, *(key for key in in_four_rows if key not in unpaired), *in_pairs]


def usual_of(out: int, stored: Stored = "float16") -> KernelKey:
    """What nearly every build needs, to another layout or type."""
    steps = {"rescales": False, "clips_before": True}
    return KernelKey("i2", False, 0, out, **steps, stored=stored, rows=4, pairs=True)


def usual_keys() -> list[KernelKey]:
    """Every voxel type and byte order once, every pair of axes, every choice of steps; what nearly
    every build needs; and every voxel type in four rows."""
    usual = usual_of(2)
    steps = itertools.cycle(itertools.product((0, 1, 2), (1, 2), (True, False)))
    keys = []
    for n, (voxel, swap) in enumerate(itertools.product(VOXEL_TYPES, (False, True))):
        fast, out, rescales = next(steps)
        if not (swap and voxel[1:] == "1"):
            keys.append(KernelKey(voxel, swap, fast, out, rescales, n % 3 > 0))
    four_rows = [
        KernelKey(
            voxel,
            swap=n % 2 > 0 and voxel[1:] != "1",
            fast=0,
            out=1 + n % 2,
            rescales=n % 3 > 0,
            clips_before=n % 4 > 1,
            rows=4,
        )
        for n, voxel in enumerate(VOXEL_TYPES)
    ]
    return [usual, replace(usual, rescales=True), *keys, *four_rows]


def name_of(key: KernelKey) -> str:
    letters = "HWD"
    order = ">" if key.swap else "<"
    steps = ("rescaled " if key.rescales else "") + ("before" if key.clips_before else "after")
    axes = f"{letters[key.fast]} to {letters[key.out]}"
    stored = "" if key.stored == "float16" else f" to {key.stored}"
    how = (" in four rows" if key.rows == 4 else "") + (" and pairs" if key.pairs else "")
    return f"{order}{key.voxel} {axes} {steps}{stored}{how}"


@pytest.mark.parametrize("key", usual_keys(), ids=name_of)
def test_the_usual_kernels_give_exact_arithmetic(key: KernelKey) -> None:
    jobs = jobs_for(key)
    assert run(jobs)[0] == {key}
    check(jobs)


@pytest.mark.parametrize("contract", [name for name in CONTRACTS if name != "float16"])
@pytest.mark.parametrize("out", [1, 2])
def test_every_contract_is_exact(out: int, contract: str) -> None:
    """With infinite limits, padding within the range, and numbers beyond the type."""
    others = CONTRACTS[contract]
    stored = stored_as(Spec(**others))
    key = replace(usual_of(out, stored), rescales=True, pairs=False)
    jobs = jobs_for(key, Rescale(30.5, -9000.0, "header"), **others)
    assert run(jobs)[0] == {key}
    check(jobs)


@pytest.mark.parametrize("stored", get_args(Stored))
@pytest.mark.parametrize("out", [1, 2])
def test_the_oldest_gpu_and_the_older_nvrtc_give_the_same(out: int, stored: Stored) -> None:
    key = usual_of(out, stored)
    keys = {key, replace(key, rows=1, pairs=False)} if stored == "float16" else {key}
    jobs = [made for one in keys for made in jobs_for(one)]
    assert run(jobs, TARGETS[1])[0] == keys
    check(jobs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"NVRTC {target[0]}, sm_{target[1]}")
@pytest.mark.parametrize("key", all_keys(), ids=name_of)
def test_every_kernel_gives_exact_arithmetic(key: KernelKey, target: tuple[str, int]) -> None:
    jobs = jobs_for(key)
    assert run(jobs, target)[0] == {key}
    check(jobs)
    kernel_of.cache_clear()  # a thousand of them are not to be held


# Nearly every example takes a kernel of its own, to be compiled first.
@settings(max_examples=8, deadline=None, derandomize=True)
@given(made=engine_cases.jobs())
def test_some_random_specs_have_the_bits_of_the_cpu_engine(made: Job) -> None:
    run([made])
    open_engine("cpu").run([twin := twin_of(made)])
    assert_same_bits(made.out, twin.out)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None, derandomize=True)
@given(made=engine_cases.jobs())
def test_random_specs_have_the_bits_of_the_cpu_engine(made: Job) -> None:
    run([made])
    open_engine("cpu").run([twin := twin_of(made)])
    assert_same_bits(made.out, twin.out)
    kernel_of.cache_clear()


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_full_volume_has_the_bits_of_the_cpu_engine(layout: str) -> None:
    voxels = random_voxels(4, (512, 512, 300), "<i2", "DWH")
    made = job(voxels, Spec(layout=layout), (0.7, 0.7, 1.25))
    _, (counts,) = run([made])
    open_engine("cpu").run([twin := twin_of(made)])
    assert_same_bits(made.out, twin.out)
    # All of it in whole vectors, each written once.
    assert counts.threads["st.global.v4.u32"] == made.out.size // 8
    print(f"{layout}: {sum(counts.threads.values()) / made.out.size:.1f} PTX instructions a voxel")


def test_a_volume_in_slabs_and_a_volume_of_padding() -> None:
    made = job(random_voxels(5, (40, 40, 60)), spec((48, 48, 100)), (1.0, 1.0, 1.4))
    piece = Piece.of(made, 0, 100)
    _, counts = run([made], limit_bytes=piece.device_bytes // 3)
    assert len(counts) > 3
    check([made])
    small = job(random_voxels(6, (1, 1, 1)), spec((40, 24, 72)))
    run([small])
    check([small])


def test_views_that_start_within_their_memory() -> None:
    """Negative strides, gaps and broadcast axes: addresses on both sides of voxel (0, 0, 0)."""
    jobs = [
        job(
            random_voxels(7, (33, 20, 27), "<i2", "DWH", flipped=(0, 1, 2), step=2),
            spec((40, 24, 32)),
        ),
        job(np.broadcast_to(random_voxels(8, (30, 20, 1)), (30, 20, 11)), spec((32, 24, 16))),
    ]
    run(jobs)
    check(jobs)


def test_subnormal_voxels_are_kept_though_cupy_asks_to_flush_them() -> None:
    voxels = random_voxels(9, (8, 9, 10), "<f4") * np.float32(1e-42)
    jobs = [
        job(
            voxels,
            spec((16, 16, 16), clip=clip, hu_window=(-1.0, 1.0)),
            rescale=Rescale(1e38, 0.0, "header"),
        )
        for clip in ("before", "after")
    ]
    run(jobs)
    check(jobs)
    assert np.count_nonzero(jobs[0].out) > 500


@pytest.mark.parametrize("clip", ["before", "after"])
@pytest.mark.parametrize(
    ("hu_window", "output_range"), [((0.0, 900.0), (0.0, 1.0)), ((-900.0, -0.0), (-1.0, 0.0))]
)
def test_the_sign_of_a_zero_that_voxels_are_clipped_to_is_lost(
    hu_window: Any, output_range: Any, clip: str
) -> None:
    """A GPU clips -0.0 to 0.0, or 0.0 to -0.0, where a CPU leaves it: neither may show."""
    voxels = -np.abs(random_voxels(3, (16, 16, 16), "<f4"))
    voxels[::2, ::2, ::4], voxels[::2, ::2, 2::4] = -0.0, 0.0
    others = {"hu_window": hu_window, "output_range": output_range, "clip": clip}
    made = job(voxels, spec((16, 16, 16), **others))
    run([made])
    check([made])
    open_engine("cpu").run([twin := twin_of(made)])
    assert_same_bits(made.out, twin.out)
    assert np.count_nonzero(made.out == 0) >= 512


def test_the_counts_are_those_of_the_work() -> None:
    made = jobs_for(usual_of(2))[0]
    _, (counts,) = run([made])
    assert counts.threads["st.global.v4.u32"] == made.out.size // 8
    h, w, d = made.plan.axes
    sampled = h.n_valid * w.n_valid * d.n_valid
    # Eight voxels that are sampled or lie beside one: at least a blend along H for each.
    assert counts.threads["fma.rn.f32"] > 2 * sampled
    assert counts.warps["bar.sync"] % (THREADS // 32) == 0
    assert counts.threads["bar.sync"] == 32 * counts.warps["bar.sync"]


# ---- Kernels with a mistake --------------------------------------------------------------------

#: File, what stands there, what is put there instead, and what that is found as.
MISTAKES = {
    "no barrier": ("preprocess.cu", "__syncthreads();", "", "race"),
    "a barrier for some": (
        "preprocess.cu",
        "__syncthreads();",
        "if (threadIdx.x >= 300) return; __syncthreads();",
        "divergent barrier",
    ),
    "two rows into one slot": (
        "tile.h",
        "shared[slot_of[c] * GROUP",
        "shared[slot_of[c] / 2 * GROUP",
        "race",
    ),
    "too few slots": (
        "tile.h",
        "SHARED_FLOATS = ROWS * SLOT;",
        "SHARED_FLOATS = ROWS * SLOT * 3 / 4;",
        "out of bounds",
    ),
    "one step too many along D": (
        "tile.h",
        "larger(t, d.step), d.step + d.steps - 1)",
        "larger(t, d.step), d.step + d.steps + 400)",
        "out of bounds",
    ),
    "vectors where rows are not whole": (
        "tile.h",
        "axis_out.n_out % VECTOR == 0",
        "true",
        "misaligned",
    ),
    "a run that is not blended": (
        "tile.h",
        "smaller(t_first + RUN, w.step + w.steps)",
        "smaller(t_first + RUN - 1, w.step + w.steps)",
        "unwritten store",
    ),
    "a write into the header": (
        "tile.h",
        "const unsigned int pad =",
        "const_cast<Band &>(band).count = 1; const unsigned int pad =",
        "write to read-only memory",
    ),
    "a row that is written twice": (
        "tile.h",
        "offset_of(h.first + first_row,",
        "offset_of(h.first + first_row / 2,",
        "race",
    ),
}
#: Those in what only four rows at once do.
MISTAKES_IN_FOUR_ROWS = {
    "two groups in the place of one": ("tile.h", "+ group * GROUP", "+ group / 2 * GROUP", "race"),
    "a column that is not loaded": (
        "tile.h",
        "if (column > last)",
        "if (column >= last)",
        "unwritten store",
    ),
    "columns beyond those that are needed": (
        "tile.h",
        "if (column > last)",
        "if (column > last + 8)",
        "out of bounds",
    ),
    "rows that begin between vectors": (
        "tile.h",
        "read_only(&band.rows[group]);",
        "read_only(&band.rows[group]) + 1;",
        "misaligned",
    ),
    "a run that is another's": (
        "tile.h",
        "voxel_at(run * RUN +",
        "voxel_at(run / 2 * RUN +",
        "race",
    ),
}


@pytest.mark.parametrize("name", [*MISTAKES, *MISTAKES_IN_FOUR_ROWS])
def test_a_mistake_in_the_kernel_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, right, wrong, kind = (MISTAKES | MISTAKES_IN_FOUR_ROWS)[name]
    (tmp_path / "cuda").mkdir()
    for source in nvrtc.KERNEL_FILES:
        text = (nvrtc.kernel_folder() / source).read_text()
        if source.endswith(file):
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        (tmp_path / source).write_text(text)
    key = usual_of(2)
    if name in MISTAKES:
        key = replace(key, rows=1, pairs=False)
    kernel_options(key)  # which remembers the hash of the sources as they are
    monkeypatch.setattr(nvrtc, "kernel_folder", lambda: tmp_path)
    kernel_of.cache_clear()
    try:
        with pytest.raises(KernelFault) as caught:
            run(jobs_for(key))
    finally:
        kernel_of.cache_clear()
    assert caught.value.kind == kind
