"""What the processes of one build share: the job, and the executor that makes its shards."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctgpu.building.events import Watcher
from ctgpu.building.pipeline import PipelineReport, Workers
from ctgpu.building.planning import open_planned_source, path_of_source
from ctgpu.building.request import Request
from ctgpu.building.shard_maker import ShardMaker
from ctgpu.building.source_now import SourceNow, require_going_on
from ctgpu.engines import Engine, open_engine
from ctgpu.machine import default_memory_limit_bytes, usable_cores
from ctgpu.shards.folder import committed_shards, failures
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source

#: More threads than this do not make fetching faster without being asked for.
MOST_DEFAULT_WORKERS = 16
#: Downloads overlap even where there is one core only.
LEAST_DEFAULT_WORKERS = 4


def default_workers() -> int:
    """Threads that fetch, by default."""
    return min(MOST_DEFAULT_WORKERS, max(LEAST_DEFAULT_WORKERS, usable_cores()))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What every process that makes shards of one build must know.

    Attributes
    ----------
    folder : Path
        The data set's folder.
    request : Request
        What the caller asked for.
    """

    folder: Path
    request: Request

    @property
    def memory_share_bytes(self) -> int:
        """What one process may have in flight."""
        limit_bytes = self.request.memory_limit_bytes or default_memory_limit_bytes()
        return max(1, limit_bytes // self.request.part.processes_per_machine)

    def open_engine(self) -> Engine:
        """The engine that computes, as :func:`~ctgpu.engines.open_engine`."""
        device = self.request.device
        return device if isinstance(device, Engine) else open_engine(device)

    def pending(self, plan: Plan) -> list[int]:
        """The shards of the whole plan that are still to be made, or made again."""
        everything = range(plan.shards)
        if self.request.force:
            return list(everything)
        committed = set(committed_shards(self.folder))
        if self.request.retry_failed:
            committed -= {index for index, _ in failures(self.folder)}
        return [index for index in everything if index not in committed]

    def open_source(self, plan: Plan) -> SourceNow:
        """The source of `plan`, checked to hold all that is pending; other changes are logged.

        Raises
        ------
        MismatchError
            If something pending cannot be made of it.
        UsageError, EnvironmentFailure
            As :func:`~ctgpu.building.planning.open_planned_source`.
        """
        now = open_planned_source(plan, self.folder, self.request)
        if plan.source["kind"] != "hub":
            require_going_on(
                now,
                self.folder,
                plan,
                set(self.pending(plan)),
                path=path_of_source(plan, self.folder, self.request),
                force=self.request.force,
            )
        return now

    def maker(
        self,
        plan: Plan,
        source: Source,
        sizes_now: Mapping[str, int],
        engine: Engine,
        workers: Workers,
        watch: Watcher,
    ) -> ShardMaker:
        """What makes the shards, in the process that calls this."""
        return ShardMaker(
            self.folder,
            plan,
            source,
            engine,
            sizes_now=sizes_now,
            workers=workers,
            memory_limit_bytes=self.memory_share_bytes,
            spooled=self.request.temp_dir is not None,
            force=self.request.force,
            retry_failed=self.request.retry_failed,
            watch=watch,
        )


class Executor(ABC):
    """Makes the shards of a build: in this process, or on a cluster."""

    @abstractmethod
    def open(self, job: BuildJob) -> None:
        """Get ready, before anything is listed.

        Raises
        ------
        EnvironmentFailure
            If a device or a cluster cannot be had.
        """

    @abstractmethod
    def make(
        self, plan: Plan, todo: Sequence[int], source: Source | None, watch: Watcher
    ) -> tuple[int, PipelineReport]:
        """Make shards.

        Parameters
        ----------
        plan : Plan
            The one in the job's folder.
        todo : sequence of int
            Which shards.
        source : Source or None
            The plan's source, where it was opened to make the plan.
        watch : callable
            Called with the events of samples and shards.

        Returns
        -------
        (int, PipelineReport)
            Samples written, and what it cost.
        """

    @abstractmethod
    def close(self) -> None:
        """Give everything back; also when :meth:`open` has failed."""


class LocalExecutor(Executor):
    """This process, with the threads of one pipeline."""

    _engine: Engine | None = None

    def open(self, job: BuildJob) -> None:
        self._job = job
        self._engine = engine = job.open_engine()
        num_workers = job.request.num_workers or default_workers()
        self._workers = Workers.for_machine(num_workers, engine.concurrency, engine.batch_size)

    def make(
        self, plan: Plan, todo: Sequence[int], source: Source | None, watch: Watcher
    ) -> tuple[int, PipelineReport]:
        assert self._engine is not None
        with contextlib.ExitStack() as stack:
            sizes_now: Mapping[str, int] = {}
            if source is None:
                now = self._job.open_source(plan)
                source, sizes_now = now.source, now.sizes_now
                stack.callback(source.close)
            maker = self._job.maker(plan, source, sizes_now, self._engine, self._workers, watch)
            report = maker.make(todo)
        return maker.written, report

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
