"""How fast is the CUDA engine, against what the device itself can move?

Needs a GPU; without one it says so and exits with status 3.  Four questions, and every ratio is one
between medians of one run; each part is in the file of ``--json`` as soon as it is measured:

kernel     time by CUDA events against copies within the device, taken in turns with it, counted as
           the bytes of the source that the output needs plus the bytes of the output
torch      the same kernel against torch written well on the same GPU
pipeline   upload, kernel and download overlapped, against uploads and downloads alone, and the CPU
           time of both
inflate    samples/s from .nii.gz in memory by number of threads

``--static`` needs no GPU: it counts what the compiled kernels hold (``gpu_static.py``).
"""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.asking import REAL_CT_SPACING_MM, Asked, Question
from benchmarks.harness.gpu_timing import (
    NotHere,
    both_ways,
    by_events,
    device_copy,
    on_device,
    torch_with_cuda,
)
from benchmarks.harness.measuring import (
    Array,
    Facts,
    Run,
    measured,
    rated,
    rounds,
    seconds_of,
    with_bandwidth,
    with_ratio,
)
from benchmarks.harness.one_volume import covering_spacing_mm, moved_bytes
from benchmarks.peers.volumes import torch_written_well
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.spec import Layout, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale

# Of the long ones, which run many volumes each.
_MOST_ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    question = Question("gpu", (__doc__ or "").splitlines()[0], repeats=20)
    question.add_argument(
        "--static", action="store_true", help="count instructions and registers, without a GPU"
    )
    asked = question.asked(arguments)
    if asked.options.static:
        from benchmarks.questions import gpu_static  # which needs what the tests have

        return gpu_static.main(replace(asked, name="gpu_static"))
    try:
        engine = CudaEngine((0,))
    except DeviceError as error:
        print(f"this benchmark needs a GPU: {error}", file=sys.stderr)
        return error.exit_code
    spec = Spec(shape_hwd=(64, 64, 32)) if asked.quick else Spec()
    scan = asked.scan((72, 72, 40))
    few = min(asked.repeats, _MOST_ROUNDS)
    facts = {
        "data": scan.about,
        "source_shape": scan.voxels.shape,
        "cache": "no file is read while the clock runs; launches and copies take turns among sets "
        "of memory that no cache keeps together",
        "engine": engine.describe(),
    }
    what, volumes, files = (engine, scan.voxels, spec), 8 if asked.quick else 96, 6
    parts = {
        "kernel": partial(measure_kernel, *what, asked.repeats),
        "torch": partial(measure_torch, *what, asked.repeats),
        "pipeline": partial(measure_pipeline, *what, volumes, few),
        "inflate": partial(measure_inflate, *what, 1 if asked.quick else files, few),
    }
    measure_all(asked, facts, parts)
    engine.close()
    return 0


def measure_all(asked: Asked, facts: Facts, parts: Mapping[str, Callable[[], Facts]]) -> None:
    """Measure one part after the other and publish the whole, which fails where a part did.

    With ``--json`` the file is written after each part: ended early, it has the parts before, and
    what failed.  What the machine lacks is no failure, but keeps it out of the published results.
    """
    result, failed, not_here = dict(facts), {}, {}
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
            asked.publish({**result, **so_far}, show=False)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")
    if not not_here:
        asked.publish(result)
    elif asked.options.json is None:
        whys = "; ".join(f"{name}: {why}" for name, why in not_here.items())
        raise SystemExit(f"a result is published only whole; not measured are {whys}")


def measure_kernel(engine: CudaEngine, voxels: Array, spec: Spec, repeats: int) -> Facts:
    """The kernel alone, for each pair of layouts and two geometries, in turns with a copy."""
    cases: Facts = {}
    copies: list[Facts] = []
    layouts: tuple[Layout, ...] = ("HWD", "DHW")
    spacings = {"all of it": covering_spacing_mm(voxels.shape, spec), "real": REAL_CT_SPACING_MM}
    sources = {"F": np.asfortranarray(voxels), "C": np.ascontiguousarray(voxels)}
    for geometry, order, layout in itertools.product(spacings, sources, layouts):
        held = sources[order]
        plan = plan_volume(held.shape, spacings[geometry], replace(spec, layout=layout))
        moved = moved_bytes(held, plan)
        runs = {"ctgpu": on_device(engine, held, plan), "copy": device_copy(moved)}
        case, copied = with_bandwidth(by_events(runs, repeats), moved).values()
        case["share_of_copy"] = case["gb_per_s"] / copied["gb_per_s"]
        cases[f"{geometry}, {order} order to {layout}"] = case
        copies.append(copied)
    best = max(copies, key=lambda copied: float(copied["gb_per_s"]))
    return {"copy": best, "cases": cases}


def measure_torch(engine: CudaEngine, voxels: Array, spec: Spec, repeats: int) -> Facts:
    """The kernel and torch's own steps on the same GPU, from the same int16 on the device."""
    torch = torch_with_cuda()
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    in_memory_order = torch.from_numpy(np.asfortranarray(voxels).transpose(2, 1, 0)).cuda()
    runs = {
        "ctgpu": on_device(engine, voxels, plan),
        "torch": torch_written_well(in_memory_order, plan),
    }
    contenders = with_ratio(by_events(runs, repeats), "this_over_ctgpu", "ctgpu")
    return {"contenders": contenders, "torch": torch.__version__}


def measure_pipeline(
    engine: CudaEngine, voxels: Array, spec: Spec, samples: int, repeats: int
) -> Facts:
    """`samples` volumes through the engine, and the same bytes copied with no kernel between."""
    plan = plan_volume(voxels.shape, covering_spacing_mm(voxels.shape, spec), spec)
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

    runs: dict[str, Run] = {
        "ctgpu": through_engine,
        "copies alone": partial(both_ways, jobs, samples),
    }
    contenders = rated(runs, samples, repeats)
    # Of each round, the time that the copies alone take of the time that the whole takes.
    rates = zip(*(contenders[name]["rate"]["runs"] for name in runs), strict=True)
    return {
        "samples": samples,
        "pcie_busy": measured([whole / copies for whole, copies in rates], "s/s"),
        "contenders": with_ratio(contenders, "ctgpu_over_this", "ctgpu", "rate"),
    }


def measure_inflate(
    engine: CudaEngine, voxels: Array, spec: Spec, samples_per_thread: int, repeats: int
) -> Facts:
    """From compressed files in memory to pinned float16, by number of threads."""
    import nibabel

    image: Any = nibabel.Nifti1Image
    image = image(np.asarray(voxels), np.diag([*REAL_CT_SPACING_MM, 1.0]))
    compressed = np.frombuffer(gzip.compress(image.to_bytes(), compresslevel=6), np.uint8)
    pool = BufferPool(allocate=engine.allocate)

    def one(_: int) -> None:
        file = pool.acquire(len(compressed))
        file.bytes[:] = compressed
        raw = decode("scan.nii.gz", file, pool)
        plan = plan_volume(raw.voxels.shape, REAL_CT_SPACING_MM, spec)
        with pool.acquire(spec.size_bytes) as out:
            target = out.array(spec.stored_shape, np.float16)
            engine.run([Job(raw.voxels, raw.header_rescale, plan, target)])
        raw.release()

    def rate(threads: int) -> float:
        samples = samples_per_thread * threads
        with ThreadPoolExecutor(threads) as workers:
            return samples / seconds_of(lambda: list(workers.map(one, range(samples))))

    taken = rounds({str(n): partial(rate, n) for n in (1, 4, 8, 16)}, repeats)
    rows: Facts = {threads: {"rate": measured(of, "samples/s")} for threads, of in taken.items()}
    with_ratio(rows, "this_over_one_thread", "1", "rate")
    about = {"compressed_bytes": len(compressed), "samples_per_thread": samples_per_thread}
    return about | {"threads": rows}
