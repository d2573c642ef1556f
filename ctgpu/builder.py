"""The main job: a source and a spec to a folder of shards."""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ctgpu.engines import Engine, arithmetic_of, open_engine
from ctgpu.errors import StorageError, UsageError
from ctgpu.limits import (
    default_memory_limit_bytes,
    require_free_space,
    require_writable,
    usable_cores,
)
from ctgpu.pipeline import PipelineReport, Workers
from ctgpu.planning import (
    Part,
    Request,
    adopt_plan,
    device_for,
    make_plan,
    open_planned_source,
)
from ctgpu.progress import Planned, Watcher, ignore
from ctgpu.shard_maker import ShardMaker
from ctgpu.shards import disk
from ctgpu.shards.folder import committed_shards, failures
from ctgpu.shards.lease import LeaseSession
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import FAILURES_NAME, partial_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source
from ctgpu.spec import Spec

# Headers, labels, report and metadata of one sample, generously.
_SMALL_MEMBERS_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    folder : Path
        The data set.
    manifest : dict
        The content of ``manifest.json``.
    written : int
        Samples written by this run.
    stored_bytes : int
        Bytes of their payloads.
    failures : list of dict
        Every sample of the data set that has no output: the lines of ``failures.jsonl``.
    pipeline : PipelineReport or None
        Stage times and memory; None where there was nothing to do.
    """

    folder: Path
    manifest: Mapping[str, Any]
    written: int
    stored_bytes: int
    failures: Sequence[Mapping[str, Any]]
    pipeline: PipelineReport | None

    @property
    def exit_code(self) -> int:
        """0, or 1 where a sample has no output."""
        return 1 if self.failures else 0

    @property
    def failures_path(self) -> Path:
        """The ledger."""
        return self.folder / FAILURES_NAME

    def training_yaml(self) -> str:
        """The lines that a training config needs."""
        last = self.manifest["total_shards"] - 1
        urls = f"shard-{{000000..{last:06d}}}.tar" if last > 0 else shard_name(0)
        return "\n".join(
            (
                "data:",
                "  format: webdataset",
                f"  urls: {self.folder.resolve() / urls}",
                f"  num_samples: {self.manifest['total_samples']}",
                f"  shape: {list(self.manifest['sample_shape'])}  # {self.manifest['layout']}",
                f"  dtype: {self.manifest['sample_dtype']}",
                f"  num_classes: {self.manifest['num_classes']}",
            )
        )

    def to_json(self) -> str:
        """One line of JSON."""
        stages = [] if self.pipeline is None else [asdict(s) for s in self.pipeline.stages]
        return json.dumps(
            {
                "folder": str(self.folder),
                "written": self.written,
                "stored_bytes": self.stored_bytes,
                "failed": len(self.failures),
                "total_samples": self.manifest["total_samples"],
                "total_shards": self.manifest["total_shards"],
                "wall_s": self.pipeline.wall_s if self.pipeline else 0.0,
                "stages": stages,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What every process that makes shards of one build must know.

    Attributes
    ----------
    folder : Path
        The data set's folder.
    request : Request
        What the caller said about the data set, and how to reach its source.
    device : str or Engine
        As :func:`build`.
    num_workers : int or None
        Threads that fetch.
    memory_limit_bytes : int or None
        Budget of one machine.
    processes_per_machine : int
        How many share it.
    force, retry_failed : bool
        As :func:`build`.
    """

    folder: Path
    request: Request
    device: str | Engine
    num_workers: int | None
    memory_limit_bytes: int | None
    processes_per_machine: int
    force: bool
    retry_failed: bool

    @property
    def memory_share_bytes(self) -> int:
        """What one process may have in flight."""
        limit_bytes = self.memory_limit_bytes or default_memory_limit_bytes()
        return max(1, limit_bytes // self.processes_per_machine)

    def open_engine(self) -> Engine:
        """The engine that computes, as :func:`~ctgpu.engines.open_engine`."""
        return self.device if isinstance(self.device, Engine) else open_engine(self.device)

    def open_source(self, plan: Plan) -> tuple[Source, Mapping[str, int]]:
        """The source of `plan`, as :func:`~ctgpu.planning.open_planned_source`."""
        return open_planned_source(plan, self.request, repaired=self.retry_failed)

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
            force=self.force,
            retry_failed=self.retry_failed,
            watch=watch,
        )


class Executor(ABC):
    """Who makes the shards of a build: this process, or a cluster."""

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
            Told of every sample and shard.

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
        num_workers = job.num_workers or min(16, max(4, usable_cores()))
        self._workers = Workers.for_machine(num_workers, engine.concurrency, engine.batch_size)

    def make(
        self, plan: Plan, todo: Sequence[int], source: Source | None, watch: Watcher
    ) -> tuple[int, PipelineReport]:
        assert self._engine is not None
        with contextlib.ExitStack() as stack:
            sizes_now: Mapping[str, int] = {}
            if source is None:
                source, sizes_now = self._job.open_source(plan)
                stack.callback(source.close)
            maker = self._job.maker(plan, source, sizes_now, self._engine, self._workers, watch)
            report = maker.make(todo)
        return maker.written, report

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def build(
    output_dir: str | PathLike[str],
    *,
    split: str | None = None,
    source: str | PathLike[str] | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    spec: Spec | None = None,
    device: str | Engine = "auto",
    num_workers: int | None = None,
    memory_limit_bytes: int | None = None,
    temp_dir: str | PathLike[str] | None = None,
    samples_per_shard: int | None = None,
    shards: range | None = None,
    part: Part | None = None,
    limit: int | None = None,
    recon: str | None = None,
    order: str | None = None,
    seed: int | None = None,
    keep_no_chest: bool | None = None,
    spacing_fallback: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    executor: Executor | None = None,
    watch: Watcher = ignore,
) -> BuildReport:
    """Make WebDataset shards of training-ready volumes.

    What is None is adopted from the folder's plan where there is one, and else takes its default.
    A build that was stopped goes on where it was; one that is finished does nothing.

    Parameters
    ----------
    output_dir : path
        Folder of the data set; made if it is not there.
    split : {"train", "valid"}, optional
        Which part; default ``"valid"``.
    source : path, optional
        A local copy of CT-RATE or any folder of volumes; default the Hub.
    repo_id, revision : str, optional
        Data set on the Hub (default CT-RATE) and its branch, tag or commit, which is pinned.
    spec : Spec, optional
        What the output shall be.
    device : str or Engine
        ``"auto"``, ``"cpu"``, ``"cuda[:N[,M…]]"`` or ``"reference"``; an engine is closed here.
    num_workers : int, optional
        Threads that fetch; as many decode, up to the cores.
    memory_limit_bytes : int, optional
        Budget of the volumes in flight on one machine; default half of the memory available.
    temp_dir : path, optional
        Spool downloads there instead of holding them in memory.
    samples_per_shard : int, optional
        Default 128.
    shards : range, optional
        Do only these shards of the plan.
    part : Part, optional
        This process is one of several with the same request: it does its part of the shards (or
        `shards`), and keeps to its part of the Hub's quotas and of the machine's memory.
    limit, recon, order, seed, keep_no_chest, spacing_fallback : optional
        Which samples and in which order: first N, ``"all"`` or ``"first"`` reconstruction,
        ``"path"`` or ``"shuffled"`` with a seed, volumes listed as no chest, ``"header"`` to take
        the file's spacing where the CSV has none.
    force : bool
        Build again what is finished.
    retry_failed : bool
        Re-do only the samples that failed, in the shards they belong to.
    token, endpoint : str, optional
        Of the Hub; default from the environment or the login.
    executor : Executor, optional
        Who makes the shards; default this process.
    watch : callable
        Told every :class:`~ctgpu.progress.Event`, from several threads, one at a time.

    Returns
    -------
    BuildReport

    Raises
    ------
    UsageError
        If the request cannot be honoured; :class:`MismatchError` where the folder was begun
        otherwise.
    EnvironmentFailure
        If the source, the device or the output folder fails.
    """
    if num_workers is not None and num_workers < 1:
        raise UsageError(f"--num-workers is {num_workers}; it takes a whole number from 1")
    folder = Path(output_dir)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise UsageError(
            f"--output-dir is {str(folder)!r}, an address; shards are committed by renames and "
            "claimed by files created exclusively, which only a file system has: build into a "
            "folder, and copy it when it is finished"
        )
    part = part or Part()
    request = Request(
        split=split,
        source=Path(source) if source is not None else None,
        repo_id=repo_id,
        revision=revision,
        spec=spec,
        samples_per_shard=samples_per_shard,
        selection={
            "recon": recon,
            "order": order,
            "seed": seed,
            "limit": limit,
            "keep_no_chest": keep_no_chest,
            "spacing_fallback": spacing_fallback,
        },
        temp_dir=Path(temp_dir) if temp_dir is not None else None,
        endpoint=endpoint,
        token=token,
        part_count=part.count,
    )
    require_writable(folder)
    job = BuildJob(
        folder=folder,
        request=request,
        device=device_for(folder, device),
        num_workers=num_workers,
        memory_limit_bytes=memory_limit_bytes,
        processes_per_machine=part.processes_per_machine,
        force=force,
        retry_failed=retry_failed,
    )
    executor = executor or LocalExecutor()
    try:
        with unforeseen_os_errors(folder):
            executor.open(job)
            return _run(job, executor, shards, part, watch)
    finally:
        executor.close()


@contextlib.contextmanager
def unforeseen_os_errors(folder: Path) -> Iterator[None]:
    """One sentence for what sources, decoders and shards have no words of their own for."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} cannot be used: {error.strerror}; when that is mended, "
            "run the same command again: finished samples are kept"
        ) from error


def _run(
    job: BuildJob, executor: Executor, shards: range | None, part: Part, watch: Watcher
) -> BuildReport:
    folder = job.folder
    plan, source, counts = _settle(job, watch)
    written, report = 0, None
    with contextlib.closing(source) if source is not None else contextlib.nullcontext():
        if shards is not None and shards.stop > plan.shards:
            raise UsageError(
                f"--shards asks for shard {shards.stop - 1}; the plan has shards 0 to "
                f"{plan.shards - 1}"
            )
        pending = _pending(job, plan)
        own = shards or part.shards_of(plan.shards)
        todo = [index for index in pending if index in own]
        if todo:
            # The other parts fill the same disk at the same time.
            together = todo if shards is not None else pending
            require_free_space(folder, _bytes_to_write(folder, plan, together))
        watch(
            Planned(
                counts,
                samples=len(plan.samples),
                shards=plan.shards,
                pending_shards=len(todo),
                pending_samples=sum(len(plan.samples_of(index)) for index in todo),
            )
        )
        if todo:
            written, report = executor.make(plan, todo, source, watch)
        else:
            # A process that was killed after its last commit could not give its leases back.
            LeaseSession(folder).close()
    manifest = write_manifest(folder)
    ledger = (folder / FAILURES_NAME).read_text().splitlines()
    return BuildReport(
        folder,
        manifest,
        written,
        written * plan.spec.size_bytes,
        [json.loads(line) for line in ledger],
        report,
    )


def _settle(job: BuildJob, watch: Watcher) -> tuple[Plan, Source | None, Mapping[str, int]]:
    """Adopt the folder's plan, or make and save one; then its source is open already."""
    arithmetic = arithmetic_of(job.device)
    adopted = adopt_plan(job.folder, job.request, arithmetic)
    if adopted is not None:
        return adopted, None, {}
    plan, source, counts = make_plan(job.request, arithmetic, watch)
    with disk.storage_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    saved = Plan.create(job.folder, plan)
    if saved is not plan:
        # Another process was first; it must have been asked for the same.
        saved.require(job.folder, plan)
    return saved, source, counts


def _pending(job: BuildJob, plan: Plan) -> list[int]:
    """The shards of the whole plan that are still to be made, or made again."""
    everything = range(plan.shards)
    if job.force:
        return list(everything)
    committed = set(committed_shards(job.folder))
    if job.retry_failed:
        committed -= {index for index, _ in failures(job.folder)}
    return [index for index in everything if index not in committed]


def _bytes_to_write(folder: Path, plan: Plan, todo: Sequence[int]) -> int:
    """Upper bound of what the shards still need, beside what lies there already."""
    per_sample = plan.spec.size_bytes + _SMALL_MEMBERS_BYTES
    total = beside = 0
    for index in todo:
        size_bytes = len(plan.samples_of(index)) * per_sample
        partial, tar = folder / partial_name(index), folder / shard_name(index)
        if partial.exists():
            size_bytes -= partial.stat().st_size
        if tar.exists():
            # It makes room for its successor, but only once that is complete.
            beside = max(beside, tar.stat().st_size)
            size_bytes -= tar.stat().st_size
        total += max(0, size_bytes)
    return total + beside
