"""The main job: a source and a spec to a folder of shards."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu import __version__
from ctgpu.buffers import Buffer, BufferPool, ByteBudget
from ctgpu.decode import MAX_VOLUME_BYTES, inflated_size
from ctgpu.decode.inflate import inflate_backend
from ctgpu.engines import Engine, Job
from ctgpu.errors import FetchError, StorageError, TableError, UsageError
from ctgpu.limits import (
    available_memory_bytes,
    default_memory_limit_bytes,
    require_free_space,
    require_open_files,
    require_writable,
    usable_cores,
)
from ctgpu.pipeline import Failure, Pipeline, PipelineReport, Stages, Workers
from ctgpu.planning import (
    Request,
    adopt_plan,
    as_split,
    make_plan,
    open_engine_for,
    open_planned_source,
)
from ctgpu.progress import (
    Event,
    Planned,
    SampleFailed,
    SampleWritten,
    ShardCommitted,
    ShardElsewhere,
    ShardResumed,
    Watcher,
    ignore,
)
from ctgpu.sample import PreparedVolume, prepare_volume, sample_metadata, to_json_bytes
from ctgpu.shards import disk
from ctgpu.shards.folder import (
    committed_shards,
    failures,
    is_committed,
)
from ctgpu.shards.lease import Lease, LeaseHeld, LeaseSession
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import FAILURES_NAME, partial_name, shard_name
from ctgpu.shards.plan import Plan, PlannedSample
from ctgpu.shards.record import checksum
from ctgpu.shards.work import NewShard, RetriedShard, ShardWork
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.base import SampleRef, Source
from ctgpu.sources.tables import SampleRow, report_text
from ctgpu.spec import Spec

log = logging.getLogger(__name__)

# Headers, labels, report and metadata of one sample, generously.
_SMALL_MEMBERS_BYTES = 64 << 10
# Raw bytes for each compressed byte, where nothing better is known before the download.
_EXPECTED_RATIO = 4
# How often to ask whether a shard that another process holds has become free.
_LEASE_POLL_S = 2.0
# The partial tar, its second descriptor for direct writes, and the journal.
_FILES_OF_A_SHARD = 3


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
        Budget of the volumes in flight; default half of the memory available.
    temp_dir : path, optional
        Spool downloads there instead of holding them in memory.
    samples_per_shard : int, optional
        Default 128.
    shards : range, optional
        Do only these shards of the plan.
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
    )
    require_writable(folder)
    engine = open_engine_for(folder, device)
    try:
        run = _Run(
            folder,
            request,
            engine,
            workers=Workers.for_machine(
                num_workers or min(16, max(4, usable_cores())),
                engine.concurrency,
                engine.batch_size,
            ),
            memory_limit_bytes=memory_limit_bytes or default_memory_limit_bytes(),
            force=force,
            retry_failed=retry_failed,
            watch=watch,
        )
        return run.go(shards)
    except OSError as error:
        # Sources, decoders and shards have words of their own for what they meet.
        raise StorageError(
            f"{error.filename or folder} cannot be used: {error.strerror}; when that is mended, "
            "run the same command again: finished samples are kept"
        ) from error
    finally:
        engine.close()


@dataclass(slots=True)
class _OpenShard:
    work: ShardWork
    lease: Lease
    left: int


@dataclass(frozen=True, slots=True)
class _Task:
    sample: PlannedSample
    shard: _OpenShard


@dataclass(slots=True)
class _Fetched:
    buffer: Buffer
    row: SampleRow

    def release(self) -> None:
        self.buffer.release()


@dataclass(slots=True)
class _Decoded:
    prepared: PreparedVolume
    row: SampleRow

    def release(self) -> None:
        self.prepared.raw.release()


@dataclass(slots=True)
class _Made:
    packed: PackedSample
    volume: Buffer

    def release(self) -> None:
        self.volume.release()


class _Run:
    """One run of a build: what its stages share."""

    def __init__(
        self,
        folder: Path,
        request: Request,
        engine: Engine,
        *,
        workers: Workers,
        memory_limit_bytes: int,
        force: bool,
        retry_failed: bool,
        watch: Watcher,
    ) -> None:
        self._folder = folder
        self._request = request
        self._engine = engine
        self._workers = workers
        self._budget = ByteBudget(memory_limit_bytes)
        self._pool = BufferPool(memory_limit_bytes, engine.allocate)
        self._force = force
        self._retry_failed = retry_failed
        self._watch = watch
        self._written = 0
        self._stored_bytes = 0
        self._open_shards: list[_OpenShard] = []
        self._watch_lock = threading.Lock()
        self._largest_volume_bytes = min(MAX_VOLUME_BYTES, available_memory_bytes())
        self._sizes_now: Mapping[str, int] = {}
        self._pipeline: Pipeline[_Task, _Fetched, _Decoded, _Made]

    def go(self, shards: range | None) -> BuildReport:
        counts = self._settle()
        plan = self._plan
        if shards is not None and shards.stop > plan.shards:
            raise UsageError(
                f"--shards asks for shard {shards.stop - 1}; the plan has shards 0 to "
                f"{plan.shards - 1}"
            )
        todo = self._pending_shards(shards or range(plan.shards))
        report = None
        if todo:
            source = self._listed
            if source is None:
                source, self._sizes_now = open_planned_source(
                    self._plan, self._request, repaired=self._retry_failed
                )
            with contextlib.closing(source):
                report = self._make(source, todo, counts)
        else:
            self._announce(counts, todo)
            # A process that was killed after its last commit could not give its leases back.
            LeaseSession(self._folder).close()
        manifest = write_manifest(self._folder)
        ledger = (self._folder / FAILURES_NAME).read_text().splitlines()
        return BuildReport(
            self._folder,
            manifest,
            self._written,
            self._stored_bytes,
            [json.loads(line) for line in ledger],
            report,
        )

    def _settle(self) -> dict[str, int]:
        """Adopt the folder's plan, or make and save one."""
        self._listed: Source | None = None
        adopted = adopt_plan(self._folder, self._request, self._engine)
        if adopted is not None:
            self._plan = adopted
            return {}
        plan, self._listed, counts = make_plan(self._request, self._engine, self._tell)
        with disk.storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._plan = Plan.create(self._folder, plan)
        if self._plan is not plan:
            # Another process was first; it must have been asked for the same.
            self._plan.require(self._folder, plan)
        return counts

    def _pending_shards(self, wanted: range) -> list[int]:
        if self._force:
            return list(wanted)
        if self._retry_failed:
            failed = {index for index, _ in failures(self._folder)}
            return [i for i in wanted if i in failed or not is_committed(self._folder, i)]
        committed = set(committed_shards(self._folder))
        return [i for i in wanted if i not in committed]

    def _make(self, source: Source, todo: list[int], counts: Mapping[str, int]) -> PipelineReport:
        self._source = source
        self._tables = source.tables(as_split(self._plan.split))
        require_free_space(self._folder, self._bytes_to_write(todo))
        require_open_files(self._files_to_open())
        self._announce(counts, todo)
        self._pipeline = Pipeline(self._stages(), self._workers, self._budget)
        with LeaseSession(self._folder) as session:
            try:
                return self._pipeline.run(self._tasks(todo, session))
            finally:
                for shard in self._open_shards:
                    shard.work.abandon()

    def _bytes_to_write(self, todo: list[int]) -> int:
        """Upper bound of what the shards still need, beside what lies there already."""
        per_sample = self._plan.spec.size_bytes + _SMALL_MEMBERS_BYTES
        total = beside = 0
        for index in todo:
            size_bytes = len(self._plan.samples_of(index)) * per_sample
            partial, tar = self._folder / partial_name(index), self._folder / shard_name(index)
            if partial.exists():
                size_bytes -= partial.stat().st_size
            if tar.exists():
                # It makes room for its successor, but only once that is complete.
                beside = max(beside, tar.stat().st_size)
                size_bytes -= tar.stat().st_size
            total += max(0, size_bytes)
        return total + beside

    def _files_to_open(self) -> int:
        """Upper bound of the files and connections of a run that are open at a time."""
        samples = self._workers.most_in_flight
        spooled = samples if self._request.temp_dir is not None else 0
        shards = 1 + math.ceil(samples / self._plan.samples_per_shard)
        return self._workers.fetch + spooled + _FILES_OF_A_SHARD * min(shards, self._plan.shards)

    def _announce(self, counts: Mapping[str, int], todo: list[int]) -> None:
        plan = self._plan
        self._tell(
            Planned(
                counts,
                samples=len(plan.samples),
                shards=plan.shards,
                pending_shards=len(todo),
                pending_samples=sum(len(plan.samples_of(index)) for index in todo),
            )
        )

    def _tasks(self, todo: list[int], session: LeaseSession) -> Iterator[_Task]:
        """The samples to make, shard after shard; shards that others work on come last."""
        waiting = list(todo)
        told: set[int] = set()
        while waiting:
            held: list[int] = []
            for index in waiting:
                try:
                    lease = session.acquire(index)
                except LeaseHeld as error:
                    held.append(index)
                    if index not in told:
                        told.add(index)
                        self._tell(ShardElsewhere(index, str(error)))
                    continue
                yield from self._tasks_of(index, lease)
            if len(held) == len(waiting) and not self._pipeline.pause(_LEASE_POLL_S):
                return
            waiting = [i for i in held if self._force or not is_committed(self._folder, i)]

    def _tasks_of(self, index: int, lease: Lease) -> Iterator[_Task]:
        work = self._open_work(index)
        if work is None:
            lease.release()
            return
        shard = _OpenShard(work, lease, len(work.todo))
        self._open_shards.append(shard)
        planned = len(self._plan.samples_of(index))
        if kept := planned - len(work.todo):
            self._tell(ShardResumed(index, kept))
        if not work.todo:
            self._finish(shard)
        for sample in work.todo:
            yield _Task(sample, shard)

    def _open_work(self, index: int) -> ShardWork | None:
        """The work on a shard whose lease is held; None where another process finished it."""
        committed = is_committed(self._folder, index)
        if committed and self._retry_failed and not self._force:
            return RetriedShard(self._folder, self._plan, index, self._pool)
        if committed and not self._force:
            return None
        return NewShard(self._folder, self._plan, index, replace=self._force)

    def _stages(self) -> Stages[_Task, _Fetched, _Decoded, _Made]:
        size_bytes = self._plan.spec.size_bytes
        return Stages(
            footprint=self._expected_footprint,
            fetch=self._fetch,
            fetched_footprint=lambda task, fetched: (
                fetched.buffer.size_bytes
                + inflated_size(task.sample.path, fetched.buffer.bytes)
                + size_bytes
            ),
            decode=self._decode,
            decoded_footprint=lambda task, decoded: decoded.prepared.raw.size_bytes + size_bytes,
            make=self._make_batch,
            made_footprint=lambda task: size_bytes,
            write=self._write,
            discard=lambda unused: unused.release(),
        )

    def _expected_footprint(self, task: _Task) -> int:
        sample = task.sample
        try:
            shape = self._row(sample).shape_hint
        except TableError:  # told of when the sample's turn comes
            shape = None
        # What a table says is only a hint, and may be nonsense.
        raw = 2 * math.prod(shape) if shape and min(shape) > 0 else 0
        raw = raw or _EXPECTED_RATIO * sample.size_bytes
        return sample.size_bytes + raw + self._plan.spec.size_bytes

    def _fetch(self, task: _Task) -> _Fetched:
        sample = task.sample
        row = self._row(sample)
        size_bytes = self._sizes_now.get(sample.path, sample.size_bytes)
        if size_bytes > self._largest_volume_bytes:
            raise FetchError(
                f"{sample.path} is said to have {size_bytes:,} bytes; at most "
                f"{self._largest_volume_bytes:,} are accepted here: look at the file, or use "
                "--retry-failed on a machine with more memory"
            )
        ref = SampleRef(sample.path, size_bytes, sample.checksum, sample.provenance)
        return _Fetched(self._source.fetch(ref, self._pool.acquire), row)

    def _row(self, sample: PlannedSample) -> SampleRow:
        fallback = self._plan.selection["spacing_fallback"] == "header"
        return self._tables.row(sample.study_id, spacing_from_header=fallback)

    def _decode(self, task: _Task, fetched: _Fetched) -> _Decoded:
        raw = self._source.decode(
            task.sample.path, fetched.buffer, self._pool, limit_bytes=self._largest_volume_bytes
        )
        try:
            spacing_mm, spacing_source = fetched.row.choose_spacing_mm(raw.spacing_mm)
            prepared = prepare_volume(
                raw,
                spec=self._plan.spec,
                spacing_mm=spacing_mm,
                spacing_source=spacing_source,
                intensity=self._plan.spec.intensity,
                provenance=task.sample.provenance,
                csv_pair=fetched.row.rescale_pair,
            )
        except BaseException:
            raw.release()
            raise
        return _Decoded(prepared, fetched.row)

    def _make_batch(self, batch: Sequence[tuple[_Task, _Decoded]]) -> list[_Made | Failure]:
        spec = self._plan.spec
        buffers: list[Buffer] = []
        try:
            buffers += [self._pool.acquire(spec.size_bytes) for _ in batch]
            self._engine.run(
                [
                    Job(
                        decoded.prepared.raw.voxels,
                        decoded.prepared.rescale,
                        decoded.prepared.plan,
                        buffer.array(spec.stored_shape, np.float16),
                    )
                    for (_, decoded), buffer in zip(batch, buffers, strict=True)
                ]
            )
            return [
                self._pack(task, decoded, buffer)
                for (task, decoded), buffer in zip(batch, buffers, strict=True)
            ]
        except BaseException:
            for buffer in buffers:
                buffer.release()
            raise

    def _pack(self, task: _Task, decoded: _Decoded, buffer: Buffer) -> _Made:
        digest = checksum(buffer.bytes)
        metadata = sample_metadata(
            decoded.prepared,
            study_id=task.sample.study_id,
            source_path=task.sample.path,
            source_revision=self._plan.source["revision"],
            report=decoded.row.report,
            fingerprint=self._plan.fingerprint,
            payload_xxh3_128=digest,
        )
        decoded.release()
        packed = PackedSample(
            task.sample.key,
            buffer.bytes,
            digest,
            decoded.row.labels.astype("<f4").tobytes(),
            report_text(decoded.row.report).encode(),
            to_json_bytes(metadata),
        )
        return _Made(packed, buffer)

    def _write(self, task: _Task, result: _Made | Failure) -> None:
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
            self._written += 1
            self._stored_bytes += self._plan.spec.size_bytes
            self._tell(
                SampleWritten(
                    sample.key, shard.work.index, sample.size_bytes, self._plan.spec.size_bytes
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
