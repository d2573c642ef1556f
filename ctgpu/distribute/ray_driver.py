"""The window of Ray tasks that one build keeps filled, and what becomes of each result."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from ctgpu.building.events import ShardElsewhere, Watcher
from ctgpu.building.executor import BuildJob
from ctgpu.building.pipeline import PipelineReport
from ctgpu.distribute.follow import Follower
from ctgpu.distribute.ray_cluster import first_line
from ctgpu.distribute.ray_resources import Resources
from ctgpu.distribute.ray_task import ShardResult, make_shard
from ctgpu.errors import (
    AccessError,
    EnvironmentFailure,
    StorageError,
    UsageError,
)
from ctgpu.installation import __version__
from ctgpu.printable import counted
from ctgpu.shards.folder import is_committed
from ctgpu.shards.lease import LeaseLost, is_leased
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.threads import Thread

log = logging.getLogger(__name__)

# What Ray itself repeats: tasks whose process or node was lost.
_RAY_RETRIES = 3
# What is repeated here: tasks that came back with an error which may pass.
_ATTEMPTS = 3
_POLL_S = 1.0
_RETRY_AFTER_S = 2.0
_CANCEL_S = 15.0
# A network file system may show a new file that late.
_VISIBLE_WITHIN_S = 90.0


class Driver:
    """One run of the driver: a bounded window of tasks, and a look at each result."""

    def __init__(
        self, ray: ModuleType, job: BuildJob, resources: Resources, plan: Plan, watch: Watcher
    ) -> None:
        self._ray = ray
        self._job = job
        self._resources = resources
        self._watch = watch
        self._task = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_retries=_RAY_RETRIES,
            retry_exceptions=False,
        )(make_shard)
        self._id = secrets.token_hex(8)
        self._waiting: deque[int] = deque()
        self._not_before: dict[int, float] = {}
        self._running: dict[Any, int] = {}
        self._attempts: dict[int, int] = {}
        self._lost: dict[int, str] = {}
        self._told_held: set[int] = set()
        self._in_a_row = 0
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self.follower = Follower(job.folder, plan, watch)
        self.reports: list[PipelineReport] = []

    def work_off(self, todo: Sequence[int]) -> None:
        """Make every shard, or raise.

        Raises
        ------
        EnvironmentFailure, UsageError
            If nothing can be made, or once all is made but what has failed again and again.
        """
        self._waiting.extend(todo)
        thread = Thread(self._guard, name="ctgpu-ray")
        thread.start()
        try:
            # What a signal raises must not hit Ray's native code, which is in the other thread.
            while not thread.ended.wait(0.1):
                pass
        except BaseException:
            self._stopping.set()
            thread.ended.wait()
            raise
        if self._error is not None:
            raise self._error
        if self._lost:
            write_manifest(self._job.folder)
            first, reason = next(iter(self._lost.items()))
            raise EnvironmentFailure(
                f"{len(self._lost)} of {counted(len(todo), 'shard')} could not be made, shard "
                f"{first:06d} for one: {reason}; the others are finished, run the same command "
                "again for the rest"
            )

    def _guard(self) -> None:
        try:
            while (self._waiting or self._running) and not self._stopping.is_set():
                self._submit()
                self._collect()
        except BaseException as error:
            self._error = error
        self._cancel()

    def _submit(self) -> None:
        # One task for each place, and one that waits for it, so that no place is ever idle.
        for _ in range(len(self._waiting)):
            if len(self._running) >= 2 * self._resources.at_a_time:
                return
            index = self._waiting.popleft()
            if self._not_before.get(index, 0.0) > time.monotonic():
                self._waiting.append(index)
                continue
            elsewhere = index in self._told_held and not self._job.request.force
            if elsewhere and is_committed(self._job.folder, index):
                self.follower.leave(index)
                continue
            self.follower.begin(index, retry_failed=self._job.request.retry_failed)
            ref = self._task.remote(self._job, self._id, __version__, self._resources.cpus, index)
            self._running[ref] = index

    def _collect(self) -> None:
        if self._running:
            done, _ = self._ray.wait(
                list(self._running), num_returns=len(self._running), timeout=_POLL_S
            )
        else:
            self._stopping.wait(_POLL_S)
            done = []
        for ref in done:
            index = self._running.pop(ref)
            try:
                result = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                # A worker or node that was lost too often, or a defect of ours.
                cause = getattr(error, "cause", None) or error
                self._failed(index, f"{type(cause).__name__}: {first_line(cause)}")
                continue
            self._take(index, result)
        for index in self._running.values():
            self.follower.look(index)

    def _take(self, index: int, result: ShardResult) -> None:
        error = result.error
        if result.held is not None or isinstance(error, LeaseLost):
            self._held(index, result.held or "another process")
        elif isinstance(error, UsageError | AccessError | StorageError):
            # It would be the same on every node.
            raise error
        elif error is not None:
            self._failed(index, f"{error} (on {result.node})")
        else:
            self._in_a_row = 0
            self._wait_until_visible(index, result.node)
            if result.report is not None:
                self.reports.append(result.report)
                self.follower.finish(index)
            else:
                self.follower.leave(index)

    def _held(self, index: int, holder: str) -> None:
        if index not in self._told_held:
            self._told_held.add(index)
            self._watch(ShardElsewhere(index, holder))
        self._again(index)

    def _failed(self, index: int, reason: str) -> None:
        self._attempts[index] = self._attempts.get(index, 0) + 1
        self._in_a_row += 1
        if self._in_a_row >= _ATTEMPTS * (1 + self._resources.at_a_time):
            raise EnvironmentFailure(
                f"{self._in_a_row} tasks failed one after the other, the last one so: {reason}; "
                "mend that and run the same command again, finished samples are kept"
            )
        if self._attempts[index] < _ATTEMPTS:
            log.warning("shard %06d failed and is tried again: %s", index, reason)
            self._again(index)
        else:
            log.error("shard %06d failed %d times: %s", index, _ATTEMPTS, reason)
            self._lost[index] = reason

    def _again(self, index: int) -> None:
        self._not_before[index] = time.monotonic() + _RETRY_AFTER_S
        self._waiting.append(index)

    def _wait_until_visible(self, index: int, node: str) -> None:
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while not is_committed(self._job.folder, index) and not self._stopping.is_set():
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{node} has finished shard {index:06d}, and {self._job.folder} here does not "
                    "show it: --ray needs an output folder that all nodes share"
                )
            self._stopping.wait(_POLL_S)

    def _cancel(self) -> None:
        """Let every task stop as on Ctrl-C, and wait until it has given its lease back."""
        with suppress(self._ray.exceptions.RayError):
            for ref in self._running:
                self._ray.cancel(ref)
        # Ray calls a task cancelled while it still tidies up, and would then end its process.
        deadline = time.monotonic() + _CANCEL_S
        left = set(self._running.values())
        while left and time.monotonic() < deadline:
            left = {index for index in left if is_leased(self._job.folder, index)}
            time.sleep(_POLL_S / 10)
