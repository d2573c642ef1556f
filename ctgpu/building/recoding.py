"""Finished shards with another compression, or none: the same bytes as a build would have made."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ctgpu.buffers import BufferPool, ByteBudget
from ctgpu.building.builder import bytes_to_write, unforeseen_os_errors
from ctgpu.building.described import name_in
from ctgpu.building.events import (
    Event,
    Planned,
    SampleWritten,
    ShardCommitted,
    ShardResumed,
    Watcher,
)
from ctgpu.building.executor import default_workers
from ctgpu.building.in_flight import MadeSample
from ctgpu.building.pipeline import Failure, Pipeline, PipelineReport, Stages, Workers
from ctgpu.building.report import BuildReport
from ctgpu.building.request import Common
from ctgpu.building.source_now import shortened
from ctgpu.codec.ctz import SLACK_BYTES, CtzError
from ctgpu.errors import FetchError, StorageError, UsageError
from ctgpu.installation import __version__
from ctgpu.machine import (
    default_memory_limit_bytes,
    require_free_space,
    require_open_files,
    require_writable,
)
from ctgpu.printable import counted
from ctgpu.shards import disk
from ctgpu.shards.folder import committed_shards, is_committed
from ctgpu.shards.lease import Lease, LeaseSession
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.manifest import read_failures, write_manifest
from ctgpu.shards.names import (
    PLAN_NAME,
    parse_shard_name,
    record_name,
    shard_name,
)
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.recode import restore_sample
from ctgpu.shards.record import SampleEntry, ShardRecord, ShardSummary
from ctgpu.shards.tar import PAYLOADS
from ctgpu.shards.work import NewShard
from ctgpu.sources.dicom.private import Pseudonyms
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

# The tar that is read, and of the one that is written: itself, its second descriptor for direct
# writes, and the journal.
_FILES_OF_A_SHARD = 4


def plan_to_recode(folder: Path, tars: Sequence[Path], request: Common) -> Plan | None:
    """The plan of some shards, where all that is asked for is another compression.

    Parameters
    ----------
    folder : Path
        Where the new shards go.
    tars : sequence of Path
        Tars of any kind.
    request : Common
        What is asked for.

    Returns
    -------
    Plan or None
        None where they are no shards of one folder, or more is asked for.

    Raises
    ------
    UsageError
        If a plan is damaged, or the folder that of a data set that is no conversion.
    """
    homes = {tar.parent for tar in tars}
    begun = (folder / PLAN_NAME).exists()
    if len(homes) != 1 or not (begun or request.compress):
        return None
    (home,) = homes
    if not (home / PLAN_NAME).exists():
        return None
    plan = Plan.load(home)
    if begun:
        saved = Plan.load(folder)
        differ = saved.differences(replace(plan, compression=saved.compression))
        if differ and saved.source["kind"] != "tars":
            fields = [one.partition(":")[0] for one in differ]
            raise UsageError(
                f"{folder} is another data set than {home}, which differs in {shortened(fields)}; "
                "choose another --output-dir"
            )
        return None if differ else plan
    return plan if request.spec in (None, plan.spec) else None


def recode(
    folder: Path, tars: Sequence[Path], plan: Plan, request: Common, watch: Watcher
) -> BuildReport:
    """Write shards again, volumes and masks as `request.compress` says, all else as it is.

    Parameters
    ----------
    folder : Path
        Where to.
    tars : sequence of Path
        Shards of one folder.
    plan : Plan
        Of that folder.
    request : Common
        What is asked for.
    watch : callable
        Called with every event.

    Raises
    ------
    UsageError
        If more is asked for than another compression.
    LeaseHeld
        If another process works on one of the shards.
    EnvironmentFailure
        If the tars or the output folder fail.
    """
    home = tars[0].parent
    _require_no_more(plan, home, request)
    require_writable(folder)
    if request.shards is not None and request.shards.stop > plan.shards:
        raise UsageError(
            f"shards is {request.shards!r}; the plan of {home} has shards 0 to {plan.shards - 1}"
        )
    with unforeseen_os_errors(folder):
        with disk.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _keep_private(folder, home, plan)
        saved = Plan.create(folder, replace(plan, compression=request.compression))
        if request.compress is not None:
            saved.require(folder, replace(plan, compression=request.compression))
        return _run(folder, home, tars, saved, request, watch)


def _require_no_more(plan: Plan, home: Path, request: Common) -> None:
    wanted = {name: getattr(request, name) for name in ("split", "samples_per_shard")}
    wanted |= {f"selection.{name}": value for name, value in request.selection.items()}
    differ = plan.differences({n: value for n, value in wanted.items() if value is not None})
    if request.retry_failed:
        differ.append("retry_failed: what failed can only be made of the originals")
    if differ:
        raise UsageError(
            f"{home} holds finished shards, and all that a conversion changes of them is how they "
            f"are compressed ({'; '.join(differ)}): leave these options out, or build from the "
            "originals"
        )


def _keep_private(folder: Path, home: Path, plan: Plan) -> None:
    """Of DICOM, what tells the samples' keys apart: a build goes on by it, here as there."""
    if plan.source["kind"] != "dicom":
        return
    if (register := Pseudonyms(home).load()) is not None:
        Pseudonyms(folder).keep(register)


def _run(
    folder: Path, home: Path, tars: Sequence[Path], plan: Plan, request: Common, watch: Watcher
) -> BuildReport:
    named = {tar: parse_shard_name(tar.name) for tar in tars}
    if strange := [tar.name for tar, shard in named.items() if shard is None]:
        log.warning("%s: no shards of %s, and left out", shortened(strange), home)
    there = {shard[0] for shard in named.values() if shard is not None}
    there &= {*committed_shards(home)} & {*(request.shards or range(plan.shards))}
    done = () if request.force else committed_shards(folder)
    todo = sorted(there.difference(done))
    require_free_space(folder, bytes_to_write(folder, plan, todo))
    records = [ShardSummary.load(home / record_name(index)) for index in todo]
    watch(
        Planned(
            {},
            samples=len(plan.samples),
            shards=plan.shards,
            pending_shards=len(todo),
            pending_samples=sum(record.num_samples for record in records),
            data_set=name_in(plan),
        )
    )
    work = _Recoding(folder, home, plan, request, watch)
    report = work.run(todo)
    manifest = write_manifest(folder)
    if left := plan.shards - manifest["total_shards"]:
        log.info(
            "%s: %d of the plan's %s not there: `ctgpu build` makes the rest, of the originals, or "
            "this command when %s has it",
            *(folder, left, counted(plan.shards, "shard is", "shards are"), home),
        )
    return BuildReport(
        folder,
        manifest,
        work.written,
        work.stored_bytes,
        read_failures(folder),
        report if todo else None,
        name_in(plan),
    )


@dataclass(slots=True)
class _Shard:
    """A shard that is read, and the one that is written of it."""

    reader: ShardReader
    record: ShardRecord
    work: NewShard
    lease: Lease
    pending: list[SampleRef]

    def skip_failed(self) -> None:
        """Note those that failed, up to the next sample that did not."""
        failures = {failure.key: failure for failure in self.record.failures}
        while self.pending and self.pending[0].key in failures:
            self.work.take(failures[self.pending.pop(0).key])

    def close(self) -> None:
        """Close the files; another run can go on from here."""
        self.reader.close()
        self.work.abandon()


@dataclass(frozen=True, slots=True)
class _Task:
    entry: SampleEntry
    shard: _Shard


class _Recoding:
    def __init__(
        self, folder: Path, home: Path, plan: Plan, request: Common, watch: Watcher
    ) -> None:
        self._folder, self._home, self._plan, self._watch = folder, home, plan, watch
        self._watch_lock = threading.Lock()
        self._force = request.force
        limit_bytes = request.memory_limit_bytes or default_memory_limit_bytes()
        self._pool = BufferPool(limit_bytes)
        workers = Workers.for_machine(request.num_workers or default_workers(), 1)
        self._pipeline = Pipeline(self._stages(), workers, ByteBudget(limit_bytes))
        self._open: list[_Shard] = []
        self.written = self.stored_bytes = 0
        at_a_time = 1 + math.ceil(workers.most_in_flight / plan.samples_per_shard)
        require_open_files(_FILES_OF_A_SHARD * min(at_a_time, plan.shards))

    def run(self, todo: Sequence[int]) -> PipelineReport:
        # Also where nothing is to do: a process that was killed after its last commit could not
        # give its leases back.
        with LeaseSession(self._folder) as session:
            try:
                return self._pipeline.run(self._tasks(todo, session))
            finally:
                for shard in self._open:
                    shard.close()

    def _stages(self) -> Stages[_Task, MadeSample, MadeSample, MadeSample]:
        plan = self._plan
        # As it is read, restored and compressed: two of these at a time.
        largest_bytes = sum(replace(plan, compression="rice").payload_limits_bytes)
        held_bytes = 2 * (largest_bytes + 2 * SLACK_BYTES)

        def compress(task: _Task, made: MadeSample) -> MadeSample:
            return made.compress(self._pool, plan)

        return Stages(
            footprint=lambda task: held_bytes,
            fetch=self._read,
            fetched_footprint=lambda task, read: held_bytes,
            decode=self._restore,
            decoded_footprint=lambda task, restored: held_bytes,
            make=lambda batch: [restored for _, restored in batch],
            made_footprint=lambda task: held_bytes if plan.compression else plan.sample_bytes,
            write=self._write,
            discard=lambda unused: unused.release(),
            compress=compress if plan.compression else None,
            compressed_footprint=lambda task, made: made.held_bytes,
        )

    def _tasks(self, todo: Sequence[int], session: LeaseSession) -> Iterator[_Task]:
        for index in todo:
            with contextlib.ExitStack() as leased:
                lease = leased.enter_context(session.acquire_unless_alive(index))
                if is_committed(self._folder, index) and not self._force:
                    continue  # by the process that had the lease before
                leased.pop_all()
            shard = self._opened(index, lease)
            good = {entry.key: entry for entry in shard.record.samples}
            tasks = [_Task(good[ref.key], shard) for ref in shard.pending if ref.key in good]
            if not tasks:
                self._finish(shard)
            yield from tasks

    def _opened(self, index: int, lease: Lease) -> _Shard:
        path = self._home / shard_name(index)
        with contextlib.ExitStack() as opened:
            record = ShardRecord.load(path.with_name(record_name(index)))
            reader = opened.enter_context(ShardReader(path))
            if reader.record != record:  # the record goes before another tar comes
                raise StorageError(
                    f"{path} was written again while it was opened; let the process that does so "
                    "finish, then run the same command again"
                )
            self._require_planned(record)
            known: dict[str, SampleEntry | LedgerEntry] = {s.key: s for s in record.samples}
            known |= {failure.key: failure for failure in record.failures}
            work = NewShard(
                self._folder,
                self._plan,
                index,
                lease.confirm,
                replace=self._force,
                is_current=lambda planned, entry: _says_the_same(known[planned.key], entry),
            )
            opened.pop_all()
        shard = _Shard(reader, record, work, lease, list(work.todo))
        self._open.append(shard)
        left = {ref.key for ref in shard.pending}
        if kept := sum(sample.key not in left for sample in record.samples):
            self._tell(ShardResumed(index, kept))
        return shard

    def _require_planned(self, record: ShardRecord) -> None:
        """Refuse a shard that is not one of the plan; how it is compressed makes no difference."""
        sizes_bytes = replace(self._plan, compression=None).payload_limits_bytes
        planned = self._plan.samples_of(record.shard_index)
        entries = {sample.key: sample for sample in record.samples}
        keys = [*entries, *(failure.key for failure in record.failures)]
        if (
            record.fingerprint != self._plan.fingerprint
            or {ref.key for ref in planned} != {*keys}
            or not all(_is_of(entry, sizes_bytes) for entry in entries.values())
        ):
            raise StorageError(
                f"{self._home / record_name(record.shard_index)} is not of the plan beside it; "
                f"`ctgpu verify {self._home}` says what is wrong with the folder"
            )

    def _read(self, task: _Task) -> MadeSample:
        entry = task.entry
        payloads = [m.size_bytes for e, m in entry.members.items() if e in PAYLOADS]
        with contextlib.ExitStack() as stack:
            buffers = []
            for size_bytes in payloads:
                buffers.append(self._pool.acquire(size_bytes + SLACK_BYTES))
                stack.enter_context(buffers[-1].released_on_error())
            rooms = [b.bytes[:n] for b, n in zip(buffers, payloads, strict=True)]
            try:
                packed = task.shard.reader.copy_sample(entry, *rooms)
            except FetchError as error:
                raise self._damaged(task, str(error)) from error
        return MadeSample(packed, buffers, None)

    def _restore(self, task: _Task, read: MadeSample) -> MadeSample:
        if not read.packed.compressed:
            return read
        raw = replace(self._plan, compression=None)
        with contextlib.ExitStack() as stack:
            stack.callback(read.release)
            buffers = []
            for size_bytes in raw.payload_limits_bytes:
                buffers.append(self._pool.acquire(size_bytes))
                stack.enter_context(buffers[-1].released_on_error())
            members = [buffer.bytes for buffer in read.buffers]
            rooms = [buffer.bytes for buffer in buffers]
            try:
                packed = restore_sample(read.packed, raw, members, *rooms)
            except CtzError as error:
                raise self._damaged(task, f"{read.packed.key}: {error}") from error
        return MadeSample(packed, buffers, None)

    def _damaged(self, task: _Task, what: str) -> StorageError:
        index = task.shard.work.index
        return StorageError(
            f"{what}; remove {self._home / shard_name(index)} and {record_name(index)}, and run "
            "the build there again, which rebuilds the shard"
        )

    def _write(self, task: _Task, result: MadeSample | Failure) -> None:
        shard, entry = task.shard, task.entry
        if isinstance(result, Failure):
            raise StorageError(
                f"{self._home / shard_name(shard.work.index)}: {entry.key} cannot be compressed "
                f"otherwise ({result.error_class}: {result.message}), which is a defect of ctgpu; "
                f"{self._home} is as it was"
            )
        shard.lease.confirm()
        shard.skip_failed()
        shard.pending.pop(0)
        try:
            shard.work.take(result.packed)
            stored_bytes = result.packed.payload_bytes
        finally:
            result.release()
        self.written += 1
        self.stored_bytes += stored_bytes
        self._tell(
            SampleWritten(
                entry.key,
                shard.work.index,
                entry.payload_bytes,
                stored_bytes,
                result.packed.orientation,
            )
        )
        shard.skip_failed()
        if not shard.pending:
            self._finish(shard)

    def _finish(self, shard: _Shard) -> None:
        shard.skip_failed()
        shard.lease.confirm()
        stages = [asdict(stage) for stage in self._pipeline.times]
        run = {**shard.record.run, "recoded": {"ctgpu": __version__, "stages": stages}}
        record = shard.work.finish(run)
        shard.lease.release()
        shard.close()
        self._open.remove(shard)
        self._tell(ShardCommitted(shard.work.index, len(record.samples), record.size_bytes))

    def _tell(self, event: Event) -> None:
        with self._watch_lock:
            self._watch(event)


def _says_the_same(wanted: SampleEntry | LedgerEntry, entry: SampleEntry | LedgerEntry) -> bool:
    """Whether what an interrupted run wrote of a sample is what would be written now."""
    if isinstance(entry, LedgerEntry) or isinstance(wanted, LedgerEntry):
        return entry == wanted
    # Of one volume there is one way to compress it, and the JSON has its checksum.
    return all(
        entry.members[name].xxh3_128 == wanted.members[name].xxh3_128
        for name in ("cls", "txt", "json")
    )


def _is_of(entry: SampleEntry, sizes_bytes: Sequence[int]) -> bool:
    """Whether a sample has the payloads of a plan: of these sizes, before they are compressed."""
    found = [m.size_bytes for extension, m in entry.members.items() if extension in PAYLOADS]
    return len(found) == len(sizes_bytes) and (entry.is_compressed or found == [*sizes_bytes])
