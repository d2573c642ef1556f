"""Timing on a GPU: volumes that lie there, launches over them, and CUDA events around both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.measuring import Array, Facts, Run, measured, rounds
from ctgpu.engines import Job
from ctgpu.engines.batch import Piece, Placed, Span, header_bytes, pack
from ctgpu.engines.cuda import CudaEngine
from ctgpu.volume.geometry import VolumePlan
from ctgpu.volume.raw import Rescale

#: More memory than any cache keeps: every launch and every copy takes the next set.
SETS = 3
#: So long a device is kept busy before it is timed: an idle one runs at lower clocks.
WARM_UP_S = 0.5


class NotHere(Exception):
    """The machine lacks what a part is to be measured against."""


def torch_with_cuda() -> Any:
    """torch, where it is installed and finds a GPU.

    Raises
    ------
    NotHere
        If it is not, or finds none; one that is installed and cannot be imported is a failure.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NotHere("torch is not installed") from None
    if not torch.cuda.is_available():
        raise NotHere(f"torch {torch.__version__} finds no CUDA device")
    return torch


def needed_bytes(plan: VolumePlan, itemsize: int) -> int:
    """Bytes of the source that the output depends on."""
    needed = itemsize
    for axis in plan.axes:
        needed *= int(axis.i1[-1]) - int(axis.i0[0]) + 1
    return needed


class OnDevice:
    """Volumes and outputs that lie on the device, and the launch that makes one from the other."""

    def __init__(self, engine: CudaEngine, voxels: Array, plan: VolumePlan) -> None:
        import cupy

        self.plan = plan
        self.bytes_moved = needed_bytes(plan, voxels.itemsize) + plan.spec.size_bytes
        self._kernels = engine.kernels
        self._sets = []
        job = Job(voxels, Rescale(), plan, np.empty(0, np.float16))
        piece = Piece.of(job, 0, plan.axes[2].n_out)
        span = Span.of(piece.voxels)
        runtime = cupy.cuda.runtime
        for _ in range(SETS):
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
        self._turn = (self._turn + 1) % SETS
        self._kernels.launch(0, launches, header.data.ptr)


class DeviceCopy:
    """A copy within the device that moves `bytes_moved`: half of them read, half written."""

    def __init__(self, bytes_moved: int) -> None:
        import cupy

        self._size_bytes = bytes_moved // 2
        self.bytes_moved = 2 * self._size_bytes
        self._sets = [
            (cupy.zeros(self._size_bytes, np.uint8), cupy.empty(self._size_bytes, np.uint8))
            for _ in range(SETS)
        ]
        self._turn = 0

    def launch(self) -> None:
        """Queue one copy over the next set."""
        import cupy

        source, target = self._sets[self._turn]
        self._turn = (self._turn + 1) % SETS
        runtime, stream = cupy.cuda.runtime, cupy.cuda.get_current_stream()
        runtime.memcpyAsync(
            target.data.ptr,
            source.data.ptr,
            self._size_bytes,
            runtime.memcpyDeviceToDevice,
            stream.ptr,
        )


def by_events(contenders: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run on the current stream, one contender after the other, round by round.

    Clocks are warmed first.  Before each timed run an untimed one is queued, and the first event
    behind it: an event on an idle stream is reached while the host still prepares the launch.

    Parameters
    ----------
    contenders : mapping of str to callable
        What to time; each queues its work and returns.
    repeats : int
        Rounds.
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
    return rounds(timed, repeats, warm_ups=0)


def by_rate(bytes_moved: int, seconds: Sequence[float]) -> Facts:
    """How long each run took to move that many bytes, read and written together, and the rate."""
    taken = measured(seconds, "s")
    return {
        "bytes_moved": bytes_moved,
        "time": taken,
        "gb_per_s": bytes_moved / taken["median"] / 1e9,
    }


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
