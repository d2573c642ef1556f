"""How fast is the CUDA engine, against what the device itself can move?

Needs a GPU; without one it says so and exits with status 3.  Four questions, one table each, and
every ratio between medians of one run; each part is in the file of ``--json`` as soon as it is
measured:

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
import functools
import gzip
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

import gpu_static
from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    in_words,
    load_real_ct,
    measured,
    phantom_ct,
    print_table,
)
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.raw import Rescale
from gpu_timing import (
    DeviceCopy,
    NotHere,
    OnDevice,
    against_ctgpu,
    both_ways,
    by_clock,
    by_events,
    by_rate,
    torch_with_cuda,
)
from publishing import publish

# The long ones: many volumes each.
_ROUNDS = 5
# What a thread does with a compressed file.
_STAGES = ("copy", "inflate", "engine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argument_parser(__doc__.splitlines()[0], repeats=20)
    parser.add_argument(
        "--static", action="store_true", help="count instructions and registers, without a GPU"
    )
    options = parser.parse_args(arguments)
    if options.static:
        if options.plot is not None:
            parser.error("--plot draws what was measured on a GPU; --static measures nothing")
        return gpu_static.main(options)
    try:
        engine = CudaEngine((0,))
    except DeviceError as error:
        print(f"this benchmark needs a GPU: {error}", file=sys.stderr)
        return error.exit_code
    spec = Spec(shape_hwd=(64, 64, 32)) if options.quick else Spec()
    voxels = phantom_ct((72, 72, 40)) if options.quick else load_real_ct(options.data)
    data = (
        "synthetic phantom"
        if options.quick
        else f"{REAL_CT_NAME}, its 112 slices repeated to {voxels.shape[2]}"
    )
    print(f"{engine.describe()['devices'][0]['name']}, source {voxels.shape} {voxels.dtype}")
    rounds = min(options.repeats, _ROUNDS)
    facts = {
        "data": data,
        "source_shape": voxels.shape,
        "cache": "no file is read while the clock runs; launches and copies take turns among sets "
        "of memory that no cache keeps together",
        "engine": engine.describe(),
    }
    on_all = functools.partial(_call, engine, voxels, spec)
    measure_all(
        options,
        facts,
        {
            "kernel": lambda: on_all(measure_kernel, options.repeats),
            "torch": lambda: on_all(measure_torch, options.repeats),
            "pipeline": lambda: on_all(measure_pipeline, 8 if options.quick else 96, rounds),
            "inflate": lambda: on_all(measure_inflate, 1 if options.quick else 6, rounds),
        },
    )
    engine.close()
    return 0


def _call(
    engine: CudaEngine,
    voxels: npt.NDArray[Any],
    spec: Spec,
    measure: Callable[..., dict[str, Any]],
    *more: int,
) -> dict[str, Any]:
    return measure(engine, voxels, spec, *more)


def measure_all(
    options: argparse.Namespace,
    facts: dict[str, Any],
    parts: dict[str, Callable[[], dict[str, Any]]],
) -> None:
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
    early = argparse.Namespace(**{**vars(options), "plot": None})
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
        if missing and options.json is not None:
            so_far = {"not_measured": missing, "failed": failed, "not_here": not_here}
            publish(early, "gpu", {**result, **so_far})
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")
    if not not_here:
        publish(options, "gpu", result)
    elif options.json is None or options.plot is not None:
        whys = "; ".join(f"{name}: {why}" for name, why in not_here.items())
        raise SystemExit(f"a result is published and drawn only whole; not measured are {whys}")


def all_of(voxels: npt.NDArray[Any], spec: Spec) -> tuple[float, float, float]:
    """The spacing at which the output holds all of the source, neither cropped nor padded."""
    h, w, d = (
        (out + 0.5) / n * target
        for n, out, target in zip(voxels.shape, spec.shape_hwd, spec.target_spacing_mm, strict=True)
    )
    return h, w, d


def measure_kernel(
    engine: CudaEngine, voxels: npt.NDArray[Any], spec: Spec, repeats: int
) -> dict[str, Any]:
    """The kernel alone, for each pair of layouts and two geometries, in turns with a copy."""
    cases: dict[str, Any] = {}
    copies: list[dict[str, Any]] = []
    for geometry, spacing_mm in (("all of it", all_of(voxels, spec)), ("real", REAL_CT_SPACING_MM)):
        for order in ("F", "C"):
            held = np.asarray(voxels, order=order)  # type: ignore[call-overload]
            for layout in ("HWD", "DHW"):
                values = {**spec.to_dict(), "layout": layout}
                plan = plan_volume(held.shape, spacing_mm, Spec.from_dict(values))
                volumes = OnDevice(engine, held, plan)
                copy = DeviceCopy(volumes.bytes_moved)
                seconds = by_events({"ctgpu": volumes.launch, "copy": copy.launch}, repeats)
                case = by_rate(volumes.bytes_moved, seconds["ctgpu"])
                copied = by_rate(copy.bytes_moved, seconds["copy"])
                case["share_of_copy"] = case["gb_per_s"] / copied["gb_per_s"]
                cases[f"{geometry}, {order} order to {layout}"] = case
                copies.append(copied)
                del volumes, copy
    best = max(copies, key=lambda copied: float(copied["gb_per_s"]))
    print_table(
        f"kernel; copies on this device move up to {best['gb_per_s']:.0f} GB/s",
        ("case", "median", "GB/s", "share of copy"),
        [
            (name, in_words(c["time"]["median"], "s"), c["gb_per_s"], c["share_of_copy"])
            for name, c in cases.items()
        ],
    )
    return {"copy": best, "cases": cases}


def measure_torch(
    engine: CudaEngine, voxels: npt.NDArray[Any], spec: Spec, repeats: int
) -> dict[str, Any]:
    """The kernel and torch's own steps on the same GPU, from the same int16 on the device."""
    torch = torch_with_cuda()
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    volumes = OnDevice(engine, voxels, plan)
    in_memory_order = torch.from_numpy(np.asfortranarray(voxels).transpose(2, 1, 0)).cuda()
    steps = torch_written_well(torch, in_memory_order, plan)
    seconds = by_events({"ctgpu": volumes.launch, "torch": steps}, repeats)
    contenders = against_ctgpu(seconds)
    print_table(
        "all steps on the GPU, by CUDA events",
        ("contender", "median", "ctgpu is"),
        [
            (name, in_words(c["time"]["median"], "s"), f"{c['this_over_ctgpu']:.1f} ×")
            for name, c in contenders.items()
        ],
    )
    return {"contenders": contenders, "torch": torch.__version__}


def torch_written_well(torch: Any, voxels: Any, plan: VolumePlan) -> Callable[[], Any]:
    """The contract's steps by someone who knows torch, as ``run_preprocess.py`` has them.

    The source is (D, W, H) in memory, so it is interpolated as such; clipping and scaling are in
    place; crop, pad, turn and float16 are one copy into the result.
    """
    spec = plan.spec
    lo, hi = spec.hu_window
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)

    def run() -> Any:
        x = torch.nn.functional.interpolate(
            voxels.float().clamp_(lo, hi)[None, None],
            size=plan.resized_shape[::-1],
            mode="trilinear",
            align_corners=False,
        )[0, 0]
        out = torch.full(spec.shape_hwd, spec.padding, dtype=torch.float16, device=voxels.device)
        out[placed] = x[kept[::-1]].sub_((lo + hi) / 2).mul_(2 / (hi - lo)).permute(2, 1, 0)
        return out

    return run


def measure_pipeline(
    engine: CudaEngine, voxels: npt.NDArray[Any], spec: Spec, samples: int, rounds: int
) -> dict[str, Any]:
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

    def copies_alone() -> None:
        both_ways(jobs, samples)

    taken = by_clock({"ctgpu": through_engine, "copies alone": copies_alone}, rounds)
    rates = {
        name: measured([samples / seconds for seconds in runs["wall"]], "samples/s")
        for name, runs in taken.items()
    }
    ours, moved = rates["ctgpu"]["median"], voxels.nbytes + spec.size_bytes
    contenders = {
        name: {
            "rate": rate,
            "cpu_per_sample": measured([cpu / samples for cpu in taken[name]["cpu"]], "s"),
            "ctgpu_over_this": ours / rate["median"],
            "gb_per_s": moved * rate["median"] / 1e9,
        }
        for name, rate in rates.items()
    }
    # Of each round, the time that the copies alone take of the time that the whole takes.
    walls = zip(taken["copies alone"]["wall"], taken["ctgpu"]["wall"], strict=True)
    busy = measured([copies / whole for copies, whole in walls], "s/s")
    print_table(
        f"upload, kernel and download overlapped; PCIe is busy {busy['median']:.0%} of the time",
        ("what", "samples/s", "GB/s both ways", "CPU s a sample", "ctgpu over this"),
        [
            (
                name,
                c["rate"]["median"],
                c["gb_per_s"],
                c["cpu_per_sample"]["median"],
                c["ctgpu_over_this"],
            )
            for name, c in contenders.items()
        ],
    )
    return {
        "samples": samples,
        "bytes_moved_per_sample": moved,
        "pcie_busy": busy,
        "contenders": contenders,
    }


def measure_inflate(
    engine: CudaEngine,
    voxels: npt.NDArray[Any],
    spec: Spec,
    samples_per_thread: int,
    rounds: int,
) -> dict[str, Any]:
    """From compressed files in memory to pinned float16, by number of threads."""
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(voxels), np.diag([*REAL_CT_SPACING_MM, 1.0]))
    compressed = np.frombuffer(gzip.compress(image.to_bytes(), compresslevel=6), np.uint8)
    pool = BufferPool(allocate=engine.allocate)
    runs: dict[int, list[dict[str, float]]] = {threads: [] for threads in (1, 4, 8, 16)}
    for threads in runs:
        from_memory(engine, pool, compressed, spec, 2 * threads, threads)  # fills the pool
    for _ in range(rounds):
        for threads, taken in runs.items():
            samples = samples_per_thread * threads
            taken.append(from_memory(engine, pool, compressed, spec, samples, threads))
    rows: dict[str, Any] = {}
    for threads, taken in runs.items():
        rate = measured([run["rate"] for run in taken], "samples/s")
        rows[str(threads)] = {
            "rate": rate,
            "cpu_per_sample": measured([run["cpu"] for run in taken], "s"),
            "stages": {name: measured([run[name] for run in taken], "s") for name in _STAGES},
        }
        rows[str(threads)]["this_over_one_thread"] = rate["median"] / rows["1"]["rate"]["median"]
    print_table(
        f"from .nii.gz in memory ({len(compressed) / 1e6:.0f} MB); stages by sample",
        ("threads", "samples/s", "CPU s", *_STAGES),
        [
            (
                threads,
                row["rate"]["median"],
                row["cpu_per_sample"]["median"],
                *(in_words(stage["median"], "s") for stage in row["stages"].values()),
            )
            for threads, row in rows.items()
        ],
    )
    return {
        "compressed_bytes": len(compressed),
        "samples_per_thread": samples_per_thread,
        "threads": rows,
    }


def from_memory(
    engine: CudaEngine,
    pool: BufferPool,
    compressed: npt.NDArray[np.uint8],
    spec: Spec,
    samples: int,
    threads: int,
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


if __name__ == "__main__":
    sys.exit(main())
