"""The main job: a source and a spec to a folder of shards."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from ctgpu.arguments import path_of, require_kind, shown
from ctgpu.building.described import JoinedTable, name_in
from ctgpu.building.events import Event, Planned, SampleWritten, Watcher, ignore
from ctgpu.building.executor import BuildJob, Executor, LocalExecutor
from ctgpu.building.planning import adopt_plan, device_for, make_plan, open_planned_source
from ctgpu.building.report import BuildReport
from ctgpu.building.request import Request, called_with, taken
from ctgpu.building.source_now import (
    foreign_source,
    is_elsewhere,
    new_tars,
    require_going_on,
    say_what_is_new,
)
from ctgpu.building.tally import OrientationTally
from ctgpu.engines import arithmetic_of
from ctgpu.errors import StorageError, UsageError, reason_of, shortage
from ctgpu.machine import SMALL_MEMBERS_BYTES, require_free_space, require_writable
from ctgpu.printable import counted
from ctgpu.shards import disk
from ctgpu.shards.lease import LeaseSession
from ctgpu.shards.manifest import read_failures, write_manifest
from ctgpu.shards.names import partial_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.work import samples_to_make
from ctgpu.sources.base import Source
from ctgpu.spec import CT_RATE, STORED
from ctgpu.volume.crop import require_croppable

__all__ = ["BuildJob", "BuildReport", "Executor", "LocalExecutor", "build"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BuildCall(Request):
    """The parameters of :func:`build`.

    Attributes
    ----------
    output_dir : path
        Folder of the data set; made if it is not there.
    executor : Executor, optional
        What makes the shards; default this process.
    watch : callable
        Called with every :class:`~ctgpu.building.events.Event`, from several threads, one at a
        time.
    """

    output_dir: str | PathLike[str] = field(kw_only=False)
    executor: Executor | None = None
    watch: Watcher = ignore


@called_with(_BuildCall)
def build(call: _BuildCall) -> BuildReport:
    """Make WebDataset shards of training-ready volumes.

    What is None is adopted from the folder's plan where there is one, and else takes its default.
    A build that was stopped goes on where it was; one that is finished does nothing.

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
    require_kind("executor", call.executor, Executor, "a ctgpu.building.executor.Executor")
    if not callable(call.watch):
        raise UsageError(f"watch is {shown(call.watch)}; wanted a function of one event")
    folder = path_of("output_dir", call.output_dir)
    return make_shards(folder, taken(Request, call), call.executor or LocalExecutor(), call.watch)


def make_shards(
    folder: Path, request: Request, executor: Executor, watch: Watcher = ignore
) -> BuildReport:
    """Carry out a request in a folder; as :func:`build`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise UsageError(
            f"output_dir is {str(folder)!r}, an address; shards are committed by renames and "
            "claimed by files created exclusively, which only a file system has: build into a "
            "folder, and copy it when it is finished"
        )
    require_writable(folder)
    request = replace(request, device=device_for(folder, request.device))
    job = BuildJob(folder=folder, request=request)
    try:
        with unforeseen_os_errors(folder):
            executor.open(job)
            return _run(job, executor, watch)
    finally:
        executor.close()


@contextlib.contextmanager
def unforeseen_os_errors(folder: Path) -> Iterator[None]:
    """Turn errors that sources, decoders and shards did not foresee into one sentence.

    Raises
    ------
    EnvironmentFailure
        In place of an :class:`OSError`, and of what says that memory or threads ran out.
    """
    try:
        yield
    except OSError as error:
        if (short := shortage(error)) is not None:
            raise short from error
        raise StorageError(
            f"{error.filename or folder} cannot be used: {reason_of(error)}; when that is "
            "mended, run the same command again: finished samples are kept"
        ) from error
    except (MemoryError, RuntimeError, ImportError) as error:
        if (short := shortage(error)) is None:
            raise
        raise short from error


def _run(job: BuildJob, executor: Executor, watch: Watcher) -> BuildReport:
    folder, request = job.folder, job.request
    shards = request.shards
    made = _settle(job, watch)
    plan, source = made.plan, made.source
    turned = plan.spec.orientation != STORED
    tally = OrientationTally(folder, watch, turned=turned)
    written, stored_bytes, report = 0, 0, None

    def listen(event: Event) -> None:
        nonlocal stored_bytes
        if isinstance(event, SampleWritten):
            stored_bytes += event.stored_bytes
        tally(event)

    with contextlib.closing(source) if source is not None else contextlib.nullcontext():
        if shards is not None and shards.stop > plan.shards:
            raise UsageError(
                f"shards is {shown(shards)}; the plan has shards 0 to {plan.shards - 1}"
            )
        pending = job.pending(plan)
        own = shards or request.part.shards_of(plan.shards)
        todo = [index for index in pending if index in own]
        if todo:
            # The other parts fill the same disk at the same time.
            together = todo if shards is not None else pending
            require_free_space(folder, bytes_to_write(folder, plan, together))
        listen(
            Planned(
                made.counts,
                data_set=made.data_set,
                tables=made.tables,
                samples=len(plan.samples),
                shards=plan.shards,
                pending_shards=len(todo),
                pending_samples=sum(
                    samples_to_make(
                        folder,
                        plan,
                        index,
                        force=request.force,
                        retry_failed=request.retry_failed,
                    )
                    for index in todo
                ),
            )
        )
        if todo:
            written, report = executor.make(plan, todo, source, listen)
        else:
            _look_at_finished(job, plan)
            # A process that was killed after its last commit could not give its leases back.
            LeaseSession(folder).close()
    manifest = write_manifest(folder)
    tally.finish(manifest)
    if left := plan.shards - manifest["total_shards"]:
        log.info(
            "%s: %d of the plan's %s not made yet: the other parts make the rest, or this command "
            "with --shards 0-%d",
            *(folder, left, counted(plan.shards, "shard is", "shards are"), plan.shards - 1),
        )
    return BuildReport(
        folder,
        manifest,
        written,
        stored_bytes,
        read_failures(folder),
        report,
        made.data_set,
        made.tables,
    )


@dataclass(frozen=True, slots=True)
class _Settled:
    """The plan of a build; with what it was made of, if that was now."""

    plan: Plan
    source: Source | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    data_set: str = ""
    tables: tuple[JoinedTable, ...] = ()


def _settle(job: BuildJob, watch: Watcher) -> _Settled:
    """Adopt the folder's plan, or make and save one; then its source is open already."""
    arithmetic = arithmetic_of(job.request.device)
    adopted = adopt_plan(job.folder, job.request, arithmetic)
    require_croppable((adopted or job.request).spec or CT_RATE)
    if adopted is not None:
        return _Settled(adopted, data_set=name_in(adopted))
    made = make_plan(job.request, arithmetic, watch, job.folder)
    with disk.storage_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    saved = Plan.create(job.folder, made.plan)
    if saved is not made.plan:
        # Another process was first; it must have been asked for the same.
        saved.require(job.folder, made.plan)
    return _Settled(saved, made.source, made.counts, made.data_set, made.tables)


def _look_at_finished(job: BuildJob, plan: Plan) -> None:
    """Check a named source where nothing is left to make; log that any other was not looked at.

    Raises
    ------
    MismatchError, UsageError
        If the source that was named is at another place and does not hold the plan's volumes.
    """
    named = job.request.source_path
    if named is None:
        _say_not_looked_at(job, plan)
        return
    if plan.source["kind"] == "tars" and not is_elsewhere(plan, job.folder, named):
        # Nothing is read of tars that a conversion was done with.
        say_what_is_new(new_tars(plan, named), named)
        _say_not_looked_at(job, plan)
        return
    try:
        now = open_planned_source(plan, job.folder, job.request)
    except UsageError:
        if is_elsewhere(plan, job.folder, named):
            raise
        # What is finished does not need it any more.
        _say_not_looked_at(job, plan)
        return
    with contextlib.closing(now.source):
        if is_elsewhere(plan, job.folder, named) and now.gone:
            raise foreign_source(now, plan, named)
        require_going_on(now, job.folder, plan, (), path=named, force=False)


def _say_not_looked_at(job: BuildJob, plan: Plan) -> None:
    log.info(
        "%s: there is nothing to make; its source, %s, was not looked at",
        job.folder,
        plan.source.get("path", plan.source["location"]),
    )


def bytes_to_write(folder: Path, plan: Plan, todo: Sequence[int]) -> int:
    """What the shards still need at most, or is expected, beside what lies there already."""
    per_sample = plan.expected_bytes + SMALL_MEMBERS_BYTES
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
