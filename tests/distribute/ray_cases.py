"""Jobs for tasks, and a Ray that runs them in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctgpu.building.executor import BuildJob
from ctgpu.building.request import Part, Request
from ctgpu.distribute.ray_task import ShardResult


def job(folder: Path, **changes: Any) -> BuildJob:
    """What a task must know, of a machine that runs four of them."""
    values: dict[str, Any] = {
        "device": "cpu",
        "num_workers": 1,
        "memory_limit_bytes": 1 << 30,
        "part": Part(processes_per_machine=4),
    }
    return BuildJob(folder=folder, request=Request(**(values | changes)))


class RayError(Exception):
    """A worker or a node that was lost."""


class FakeRay:
    """As much of Ray's module as a driver uses; a task runs when its result is asked for.

    Parameters
    ----------
    work : callable
        What becomes of the task of a shard: called with its number, returns or raises.

    Attributes
    ----------
    asked : dict
        What tasks take, as the driver has said it.
    started, cancelled : list of int
        Shards of the tasks, in order.
    most_waiting : int
        How many tasks there ever were at a time.
    """

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, work: Callable[[int], ShardResult]) -> None:
        self._work = work
        self.asked: dict[str, Any] = {}
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.most_waiting = 0

    def remote(self, **asked: Any) -> Callable[[Callable[..., ShardResult]], Any]:
        self.asked = asked
        return lambda task: SimpleNamespace(remote=self._start)

    def _start(self, *arguments: Any) -> object:
        self.started.append(arguments[-1])
        return _Task(arguments[-1])

    def wait(self, refs: Sequence[_Task], **_: Any) -> tuple[list[_Task], list[_Task]]:
        self.most_waiting = max(self.most_waiting, len(refs))
        return list(refs[:1]), list(refs[1:])

    def get(self, ref: _Task) -> ShardResult:
        return self._work(ref.shard)

    def cancel(self, ref: _Task) -> None:
        self.cancelled.append(ref.shard)


class _Task:
    """One task that was started."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
