"""Timing on a GPU: volumes that lie there, launches over them, and CUDA events around both."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.measuring import Array, Facts, Run, rounds, times_of
from ctgpu.engines import Job
from ctgpu.engines.batch import Piece, Span
from ctgpu.engines.cuda import CudaEngine
from ctgpu.engines.packing import Placed, header_bytes, pack
from ctgpu.volume.geometry import VolumePlan
from ctgpu.volume.raw import Rescale

#: More memory than any cache keeps: every launch and every copy takes the next set.
SETS = 3
#: So long a device is kept busy before it is timed: an idle one runs at lower clocks.
WARM_UP_S = 0.5


class NotHere(Exception):
    """The machine lacks what a part is to be measured against."""


def torch_with_cuda() -> Any:
    """torch, if it is installed and finds a GPU; that it cannot be imported is a failure."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NotHere("torch is not installed") from None
    if not torch.cuda.is_available():
        raise NotHere(f"torch {torch.__version__} finds no CUDA device")
    return torch


def on_device(engine: CudaEngine, voxels: Array, plan: VolumePlan) -> Run:
    """Queues one launch over volumes and outputs that lie on the device, each time the next set."""
    import cupy

    job = Job(voxels, Rescale(), plan, np.empty(0, np.float16))
    piece = Piece.of(job, 0, plan.axes[2].n_out)
    span = Span.of(piece.voxels)
    runtime, sets = cupy.cuda.runtime, []
    for _ in range(SETS):
        source = cupy.empty(span.size_bytes, np.uint8)
        runtime.memcpy(source.data.ptr, span.address, span.size_bytes, runtime.memcpyHostToDevice)
        out = cupy.empty(piece.out_shape, np.float16)
        header = cupy.empty(header_bytes([piece]), np.uint8)
        address = source.data.ptr + span.origin_bytes
        placed = Placed(piece, piece.voxels, address, out.data.ptr)
        packed, launches = pack([placed], header.data.ptr)
        header.set(packed)
        sets.append((source, out, header, launches))
    in_turn = itertools.cycle(sets)

    def launch() -> None:
        *_, launches = next(in_turn)
        engine.kernels.launch(0, launches)

    return launch


def device_copy(bytes_moved: int) -> Run:
    """Queues one copy within the device: half of the bytes read, half written, next set by set."""
    import cupy

    runtime, size_bytes = cupy.cuda.runtime, bytes_moved // 2
    sets = [[cupy.zeros(size_bytes, np.uint8) for _ in range(2)] for _ in range(SETS)]
    in_turn = itertools.cycle(sets)

    def launch() -> None:
        source, target = (array.data.ptr for array in next(in_turn))
        stream = cupy.cuda.get_current_stream().ptr
        runtime.memcpyAsync(target, source, size_bytes, runtime.memcpyDeviceToDevice, stream)

    return launch


def by_events(contenders: Mapping[str, Run], repeats: int) -> dict[str, Facts]:
    """The time of each run on the current stream, one contender after the other, round by round.

    Clocks are warmed first.  Before each timed run an untimed one is queued, and the first event
    behind it: an event on an idle stream is reached while the host still prepares the launch.
    Each of the contenders queues its work and returns.
    """
    import cupy

    until = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < until:
        for run in contenders.values():
            run()
        cupy.cuda.get_current_stream().synchronize()

    def one(run: Run) -> float:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        run()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3

    timed = {name: partial(one, run) for name, run in contenders.items()}
    return times_of(rounds(timed, repeats, warm_ups=0))


def both_ways(jobs: Sequence[Job], samples: int) -> None:
    """Upload and download as many bytes at the same time, on a stream each."""
    import cupy

    runtime = cupy.cuda.runtime
    source_bytes, out_bytes = jobs[0].voxels.nbytes, jobs[0].out.nbytes
    up, down = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    taken, given = cupy.cuda.Memory(source_bytes), cupy.cuda.Memory(out_bytes)
    runtime.memsetAsync(given.ptr, 0, out_bytes, down.ptr)  # nobody else writes there
    for n in range(samples):
        job = jobs[n % len(jobs)]
        runtime.memcpyAsync(
            taken.ptr, job.voxels.ctypes.data, source_bytes, runtime.memcpyHostToDevice, up.ptr
        )
        runtime.memcpyAsync(
            job.out.ctypes.data, given.ptr, out_bytes, runtime.memcpyDeviceToHost, down.ptr
        )
    for stream in (up, down):
        done = cupy.cuda.Event(block=True, disable_timing=True)
        done.record(stream)
        done.synchronize()
