"""Keeps what an epoch makes, and seals a shard when its last sample is there."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from ctgpu.buffers import BufferPool, Bytes
from ctgpu.codec.ctz import SLACK_BYTES, CtzError
from ctgpu.errors import SampleError, StorageError, reason_of
from ctgpu.installation import __version__
from ctgpu.machine import free_space_bytes
from ctgpu.online.staged import StagedSamples
from ctgpu.shards import disk
from ctgpu.shards.folder import committed_shards, is_committed
from ctgpu.shards.lease import LeaseHeld, LeaseSession
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import MANIFEST_NAME, record_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample, restore_sample
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.work import NewShard
from ctgpu.shards.writer import PackedSample
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

#: In the data set's folder: samples whose shard is not complete.
STAGED_NAME = "staged"


class WriteThrough:
    """Writes the shards of a plan, of samples that come in any order and from several processes.

    What it writes is what `ctgpu build` writes, byte for byte, under the same leases.  Where it
    cannot write, it says so once and does nothing more: training goes on.

    Parameters
    ----------
    folder : Path
        Of the data set.
    plan : Plan
        Saved there, unless it is there.
    limit_bytes : int, optional
        What volumes may take there, those that wait included; by default what is free.

    Raises
    ------
    MismatchError
        If the folder is that of another plan.
    StorageError
        If it cannot be made or written.
    """

    def __init__(self, folder: Path, plan: Plan, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._plan = plan
        with disk.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        Plan.create(folder, plan).require(folder, plan)
        compressed = plan.compression is not None
        self._staged = StagedSamples(folder / STAGED_NAME, plan.fingerprint, compressed)
        self._room_bytes = plan.payload_limits_bytes[0]
        self._pool = BufferPool()
        self._shard_of = {ref.key: n for n in range(plan.shards) for ref in plan.samples_of(n)}
        self._stopped = False
        self._lock = threading.Lock()
        self._room = threading.Lock()
        self._being_put_bytes = 0
        self._sealed_bytes: dict[int, int] = {}
        for index in range(plan.shards):  # what processes left that have ended
            self._seal_if_complete(index)
        if self._staged.folder.exists() or not (folder / MANIFEST_NAME).exists():
            self._finish_if_complete()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._folder, self._plan, self._limit_bytes)

    def find(self, ref: SampleRef, out: Bytes) -> PackedSample | None:
        """A sample that was kept and is in no shard yet, its volume read into `out`."""
        if self._plan.compression is None:
            found = self._staged.get(ref, out)
            return found if isinstance(found, PackedSample) else None
        with self._pool.acquire(self._room_bytes + SLACK_BYTES) as room:
            found = self._staged.get(ref, room.bytes[: self._room_bytes])
            if not isinstance(found, PackedSample):
                return None
            try:
                return restore_sample(found, self._plan, [room.bytes], out)
            except CtzError:  # it is made again
                self._staged.remove(ref)
                return None

    def keep(self, ref: SampleRef, result: PackedSample | SampleError) -> None:
        """Keep a sample, or why nothing can be made of it."""
        index = self._shard_of[ref.key]
        if self._stopped or self._staged.has(ref) or is_committed(self._folder, index):
            return
        try:
            if isinstance(result, SampleError):
                error = type(result).__name__
                self._staged.put_failure(
                    LedgerEntry(ref.key, ref.path, result.stage, error, str(result))
                )
            elif self._plan.compression is None:
                self._put(index, result)
            else:
                with self._pool.acquire(self._room_bytes) as room:
                    self._put(index, compress_sample(result, self._plan, room.bytes))
            if self._seal_if_complete(index):
                self._finish_if_complete()
        except OSError as error:
            self._stop(f"{self._folder} cannot be written: {reason_of(error)}")
        except StorageError as error:
            self._stop(str(error))

    def _put(self, index: int, sample: PackedSample) -> None:
        if self._takes_room(index, sample.payload_bytes):
            try:
                self._staged.put(sample)
            finally:
                with self._room:
                    self._being_put_bytes -= sample.payload_bytes

    def _takes_room(self, index: int, sample_bytes: int) -> bool:
        """Whether there is room for a sample, and for a shard of such ones beside its samples."""
        free_bytes = free_space_bytes(self._folder)
        needed_bytes = sample_bytes * (1 + len(self._plan.samples_of(index)))
        if free_bytes is not None and free_bytes < needed_bytes:
            self._stop(
                f"{self._folder} has {free_bytes / 1e9:.1f} GB free, and a shard takes "
                f"{needed_bytes / 1e9:.1f}"
            )
            return False
        with self._room:
            taken_bytes = 0 if self._limit_bytes is None else self._taken_bytes
            if self._limit_bytes is None or taken_bytes + needed_bytes <= self._limit_bytes:
                self._being_put_bytes += sample_bytes
                return True
        self._stop(
            f"{self._folder} has {taken_bytes / 1e9:.1f} GB of volumes, and write_limit is "
            f"{self._limit_bytes / 1e9:.1f} with room for the shard that is next"
        )
        return False

    @property
    def _taken_bytes(self) -> int:
        """Volumes in shards and those that wait, whoever wrote them, or are about to here."""
        taken = self._being_put_bytes + self._staged.taken_bytes()
        for index in committed_shards(self._folder):
            if index not in self._sealed_bytes:
                record = ShardRecord.load(self._folder / record_name(index))
                self._sealed_bytes[index] = sum(one.payload_bytes for one in record.samples)
            taken += self._sealed_bytes[index]
        return taken

    def _stop(self, reason: str) -> None:
        with self._lock:
            if not self._stopped:
                self._stopped = True
                log.warning("%s: what is made from now on is not kept; training goes on", reason)

    def _seal_if_complete(self, index: int) -> bool:
        """Write a shard whose samples are all there; returns whether that was done now."""
        planned = self._plan.samples_of(index)
        if is_committed(self._folder, index):
            self._forget(index)
            return False
        # Not from the first on: of a shard that is begun, it is the one that is there.
        if not all(self._staged.has(ref) for ref in reversed(planned)):
            return False
        with self._lock, LeaseSession(self._folder) as session:
            try:
                lease = session.acquire(index)
            except LeaseHeld:  # another rank does it, or a build
                return False
            with lease:
                if not is_committed(self._folder, index):
                    self._seal(NewShard(self._folder, self._plan, index, lease.confirm))
        if not is_committed(self._folder, index):
            return False
        self._forget(index)
        return True

    def _forget(self, index: int) -> None:
        """Remove what is in a committed shard."""
        if self._staged.folder.exists():
            for ref in self._plan.samples_of(index):
                self._staged.remove(ref)

    def _finish_if_complete(self) -> None:
        """After the last shard: nothing is staged any more, and the manifest sums up."""
        if len(committed_shards(self._folder)) < self._plan.shards:
            return
        with contextlib.suppress(OSError):  # gone already
            self._staged.folder.rmdir()
        write_manifest(self._folder)

    def _seal(self, work: NewShard) -> None:
        try:
            with self._pool.acquire(self._room_bytes) as room:
                for ref in work.todo:
                    result = self._staged.get(ref, room.bytes)
                    if result is None:  # damaged: it is made again, and then this
                        return
                    work.take(result)
            work.finish({"ctgpu": __version__, "written_by": "RawDataset"})
        finally:
            work.abandon()
