"""How fast is the CUDA engine, against what the device itself can move?

Needs a GPU; without one it says so and exits with status 3.  Four questions, and every ratio is one
between medians of one run; each part is in the file of ``--json`` as soon as it is measured:

kernel     time by CUDA events against copies within the device, taken in turns with it, counted as
           the bytes of the source that the output needs plus the bytes of the output
torch      the same kernel against torch written well on the same GPU
pipeline   upload, kernel and download overlapped, against uploads and downloads alone, and the CPU
           time of both
inflate    samples/s from .nii.gz in memory by number of threads, and where a thread's time went

``--static`` needs no GPU: it counts what the compiled kernels hold (``gpu_static.py``).
"""

from __future__ import annotations

import argparse
import gzip
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.harness.asking import REAL_CT_SPACING_MM, Asked, Question
from benchmarks.harness.gpu_timing import (
    DeviceCopy,
    NotHere,
    OnDevice,
    both_ways,
    by_events,
    by_rate,
    torch_with_cuda,
)
from benchmarks.harness.measuring import Array, Facts, Run, measured, rounds, times_of, with_ratio
from benchmarks.peers.volumes import torch_written_well
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.spec import Layout, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale, Spacing

# The long ones: many volumes each.
_ROUNDS = 5
# What a thread does with a compressed file.
_STAGES = ("copy", "inflate", "engine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    question = Question("gpu", (__doc__ or "").splitlines()[0], repeats=20)
    question.add_argument(
        "--static", action="store_true", help="count instructions and registers, without a GPU"
    )
    asked = question.asked(arguments)
    if asked.options.static:
        if asked.options.plot is not None:
            question.error("--plot draws what was measured on a GPU; --static measures nothing")
        from benchmarks.questions import gpu_static  # which needs what the tests have

        return gpu_static.main(replace(asked, name="gpu_static"))
    try:
        engine = CudaEngine((0,))
    except DeviceError as error:
        print(f"this benchmark needs a GPU: {error}", file=sys.stderr)
        return error.exit_code
    spec = Spec(shape_hwd=(64, 64, 32)) if asked.quick else Spec()
    scan = asked.scan((72, 72, 40))
    rounds_, volumes, files = min(asked.repeats, _ROUNDS), 8 if asked.quick else 96, 6
    facts = {
        "data": "synthetic phantom" if asked.quick else scan.about,
        "source_shape": scan.voxels.shape,
        "cache": "no file is read while the clock runs; launches and copies take turns among sets "
        "of memory that no cache keeps together",
        "engine": engine.describe(),
    }
    # Looked up when they run: a test puts others in their place.
    what = (engine, scan.voxels, spec)
    parts: dict[str, Callable[[], Facts]] = {
        "kernel": lambda: measure_kernel(*what, asked.repeats),
        "torch": lambda: measure_torch(*what, asked.repeats),
        "pipeline": lambda: measure_pipeline(*what, volumes, rounds_),
        "inflate": lambda: measure_inflate(*what, 1 if asked.quick else files, rounds_),
    }
    measure_all(asked, facts, parts)
    engine.close()
    return 0


def measure_all(asked: Asked, facts: Facts, parts: Mapping[str, Callable[[], Facts]]) -> None:
    """Measure one part after the other and publish the whole.

    With ``--json`` the file is written after each part: ended early, it has the parts
    before.  A part that fails is recorded, and so is one about what the machine lacks, which is
    no failure; the others are measured.

    Raises
    ------
    SystemExit
        In the end, where a part failed; and where one is missing and the whole would be drawn, or
        would lie among the published results.
    """
    result, failed, not_here = dict(facts), {}, {}
    early = replace(asked, options=argparse.Namespace(**{**vars(asked.options), "plot": None}))
    for name, measure in parts.items():
        try:
            result[name] = measure()
        except NotHere as error:
            not_here[name] = str(error)
            print(f"{name} is not measured: {error}")
        except Exception as error:  # of torch, say, where it is too old
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {failed[name]}", file=sys.stderr)
        missing = [part for part in parts if part not in result]
        if missing and asked.options.json is not None:
            so_far = {"not_measured": missing, "failed": failed, "not_here": not_here}
            early.publish({**result, **so_far}, show=False)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")
    if not not_here:
        asked.publish(result)
    elif asked.options.json is None or asked.options.plot is not None:
        whys = "; ".join(f"{name}: {why}" for name, why in not_here.items())
        raise SystemExit(f"a result is published and drawn only whole; not measured are {whys}")


def all_of(voxels: Array, spec: Spec) -> Spacing:
    """The spacing at which the output holds all of the source, neither cropped nor padded."""
    h, w, d = (
        (out + 0.5) / n * target
        for n, out, target in zip(voxels.shape, spec.shape_hwd, spec.target_spacing_mm, strict=True)
    )
    return h, w, d


def measure_kernel(engine: CudaEngine, voxels: Array, spec: Spec, repeats: int) -> Facts:
    """The kernel alone, for each pair of layouts and two geometries, in turns with a copy."""
    cases: Facts = {}
    copies: list[Facts] = []
    layouts: tuple[Layout, ...] = ("HWD", "DHW")
    for geometry, spacing_mm in (("all of it", all_of(voxels, spec)), ("real", REAL_CT_SPACING_MM)):
        for held in (np.asfortranarray(voxels), np.ascontiguousarray(voxels)):
            for layout in layouts:
                plan = plan_volume(held.shape, spacing_mm, replace(spec, layout=layout))
                volumes = OnDevice(engine, held, plan)
                copy = DeviceCopy(volumes.bytes_moved)
                seconds = by_events({"ctgpu": volumes.launch, "copy": copy.launch}, repeats)
                case = by_rate(volumes.bytes_moved, seconds["ctgpu"])
                copied = by_rate(copy.bytes_moved, seconds["copy"])
                case["share_of_copy"] = case["gb_per_s"] / copied["gb_per_s"]
                order = "C" if held.flags.c_contiguous else "F"
                cases[f"{geometry}, {order} order to {layout}"] = case
                copies.append(copied)
                del volumes, copy
    best = max(copies, key=lambda copied: float(copied["gb_per_s"]))
    return {"copy": best, "cases": cases}


def measure_torch(engine: CudaEngine, voxels: Array, spec: Spec, repeats: int) -> Facts:
    """The kernel and torch's own steps on the same GPU, from the same int16 on the device."""
    torch = torch_with_cuda()
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    volumes = OnDevice(engine, voxels, plan)
    in_memory_order = torch.from_numpy(np.asfortranarray(voxels).transpose(2, 1, 0)).cuda()
    steps = torch_written_well(in_memory_order, plan)
    times = times_of(by_events({"ctgpu": volumes.launch, "torch": steps}, repeats))
    contenders = with_ratio(times, "this_over_ctgpu", "ctgpu")
    return {"contenders": contenders, "torch": torch.__version__}


def measure_pipeline(
    engine: CudaEngine, voxels: Array, spec: Spec, samples: int, repeats: int
) -> Facts:
    """`samples` volumes through the engine, and the same bytes copied with no kernel between."""
    plan = plan_volume(voxels.shape, all_of(voxels, spec), spec)
    pool = BufferPool(allocate=engine.allocate)
    jobs = []
    for _ in range(2 * engine.concurrency):
        source = pool.acquire(voxels.nbytes).array(voxels.shape, voxels.dtype, order="F")
        source[...] = voxels
        out = pool.acquire(spec.size_bytes).array(spec.stored_shape, np.float16)
        jobs.append(Job(source, Rescale(), plan, out))

    def through_engine() -> None:
        with ThreadPoolExecutor(engine.concurrency) as threads:
            list(threads.map(lambda n: engine.run([jobs[n % len(jobs)]]), range(samples)))

    def clocked(run: Run) -> tuple[float, float]:
        """CPU seconds are those of all threads: what spins instead of sleeping shows."""
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - wall, time.process_time() - cpu

    runs: dict[str, Run] = {
        "ctgpu": through_engine,
        "copies alone": partial(both_ways, jobs, samples),
    }
    taken = rounds({name: partial(clocked, run) for name, run in runs.items()}, repeats)
    moved = voxels.nbytes + spec.size_bytes
    contenders: dict[str, Facts] = {
        name: {
            "rate": measured([samples / wall for wall, _ in of], "samples/s"),
            "cpu_per_sample": measured([cpu / samples for _, cpu in of], "s"),
        }
        for name, of in taken.items()
    }
    for contender in with_ratio(contenders, "ctgpu_over_this", "ctgpu", "rate").values():
        contender["gb_per_s"] = moved * contender["rate"]["median"] / 1e9
    # Of each round, the time that the copies alone take of the time that the whole takes.
    walls = zip(taken["copies alone"], taken["ctgpu"], strict=True)
    return {
        "samples": samples,
        "bytes_moved_per_sample": moved,
        "pcie_busy": measured([copies / whole for (copies, _), (whole, _) in walls], "s/s"),
        "contenders": contenders,
    }


def measure_inflate(
    engine: CudaEngine, voxels: Array, spec: Spec, samples_per_thread: int, repeats: int
) -> Facts:
    """From compressed files in memory to pinned float16, by number of threads."""
    import nibabel

    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.asarray(voxels), np.diag([*REAL_CT_SPACING_MM, 1.0])
    )
    compressed = np.frombuffer(gzip.compress(image.to_bytes(), compresslevel=6), np.uint8)
    pool = BufferPool(allocate=engine.allocate)
    counts = (1, 4, 8, 16)
    for threads in counts:
        from_memory(engine, pool, compressed, spec, 2 * threads, threads)  # fills the pool
    runs = {
        str(n): partial(from_memory, engine, pool, compressed, spec, samples_per_thread * n, n)
        for n in counts
    }
    rows: Facts = {
        threads: {
            "rate": measured([run["rate"] for run in taken], "samples/s"),
            "cpu_per_sample": measured([run["cpu"] for run in taken], "s"),
            "stages": {name: measured([run[name] for run in taken], "s") for name in _STAGES},
        }
        for threads, taken in rounds(runs, repeats, warm_ups=0).items()
    }
    return {
        "compressed_bytes": len(compressed),
        "samples_per_thread": samples_per_thread,
        "threads": with_ratio(rows, "this_over_one_thread", "1", "rate"),
    }


def from_memory(
    engine: CudaEngine, pool: BufferPool, compressed: Array, spec: Spec, samples: int, threads: int
) -> dict[str, float]:
    """Every thread inflates a file and hands it to the engine: samples/s, CPU s, s by stage."""
    stages = dict.fromkeys(_STAGES, 0.0)
    lock = threading.Lock()

    def one(_: int) -> None:
        marks = [time.perf_counter()]
        file = pool.acquire(len(compressed))
        file.bytes[:] = compressed
        marks.append(time.perf_counter())
        raw = decode("scan.nii.gz", file, pool)
        marks.append(time.perf_counter())
        plan = plan_volume(raw.voxels.shape, REAL_CT_SPACING_MM, spec)
        with pool.acquire(spec.size_bytes) as out:
            target = out.array(spec.stored_shape, np.float16)
            engine.run([Job(raw.voxels, raw.header_rescale, plan, target)])
        raw.release()
        marks.append(time.perf_counter())
        with lock:
            for n, stage in enumerate(stages):
                stages[stage] += marks[n + 1] - marks[n]

    begin, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(one, range(samples)))
    rate = samples / (time.perf_counter() - begin)
    per_sample = {stage: seconds / samples for stage, seconds in stages.items()}
    return {"rate": rate, "cpu": (time.process_time() - cpu) / samples, **per_sample}
