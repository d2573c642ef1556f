"""One shard's part of a run: which samples it still needs, and what to do with each result."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctgpu.buffers import BufferPool
from ctgpu.errors import FetchError, StorageError
from ctgpu.shards import disk
from ctgpu.shards.fence import Fence
from ctgpu.shards.folder import is_committed
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, ShardRecord, ShardSummary
from ctgpu.shards.tar import PAYLOADS
from ctgpu.shards.writer import IsCurrent, PackedSample, ShardWriter
from ctgpu.volume.ref import SampleRef


def samples_to_make(
    folder: Path, plan: Plan, index: int, *, force: bool, retry_failed: bool
) -> int:
    """How many samples of a shard are made, those that an interrupted run left included.

    Raises
    ------
    StorageError
        If the shard is committed, its failures are to be retried, and its record cannot be read.
    """
    if retry_failed and not force and is_committed(folder, index):
        return ShardSummary.load(folder / record_name(index)).num_failed
    return len(plan.samples_of(index))


def require_compression(folder: Path, record: ShardRecord, plan: Plan) -> None:
    """Refuse to rewrite a committed shard that is compressed where its plan is not, or the reverse.

    Raises
    ------
    StorageError
    """
    is_compressed = any(sample.is_compressed for sample in record.samples)
    if record.samples and is_compressed != (plan.compression is not None):
        index = record.shard_index
        raise StorageError(
            f"{folder / shard_name(index)} holds volumes that are "
            f"{'' if is_compressed else 'not '}compressed, and the compression of the plan beside "
            f"it is {plan.compression or 'none'}: remove it and {record_name(index)} and run the "
            "build again, which rebuilds the shard, or have `ctgpu convert --compress` make a copy "
            "of the folder"
        )


class ShardWork(ABC):
    """Takes the results of one shard's samples, in order; the caller holds the shard's lease.

    Attributes
    ----------
    index : int
        The shard.
    todo : sequence of SampleRef
        What must be made, in plan order; :meth:`take` expects them in that order.
    """

    index: int
    todo: Sequence[SampleRef]

    @abstractmethod
    def take(self, result: PackedSample | LedgerEntry) -> None:
        """The next sample's result.

        Raises
        ------
        StorageError
            If it cannot be written.
        """

    @abstractmethod
    def finish(self, run: Mapping[str, Any]) -> ShardRecord:
        """Commit the shard; every sample of `todo` has been taken.

        Raises
        ------
        StorageError
            If it cannot be written.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Close the files; a later run goes on from here.  Harmless after :meth:`finish`."""


class NewShard(ShardWork):
    """A shard made from nothing, or from what an interrupted run left of it.

    Parameters
    ----------
    folder, plan, index
        Which shard of which data set.
    confirm : callable
        Raises unless the lease is still held.
    replace : bool
        It is committed and is to be made again.
    is_current : callable
        As :class:`~ctgpu.shards.writer.ShardWriter` takes it.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        index: int,
        confirm: Callable[[], None],
        *,
        replace: bool = False,
        is_current: IsCurrent = lambda planned, entry: True,
    ) -> None:
        self.index = index
        self._writer = ShardWriter(
            folder,
            plan,
            index,
            replace=replace,
            confirm=confirm,
            is_current=is_current,
        )
        self.todo = list(self._writer.pending)

    def take(self, result: PackedSample | LedgerEntry) -> None:
        if isinstance(result, LedgerEntry):
            self._writer.skip(result)
        else:
            self._writer.append(result)

    def finish(self, run: Mapping[str, Any]) -> ShardRecord:
        return self._writer.commit(run)

    def abandon(self) -> None:
        self._writer.abandon()


class RetriedShard(ShardWork):
    """A committed shard, only the failed samples of which are made again.

    The tar is rewritten, its good samples copied, once the first of them succeeds; if none does,
    only the ledger changes.

    Parameters
    ----------
    folder, plan, index
        Which shard of which data set.
    confirm : callable
        Raises unless the lease is still held.
    pool : BufferPool
        Lends the memory through which good samples are copied.

    Raises
    ------
    StorageError
        If the shard's record or tar cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        index: int,
        confirm: Callable[[], None],
        pool: BufferPool,
    ) -> None:
        self.index = index
        self._folder, self._plan, self._confirm, self._pool = folder, plan, confirm, pool
        self._old = ShardRecord.load(folder / record_name(index))
        require_compression(folder, self._old, plan)
        self._good: Mapping[str, SampleEntry] = {entry.key: entry for entry in self._old.samples}
        self._attempts = {failure.key: failure.attempts for failure in self._old.failures}
        self._failed: dict[str, LedgerEntry] = {}
        self._reader = ShardReader(folder / shard_name(index))
        self._writer: ShardWriter | None = None
        planned = plan.samples_of(index)
        self._position = {sample.key: n for n, sample in enumerate(planned)}
        self.todo = [sample for sample in planned if sample.key not in self._good]

    def take(self, result: PackedSample | LedgerEntry) -> None:
        if isinstance(result, LedgerEntry):
            attempts = self._attempts.get(result.key, 0) + 1
            self._failed[result.key] = replace(result, attempts=attempts)
            return
        if self._writer is None:
            self._writer = ShardWriter(
                self._folder,
                self._plan,
                self.index,
                replace=True,
                confirm=self._confirm,
                is_current=self._is_current,
            )
        self._copy_up_to(self._writer, result.key)
        # An interrupted retry may have written this very sample already.
        if self._writer.pending and self._writer.pending[0].key == result.key:
            self._writer.append(result)

    def finish(self, run: Mapping[str, Any]) -> ShardRecord:
        if self._writer is None:
            record = replace(self._old, failures=list(self._failed.values()))
            with disk.storage_errors(self._folder):
                fence = Fence(self._folder, self.index, self._confirm)
                with contextlib.closing(fence):
                    fence.write(record_name(self.index), record.to_json())
        else:
            self._copy_up_to(self._writer, None)
            record = self._writer.commit(run)
        self._reader.close()
        return record

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
        self._reader.close()

    def _is_current(self, planned: SampleRef, entry: SampleEntry | LedgerEntry) -> bool:
        if isinstance(entry, LedgerEntry):
            return False  # It is to be tried again.
        good = self._good.get(planned.key)
        return good is None or is_same(good, entry)

    def _copy_up_to(self, writer: ShardWriter, key: str | None) -> None:
        """Copy or skip what stands before the sample `key`, or all that is left."""
        stop = self._position[key] if key is not None else len(self._position)
        while writer.pending and self._position[writer.pending[0].key] < stop:
            planned = writer.pending[0]
            if planned.key in self._failed:
                writer.skip(self._failed[planned.key])
                continue
            with good_sample(
                self._reader, self._good[planned.key], self._pool, self.index
            ) as sample:
                writer.append(sample)


def is_same(one: SampleEntry, other: SampleEntry) -> bool:
    """Whether the members of two entries have the same bytes, wherever they are."""
    return one.digests == other.digests


@contextlib.contextmanager
def good_sample(
    reader: ShardReader, entry: SampleEntry, pool: BufferPool, index: int
) -> Iterator[PackedSample]:
    """A sample of the committed shard `index` to be written again, every byte of it checked.

    Raises
    ------
    StorageError
        If it is not as it was written.
    """
    with contextlib.ExitStack() as buffers:
        payloads = [
            buffers.enter_context(pool.acquire(entry.members[extension].size_bytes)).bytes
            for extension in PAYLOADS
            if extension in entry.members
        ]
        try:
            sample = reader.copy_sample(entry, *payloads)
        except FetchError as error:
            raise StorageError(
                f"{error}; remove {shard_name(index)} and {record_name(index)} and run the build "
                "again, which rebuilds the shard"
            ) from error
        yield sample
