"""Makes shards of a plan in this process: what the stages of its pipeline do with a sample."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ctgpu.buffers import Buffer, BufferPool, ByteBudget
from ctgpu.building.events import (
    Event,
    SampleFailed,
    SampleWritten,
    ShardCommitted,
    ShardDoneElsewhere,
    ShardElsewhere,
    ShardResumed,
    Watcher,
)
from ctgpu.building.in_flight import DecodedSample, FetchedSample, MadeSample
from ctgpu.building.members import (
    label_bytes,
    report_bytes,
    sample_metadata,
    says_the_same,
    to_json_bytes,
)
from ctgpu.building.pipeline import Failure, Pipeline, PipelineReport, Stages, Workers
from ctgpu.building.prepare import prepare_sample
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.decode.inflate import inflate_backend
from ctgpu.engines import Engine, Job
from ctgpu.errors import FetchError, TableError
from ctgpu.installation import __version__
from ctgpu.machine import available_memory_bytes, require_open_files
from ctgpu.printable import counted
from ctgpu.shards.folder import is_committed
from ctgpu.shards.lease import Lease, LeaseHeld, LeaseSession
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, checksum
from ctgpu.shards.work import NewShard, RetriedShard, ShardWork, samples_to_make
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.base import Source
from ctgpu.sources.tables import SampleRow
from ctgpu.volume.mask_gather import gather_mask
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.ref import SampleRef
from ctgpu.volume.stored import numpy_dtype

log = logging.getLogger(__name__)

# Raw bytes for each compressed byte, where nothing better is known before the download.
_EXPECTED_RATIO = 4
# How often to ask whether a shard that another process holds has become free.
_LEASE_POLL_S = 2.0
# The partial tar, its second descriptor for direct writes, and the journal.
_FILES_OF_A_SHARD = 3


@dataclass(slots=True)
class _OpenShard:
    work: ShardWork
    lease: Lease
    left: int


@dataclass(frozen=True, slots=True)
class _Task:
    sample: SampleRef
    shard: _OpenShard


class ShardMaker:
    """Makes shards of one plan, as many as it is asked for, one call after the other.

    Parameters
    ----------
    folder : Path
        The data set's folder, which holds `plan`.
    plan : Plan
        What to make.
    source : Source
        Where the samples are; stays open.
    engine : Engine
        What computes; stays open.
    sizes_now : mapping of str to int
        Sizes in bytes of the volumes whose size is not the planned one.
    workers : Workers
        Threads of each stage.
    memory_limit_bytes : int
        Budget of the volumes in flight.
    spooled : bool
        The source keeps an open file for each sample in flight.
    force, retry_failed : bool
        As :func:`ctgpu.build`.
    watch : callable
        Called with the events of samples and shards, from several threads, one at a time.

    Attributes
    ----------
    written : int
        Samples written so far.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        source: Source,
        engine: Engine,
        *,
        sizes_now: Mapping[str, int],
        workers: Workers,
        memory_limit_bytes: int,
        spooled: bool,
        force: bool,
        retry_failed: bool,
        watch: Watcher,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._source = source
        self._tables = source.tables(plan.split, plan.class_names)
        self._axis_rules = AxisRules.of_selection(plan.selection)
        # Plans older than the option were begun under its default.
        self._hu_guard = plan.selection.get("hu_guard", "refuse") if engine.takes_hu else None
        self._hu_findings: dict[str, str] = {}
        self._engine = engine
        self._sizes_now = sizes_now
        self._workers = workers
        self._memory_limit_bytes = memory_limit_bytes
        self._pool = BufferPool(memory_limit_bytes, engine.allocate)
        self._spooled = spooled
        self._force = force
        self._retry_failed = retry_failed
        self._watch = watch
        self._watch_lock = threading.Lock()
        self._largest_volume_bytes = min(MAX_VOLUME_BYTES, available_memory_bytes())
        self._open_shards: list[_OpenShard] = []
        self.written = 0
        require_open_files(self._files_to_open())

    def make(self, todo: Sequence[int]) -> PipelineReport:
        """Make these shards; those that other processes work on come last.

        Returns
        -------
        PipelineReport
            Stage times and memory.

        Raises
        ------
        EnvironmentFailure, UsageError
            What ends a run; a sample that fails is an entry of its shard's ledger.
        """
        with LeaseSession(self._folder) as session:
            return self._run(self._tasks(todo, session))

    def make_one(self, index: int) -> PipelineReport:
        """Make one shard, unless another process is known to work on it.

        Raises
        ------
        LeaseHeld
            If one is.
        EnvironmentFailure, UsageError
            As :meth:`make`.
        """
        with LeaseSession(self._folder) as session:
            return self._run(self._tasks_of(index, session.acquire_unless_alive(index)))

    def _run(self, tasks: Iterator[_Task]) -> PipelineReport:
        budget = ByteBudget(self._memory_limit_bytes)
        self._pipeline = Pipeline(self._stages(), self._workers, budget)
        try:
            return self._pipeline.run(tasks)
        finally:
            for shard in self._open_shards:
                shard.work.abandon()
            self._open_shards.clear()
            self._warn_of_hu_findings()

    def _warn_of_hu_findings(self) -> None:
        """One warning for all samples of a run, however many there are."""
        if self._hu_findings:
            key, finding = next(iter(self._hu_findings.items()))
            log.warning(
                "%s look like it, such as %s, which %s; each says so in its JSON "
                "(source.intensity.finding)",
                counted(
                    len(self._hu_findings),
                    "of the samples written was taken as HU although it does not",
                    "of the samples written were taken as HU although they do not",
                ),
                *(key, finding),
            )
            self._hu_findings.clear()

    def _files_to_open(self) -> int:
        """Upper bound of the files and connections of a run that are open at a time."""
        samples = self._workers.most_in_flight
        spooled = samples if self._spooled else 0
        shards = 1 + math.ceil(samples / self._plan.samples_per_shard)
        return self._workers.fetch + spooled + _FILES_OF_A_SHARD * min(shards, self._plan.shards)

    def _tasks(self, todo: Sequence[int], session: LeaseSession) -> Iterator[_Task]:
        """The samples to make, shard after shard; shards that others work on come last."""
        waiting = list(todo)
        elsewhere: dict[int, int] = {}
        while waiting:
            held: list[int] = []
            for index in waiting:
                try:
                    lease = session.acquire(index)
                except LeaseHeld as error:
                    held.append(index)
                    if index not in elsewhere:
                        elsewhere[index] = self._samples_to_make(index)
                        self._tell(ShardElsewhere(index, error.holder))
                    continue
                yield from self._tasks_of(index, lease)
            if len(held) == len(waiting) and not self._pipeline.pause(_LEASE_POLL_S):
                return
            waiting = []
            for index in held:
                if self._force or not is_committed(self._folder, index):
                    waiting.append(index)
                else:
                    self._tell(ShardDoneElsewhere(index, elsewhere[index]))

    def _samples_to_make(self, index: int) -> int:
        return samples_to_make(
            self._folder, self._plan, index, force=self._force, retry_failed=self._retry_failed
        )

    def _tasks_of(self, index: int, lease: Lease) -> Iterator[_Task]:
        work = self._open_work(index, lease)
        if work is None:
            lease.release()
            self._tell(ShardDoneElsewhere(index, len(self._plan.samples_of(index))))
            return
        shard = _OpenShard(work, lease, len(work.todo))
        self._open_shards.append(shard)
        planned = len(self._plan.samples_of(index))
        if isinstance(work, NewShard) and (kept := planned - len(work.todo)):
            self._tell(ShardResumed(index, kept))
        if not work.todo:
            self._finish(shard)
        for sample in work.todo:
            yield _Task(sample, shard)

    def _open_work(self, index: int, lease: Lease) -> ShardWork | None:
        """The work on a shard whose lease is held; None where another process finished it."""
        committed = is_committed(self._folder, index)
        if committed and self._retry_failed and not self._force:
            return RetriedShard(self._folder, self._plan, index, lease.confirm, self._pool)
        if committed and not self._force:
            return None
        return NewShard(
            self._folder,
            self._plan,
            index,
            lease.confirm,
            replace=self._force,
            is_current=self._is_current,
        )

    def _is_current(self, planned: SampleRef, entry: SampleEntry | LedgerEntry) -> bool:
        """Whether what an interrupted run made is what would be made of the source now."""
        if isinstance(entry, LedgerEntry):
            return True  # --retry-failed is for it
        if entry.source_bytes != self._sizes_now.get(planned.path):
            return False
        try:
            return says_the_same(entry, self._row(planned))
        except TableError:
            return True

    def _stages(self) -> Stages[_Task, FetchedSample, DecodedSample, MadeSample]:
        size_bytes = self._plan.sample_bytes

        def compress(task: _Task, made: MadeSample) -> MadeSample:
            return made.compress(self._pool, self._plan)

        return Stages(
            footprint=self._expected_footprint,
            fetch=self._fetch,
            fetched_footprint=lambda task, fetched: self._fetched_footprint(fetched),
            decode=self._decode,
            decoded_footprint=lambda task, decoded: (
                size_bytes + max(decoded.prepared.raw.size_bytes, self._room_bytes)
            ),
            make=self._make_batch,
            made_footprint=lambda task: size_bytes + self._room_bytes,
            write=self._write,
            discard=lambda unused: unused.release(),
            compress=compress if self._plan.compression else None,
            compressed_footprint=lambda task, made: made.held_bytes,
        )

    @property
    def _room_bytes(self) -> int:
        """What a sample is compressed into, beside what it is compressed from."""
        return sum(self._plan.payload_limits_bytes) if self._plan.compression else 0

    def _fetched_footprint(self, fetched: FetchedSample) -> int:
        # Percentiles of anything but 8 and 16 bit voxels sort a copy of them.
        copies = 1 if self._plan.spec.percentiles is None else 2
        held = fetched.footprint_bytes(self._plan.masks, copies)
        return self._plan.sample_bytes + max(held, self._room_bytes)

    def _expected_footprint(self, task: _Task) -> int:
        sample = task.sample
        try:
            shape = self._row(sample).shape_hint
        except TableError:  # said when the sample's turn comes
            shape = None
        # What a table says is only a hint, and may be nonsense.
        raw = 2 * math.prod(shape) if shape and min(shape) > 0 else 0
        raw = raw or _EXPECTED_RATIO * sample.size_bytes
        if self._plan.masks is not None:
            # Voxels mostly have two bytes, those of a mask's files one or two.
            raw += raw // 2 * (1 + self._plan.masks.numpy_dtype.itemsize)
        return self._plan.sample_bytes + max(sample.size_bytes + raw, self._room_bytes)

    def _fetch(self, task: _Task) -> FetchedSample:
        sample = task.sample
        row = self._row(sample)
        size_bytes = self._sizes_now.get(sample.path, sample.size_bytes)
        if size_bytes > self._largest_volume_bytes:
            raise FetchError(
                f"{sample.path} is said to have {size_bytes:,} bytes; at most "
                f"{self._largest_volume_bytes:,} are accepted here: look at the file, or use "
                "--retry-failed on a machine with more memory"
            )
        volume = self._source.fetch(replace(sample, size_bytes=size_bytes), self._pool.acquire)
        if row.read_xxh3_128 is not None:
            row.read_xxh3_128["volume"] = checksum(volume.buffer.bytes)
        if self._plan.masks is None:
            return FetchedSample(volume, row)
        with volume.buffer.released_on_error():
            return FetchedSample(volume, row, self._source.fetch_mask(sample, self._pool.acquire))

    def _row(self, sample: SampleRef) -> SampleRow:
        fallback = self._plan.selection["spacing_fallback"] == "header"
        return self._tables.row(sample.study_id, spacing_from_header=fallback)

    def _decode(self, task: _Task, fetched: FetchedSample) -> DecodedSample:
        plan = self._plan
        raw, mask = fetched.decode(self._pool, plan.masks, limit_bytes=self._largest_volume_bytes)
        prepared = prepare_sample(
            raw,
            fetched.row,
            task.sample,
            spec=plan.spec,
            rules=self._axis_rules,
            hu_guard=self._hu_guard,
            mask=mask,
        )
        return DecodedSample(prepared, fetched.row, self._gathered(prepared))

    def _gathered(self, prepared: PreparedVolume) -> Buffer | None:
        """The mask as it is stored; that of all voxels is given back."""
        masks, spec = self._plan.masks, self._plan.spec
        if prepared.mask is None or masks is None:
            return None
        try:
            buffer = self._pool.acquire(masks.size_bytes(spec))
            with buffer.released_on_error():
                gather_mask(prepared, buffer.array(spec.stored_shape, masks.numpy_dtype))
            prepared.mask.release()
            return buffer
        except BaseException:
            prepared.release()
            raise

    def _make_batch(
        self, batch: Sequence[tuple[_Task, DecodedSample]]
    ) -> list[MadeSample | Failure]:
        spec = self._plan.spec
        with contextlib.ExitStack() as stack:
            buffers = []
            for _ in batch:
                buffers.append(self._pool.acquire(spec.size_bytes))
                stack.enter_context(buffers[-1].released_on_error())
            self._engine.run(
                [
                    Job(
                        decoded.prepared.voxels,
                        decoded.prepared.rescale,
                        decoded.prepared.plan,
                        buffer.array(spec.stored_shape, numpy_dtype(spec.dtype)),
                    )
                    for (_, decoded), buffer in zip(batch, buffers, strict=True)
                ]
            )
            return [
                self._pack(task, decoded, buffer)
                for (task, decoded), buffer in zip(batch, buffers, strict=True)
            ]

    def _pack(self, task: _Task, decoded: DecodedSample, buffer: Buffer) -> MadeSample:
        digest = checksum(buffer.bytes)
        mask_digest = None if decoded.mask is None else checksum(decoded.mask.bytes)
        metadata = sample_metadata(
            decoded.prepared,
            study_id=task.sample.study_id,
            source_path=task.sample.path,
            source_revision=self._plan.source["revision"],
            report=decoded.row.report,
            carried=decoded.row.carried,
            fingerprint=self._plan.fingerprint,
            payload_xxh3_128=digest,
            stated_rescale=decoded.row.rescale_pair,
            read_xxh3_128=decoded.row.read_xxh3_128,
            mask_xxh3_128=mask_digest,
        )
        decoded.prepared.release()
        packed = PackedSample(
            task.sample.key,
            buffer.bytes,
            digest,
            label_bytes(decoded.row),
            report_bytes(decoded.row),
            to_json_bytes(metadata),
            orientation.codes if (orientation := decoded.prepared.orientation) else None,
            self._sizes_now.get(task.sample.path),
            None if decoded.mask is None else decoded.mask.bytes,
            mask_digest,
        )
        buffers = [buffer] if decoded.mask is None else [buffer, decoded.mask]
        return MadeSample(packed, buffers, decoded.prepared.hu_finding)

    def _write(self, task: _Task, result: MadeSample | Failure) -> None:
        shard, sample = task.shard, task.sample
        shard.lease.confirm()
        if isinstance(result, Failure):
            shard.work.take(
                LedgerEntry(
                    sample.key, sample.path, result.stage, result.error_class, result.message
                )
            )
            self._tell(SampleFailed(sample.key, shard.work.index, sample.path, result))
        else:
            try:
                shard.work.take(result.packed)
            finally:
                result.release()
            self.written += 1
            if result.hu_finding is not None:
                self._hu_findings[sample.key] = result.hu_finding
            self._tell(
                SampleWritten(
                    sample.key,
                    shard.work.index,
                    sample.size_bytes,
                    result.packed.payload_bytes,
                    result.packed.orientation,
                )
            )
        shard.left -= 1
        if not shard.left:
            self._finish(shard)

    def _finish(self, shard: _OpenShard) -> None:
        shard.lease.confirm()
        record = shard.work.finish(
            {
                "ctgpu": __version__,
                "engine": self._engine.describe(),
                "inflate": inflate_backend(),
                "stages": [asdict(stage) for stage in self._pipeline.times],
            }
        )
        shard.lease.release()
        self._open_shards.remove(shard)
        self._tell(ShardCommitted(shard.work.index, len(record.samples), record.size_bytes))

    def _tell(self, event: Event) -> None:
        with self._watch_lock:
            self._watch(event)
