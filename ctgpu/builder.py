"""The main job: a source and a spec to a folder of shards."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

from ctgpu.arguments import path_of, plain, require_flag, require_kind, shown
from ctgpu.engines import Engine, arithmetic_of
from ctgpu.errors import StorageError, UsageError, reason_of, shortage
from ctgpu.executor import BuildJob, Executor, LocalExecutor
from ctgpu.limits import (
    MOST_INT64,
    MOST_WORKERS,
    SMALL_MEMBERS_BYTES,
    require_free_space,
    require_whole_number,
    require_writable,
)
from ctgpu.planning import (
    Part,
    Request,
    adopt_plan,
    device_for,
    make_plan,
    open_planned_source,
)
from ctgpu.progress import Planned, Watcher, ignore
from ctgpu.report import BuildReport
from ctgpu.shards import disk
from ctgpu.shards.lease import LeaseSession
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import FAILURES_NAME, partial_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.work import samples_to_make
from ctgpu.source_now import (
    foreign_source,
    is_elsewhere,
    new_tars,
    require_going_on,
    say_what_is_new,
)
from ctgpu.sources.base import Source
from ctgpu.spec import SPEC_WANTED, Spec
from ctgpu.tally import OrientationTally

__all__ = ["BuildJob", "BuildReport", "Executor", "LocalExecutor", "build"]

log = logging.getLogger(__name__)


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
    axes: str | None = None,
    max_tilt_degrees: float | None = None,
    hu_guard: str | None = None,
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
    axes, max_tilt_degrees : optional
        Which orientations are taken, as :class:`~ctgpu.orientation.AxisRules`.
    hu_guard : {"refuse", "warn"}, optional
        What to do about a volume that does not look like HU: a failed sample (the default), or
        taken, with the finding in its JSON.
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
    for name, text in (
        ("repo_id", repo_id),
        ("revision", revision),
        ("token", token),
        ("endpoint", endpoint),
    ):
        require_kind(name, text, str, "text")
    require_kind("spec", spec, Spec, SPEC_WANTED)
    require_kind("shards", shards, range, "a range, such as range(0, 10)")
    require_kind("part", part, Part, "a ctgpu.planning.Part")
    require_kind("executor", executor, Executor, "a ctgpu.executor.Executor")
    if not callable(watch):
        raise UsageError(f"watch is {shown(watch)}; wanted a function of one event")
    for name, flag in (
        ("force", force),
        ("retry_failed", retry_failed),
        ("keep_no_chest", False if keep_no_chest is None else keep_no_chest),
    ):
        require_flag(name, flag)
    require_whole_number("--num-workers", num_workers, most=MOST_WORKERS)
    require_whole_number("--memory-limit", memory_limit_bytes, most=MOST_INT64)
    if shards is not None and (shards.step != 1 or not 0 <= shards.start < shards.stop):
        raise UsageError(f"--shards is {shards!r}; it takes A-B, both included, such as 0-9")
    folder = path_of("output_dir", output_dir)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise UsageError(
            f"--output-dir is {str(folder)!r}, an address; shards are committed by renames and "
            "claimed by files created exclusively, which only a file system has: build into a "
            "folder, and copy it when it is finished"
        )
    part = part or Part()
    request = Request(
        split=split,
        source=path_of("source", source) if source is not None else None,
        repo_id=repo_id,
        revision=revision,
        spec=spec,
        samples_per_shard=plain(samples_per_shard),
        selection={
            "recon": recon,
            "order": order,
            "seed": plain(seed),
            "limit": plain(limit),
            "keep_no_chest": plain(keep_no_chest),
            "spacing_fallback": spacing_fallback,
            "axes": axes,
            "max_tilt_degrees": plain(max_tilt_degrees),
            "hu_guard": hu_guard,
        },
        temp_dir=path_of("temp_dir", temp_dir) if temp_dir is not None else None,
        endpoint=endpoint,
        token=token,
        part_count=part.count,
    )
    require_writable(folder)
    job = BuildJob(
        folder=folder,
        request=request,
        device=device_for(folder, device),
        num_workers=plain(num_workers),
        memory_limit_bytes=plain(memory_limit_bytes),
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
    """One sentence for what sources, decoders and shards have no words of their own for.

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


def _run(
    job: BuildJob, executor: Executor, shards: range | None, part: Part, watch: Watcher
) -> BuildReport:
    folder = job.folder
    plan, source, counts = _settle(job, watch)
    watch = tally = OrientationTally(folder, watch)
    written, report = 0, None
    with contextlib.closing(source) if source is not None else contextlib.nullcontext():
        if shards is not None and shards.stop > plan.shards:
            raise UsageError(
                f"--shards asks for shard {shards.stop - 1}; the plan has shards 0 to "
                f"{plan.shards - 1}"
            )
        pending = job.pending(plan)
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
                pending_samples=sum(
                    samples_to_make(
                        folder, plan, index, force=job.force, retry_failed=job.retry_failed
                    )
                    for index in todo
                ),
            )
        )
        if todo:
            written, report = executor.make(plan, todo, source, watch)
        else:
            _look_at_finished(job, plan)
            # A process that was killed after its last commit could not give its leases back.
            LeaseSession(folder).close()
    manifest = write_manifest(folder)
    tally.finish(manifest)
    if left := plan.shards - manifest["total_shards"]:
        log.info(
            "%s: %d of the plan's %d shards are not made yet: the other parts make them, or this "
            "command with --shards 0-%d",
            *(folder, left, plan.shards, plan.shards - 1),
        )
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


def _look_at_finished(job: BuildJob, plan: Plan) -> None:
    """Nothing is to be made: look at a source that was named, and say of any other that it was not.

    Raises
    ------
    MismatchError, UsageError
        If the source that was named is at another place and does not hold the plan's volumes.
    """
    named = job.request.source
    if named is None:
        _say_not_looked_at(job, plan)
        return
    if plan.source["kind"] == "tars" and not is_elsewhere(plan, named):
        # Nothing is read of tars that a conversion was done with.
        say_what_is_new(new_tars(plan, named), named)
        _say_not_looked_at(job, plan)
        return
    try:
        now = open_planned_source(plan, job.request)
    except UsageError:
        if is_elsewhere(plan, named):
            raise
        # What is finished does not need it any more.
        _say_not_looked_at(job, plan)
        return
    with contextlib.closing(now.source):
        if is_elsewhere(plan, named) and now.gone:
            raise foreign_source(now, plan, named)
        require_going_on(now, job.folder, plan, (), path=named, force=False)


def _say_not_looked_at(job: BuildJob, plan: Plan) -> None:
    log.info(
        "%s: there is nothing to make; its source, %s, was not looked at",
        job.folder,
        plan.source.get("path", plan.source["location"]),
    )


def _bytes_to_write(folder: Path, plan: Plan, todo: Sequence[int]) -> int:
    """Upper bound of what the shards still need, beside what lies there already."""
    per_sample = plan.spec.size_bytes + SMALL_MEMBERS_BYTES
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
