"""How fast is the CUDA engine, against what the device itself can move?

Needs a GPU; without one it says so and exits with status 3.  Four questions, one table each, and
every ratio between medians of one run:

kernel     time by CUDA events against the device's measured copy bandwidth, counted as the bytes
           of the source that the output needs plus the bytes of the output
torch      the same kernel against F.interpolate, clamp, crop, pad and half on the same GPU
pipeline   upload, kernel and download overlapped, against uploads and downloads alone
inflate    samples/s from .nii.gz in memory by number of threads, and where a thread's time went
"""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    in_words,
    interleaved,
    load_real_ct,
    measured,
    phantom_ct,
    print_table,
)
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job
from ctgpu.engines._batch import Piece, Placed, Span, header_bytes, pack
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError
from ctgpu.geometry import VolumePlan, plan_volume
from ctgpu.spec import Spec
from ctgpu.volume import Rescale
from publishing import publish

# More memory than any cache keeps: every launch and every copy takes the next set.
_SETS = 3
# The long ones: many volumes each.
_ROUNDS = 7
# What a thread does with a compressed file.
_STAGES = ("copy", "inflate", "engine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argument_parser(__doc__.splitlines()[0], repeats=20)
    options = parser.parse_args(arguments)
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
    result = {
        "data": data,
        "source_shape": voxels.shape,
        "cache": "no file is read while the clock runs; launches and copies take turns among sets "
        "of memory that no cache keeps together",
        "engine": engine.describe(),
        "kernel": measure_kernel(engine, voxels, spec, options.repeats),
        "torch": measure_torch(engine, voxels, spec, options.repeats),
        "pipeline": measure_pipeline(engine, voxels, spec, 8 if options.quick else 96, rounds),
        "inflate": measure_inflate(engine, voxels, spec, 1 if options.quick else 6, rounds),
    }
    engine.close()
    publish(options, "gpu", result)
    return 0


def needed_bytes(plan: VolumePlan, itemsize: int) -> int:
    """Bytes of the source that the output depends on."""
    needed = itemsize
    for axis in plan.axes:
        needed *= int(axis.i1[-1]) - int(axis.i0[0]) + 1
    return needed


def all_of(voxels: npt.NDArray[Any], spec: Spec) -> tuple[float, float, float]:
    """The spacing at which the output holds all of the source, neither cropped nor padded."""
    h, w, d = (
        (out + 0.5) / n * target
        for n, out, target in zip(voxels.shape, spec.shape_hwd, spec.target_spacing_mm, strict=True)
    )
    return h, w, d


class OnDevice:
    """Volumes and outputs that lie on the device, and the launch that makes one from the other."""

    def __init__(self, engine: CudaEngine, voxels: npt.NDArray[Any], plan: VolumePlan) -> None:
        import cupy

        self.plan = plan
        self.bytes_moved = needed_bytes(plan, voxels.itemsize) + plan.spec.size_bytes
        self._kernels = engine._kernels
        self._sets = []
        job = Job(voxels, Rescale(), plan, np.empty(0, np.float16))
        piece = Piece.of(job, 0, plan.axes[2].n_out)
        span = Span.of(piece.voxels)
        runtime = cupy.cuda.runtime
        for _ in range(_SETS):
            source = cupy.empty(span.size_bytes, np.uint8)
            runtime.memcpy(
                source.data.ptr, span.address, span.size_bytes, runtime.memcpyHostToDevice
            )
            out = cupy.empty(piece.out_shape, np.float16)
            header = cupy.empty(header_bytes([piece]), np.uint8)
            address = source.data.ptr + span.origin_bytes
            placed = Placed(piece, piece.voxels, address, out.data.ptr)
            packed, launches = pack([placed], header.data.ptr)
            header.set(packed)
            self._sets.append((source, out, header, launches))
        self._turn = 0

    def launch(self) -> None:
        """Queue one launch over the next set."""
        *_, header, launches = self._sets[self._turn]
        self._turn = (self._turn + 1) % _SETS
        self._kernels.launch(0, launches, header.data.ptr)


def by_events(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs on the current stream, after three warm-ups."""
    import cupy

    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return times


def by_rate(bytes_moved: int, seconds: Sequence[float]) -> dict[str, Any]:
    """How long each run took to move that many bytes, read and written together, and the rate."""
    time = measured(seconds, "s")
    rate = bytes_moved / time["median"] / 1e9
    return {"bytes_moved": bytes_moved, "time": time, "gb_per_s": rate}


def device_copy(size_bytes: int, repeats: int) -> dict[str, Any]:
    """A copy within the device."""
    import cupy

    source, target = cupy.zeros(size_bytes, np.uint8), cupy.empty(size_bytes, np.uint8)
    return by_rate(2 * size_bytes, by_events(lambda: cupy.copyto(target, source), repeats))


def measure_kernel(
    engine: CudaEngine, voxels: npt.NDArray[Any], spec: Spec, repeats: int
) -> dict[str, Any]:
    """The kernel alone, for each pair of layouts and two geometries."""
    copy = device_copy(voxels.nbytes * 8, repeats)
    cases: dict[str, Any] = {}
    for geometry, spacing_mm in (("all of it", all_of(voxels, spec)), ("real", REAL_CT_SPACING_MM)):
        for order in ("F", "C"):
            held = np.asarray(voxels, order=order)  # type: ignore[call-overload]
            for layout in ("HWD", "DHW"):
                values = {**spec.to_dict(), "layout": layout}
                plan = plan_volume(held.shape, spacing_mm, Spec.from_dict(values))
                volumes = OnDevice(engine, held, plan)
                case = by_rate(volumes.bytes_moved, by_events(volumes.launch, repeats))
                case["share_of_copy"] = case["gb_per_s"] / copy["gb_per_s"]
                cases[f"{geometry}, {order} order to {layout}"] = case
                del volumes
    print_table(
        f"kernel; a copy on this device moves {copy['gb_per_s']:.0f} GB/s",
        ("case", "median", "GB/s", "share of copy"),
        [
            (name, in_words(c["time"]["median"], "s"), c["gb_per_s"], c["share_of_copy"])
            for name, c in cases.items()
        ],
    )
    return {"copy": copy, "cases": cases}


def measure_torch(
    engine: CudaEngine, voxels: npt.NDArray[Any], spec: Spec, repeats: int
) -> dict[str, Any]:
    """The kernel and torch's own steps on the same GPU, from the same int16 on the device."""
    import torch

    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    volumes = OnDevice(engine, voxels, plan)
    on_device = torch.from_numpy(np.ascontiguousarray(voxels)).cuda()
    lo, hi = spec.hu_window
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)

    def steps() -> Any:
        x = on_device.float().clamp_(lo, hi)
        x = torch.nn.functional.interpolate(
            x[None, None], size=plan.resized_shape, mode="trilinear", align_corners=False
        )[0, 0]
        x = x[kept].sub((lo + hi) / 2).div_((hi - lo) / 2)
        result = torch.full(spec.shape_hwd, spec.pad_value, dtype=torch.float16, device="cuda")
        result[placed] = x.half()
        return result

    def synchronised(run: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            run()
            torch.cuda.synchronize()

        return timed

    seconds = interleaved(
        {"ctgpu": synchronised(volumes.launch), "torch": synchronised(steps)}, repeats, warm_ups=3
    )
    contenders = against_ctgpu(seconds)
    print_table(
        "all steps on the GPU, host clock around launch and synchronisation",
        ("contender", "median", "ctgpu is"),
        [
            (name, in_words(c["time"]["median"], "s"), f"{c['this_over_ctgpu']:.1f} ×")
            for name, c in contenders.items()
        ],
    )
    return {"contenders": contenders, "torch": torch.__version__}


def against_ctgpu(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each contender's time, and how often ctgpu's goes into it."""
    times = {name: measured(runs, "s") for name, runs in seconds.items()}
    ours = times["ctgpu"]["median"]
    return {
        name: {"time": time, "this_over_ctgpu": time["median"] / ours}
        for name, time in times.items()
    }


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

    seconds = interleaved({"ctgpu": through_engine, "copies alone": copies_alone}, rounds)
    rates = {
        name: measured([samples / taken for taken in runs], "samples/s")
        for name, runs in seconds.items()
    }
    ours, moved = rates["ctgpu"]["median"], voxels.nbytes + spec.size_bytes
    contenders = {
        name: {
            "rate": rate,
            "ctgpu_over_this": ours / rate["median"],
            "gb_per_s": moved * rate["median"] / 1e9,
        }
        for name, rate in rates.items()
    }
    print_table(
        "upload, kernel and download overlapped; pinned memory",
        ("what", "samples/s", "GB/s both ways", "ctgpu over this"),
        [
            (name, c["rate"]["median"], c["gb_per_s"], c["ctgpu_over_this"])
            for name, c in contenders.items()
        ],
    )
    return {"samples": samples, "bytes_moved_per_sample": moved, "contenders": contenders}


def both_ways(jobs: Sequence[Job], samples: int) -> None:
    """Upload and download as many bytes at the same time, on a stream each."""
    import cupy

    runtime = cupy.cuda.runtime
    source_bytes, out_bytes = jobs[0].voxels.nbytes, jobs[0].out.nbytes
    up, down = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    taken, given = cupy.cuda.Memory(source_bytes), cupy.cuda.Memory(out_bytes)
    for n in range(samples):
        job = jobs[n % len(jobs)]
        runtime.memcpyAsync(
            taken.ptr, job.voxels.ctypes.data, source_bytes, runtime.memcpyHostToDevice, up.ptr
        )
        runtime.memcpyAsync(
            job.out.ctypes.data, given.ptr, out_bytes, runtime.memcpyDeviceToHost, down.ptr
        )
    up.synchronize()
    down.synchronize()


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
            "stages": {name: measured([run[name] for run in taken], "s") for name in _STAGES},
        }
        rows[str(threads)]["this_over_one_thread"] = rate["median"] / rows["1"]["rate"]["median"]
    print_table(
        f"from .nii.gz in memory ({len(compressed) / 1e6:.0f} MB); stages by sample",
        ("threads", "samples/s", *_STAGES),
        [
            (
                threads,
                row["rate"]["median"],
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
    """Every thread inflates a file and hands it to the engine: samples/s, seconds by stage."""
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

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(one, range(samples)))
    rate = samples / (time.perf_counter() - begin)
    return {"rate": rate, **{stage: seconds / samples for stage, seconds in stages.items()}}


if __name__ == "__main__":
    sys.exit(main())
