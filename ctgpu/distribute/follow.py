"""Events of shards that other processes write, read off the files they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctgpu.building.events import (
    SampleFailed,
    SampleWritten,
    ShardCommitted,
    ShardDoneElsewhere,
    ShardResumed,
    Watcher,
)
from ctgpu.building.pipeline import Failure
from ctgpu.shards.journal import JournalHeader, read_journal
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import journal_name, record_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord


class Follower:
    """Tells a watcher of every sample once, however often its shard's writer was replaced.

    Journals and records say all there is to know, so nothing but files travels between machines.

    Parameters
    ----------
    folder : Path
        The data set's folder.
    plan : Plan
        The one in it.
    watch : callable
        Called with each event.

    Attributes
    ----------
    written : int
        Samples of the shards reported as committed, without those that they had at the beginning.
    """

    def __init__(self, folder: Path, plan: Plan, watch: Watcher) -> None:
        self._folder = folder
        self._plan = plan
        self._watch = watch
        self._told: dict[int, set[str]] = {}
        self._kept: dict[int, int] = {}
        self.written = 0

    def begin(self, index: int, *, retry_failed: bool) -> None:
        """Shard `index` is about to be made: what it has already is kept, not written.

        Parameters
        ----------
        index : int
            The shard.
        retry_failed : bool
            Keep what its record says, where it is committed.

        Raises
        ------
        StorageError
            If its record cannot be read.
        """
        if index in self._told:
            return
        kept = {entry.key for entry in self._journal(index)}
        if retry_failed and (self._folder / record_name(index)).exists():
            # What is good in it was not planned to be made.
            kept |= {sample.key for sample in self._record(index).samples}
        elif kept:
            self._watch(ShardResumed(index, len(kept)))
        self._told[index] = kept
        self._kept[index] = len(kept)

    def look(self, index: int) -> None:
        """Tell what has happened in shard `index` since the last look."""
        self._tell(index, self._journal(index))

    def finish(self, index: int) -> None:
        """Shard `index` is committed.

        Raises
        ------
        StorageError
            If its record cannot be read.
        """
        record = self._record(index)
        self._tell(index, [*record.samples, *record.failures])
        del self._told[index]
        self.written += len(record.samples) - self._kept.pop(index)
        self._watch(ShardCommitted(index, len(record.samples), record.size_bytes))

    def leave(self, index: int) -> None:
        """Shard `index` was finished by another process; nothing more is reported of it."""
        told = len(self._told.pop(index, ()))
        self._kept.pop(index, None)
        self._watch(ShardDoneElsewhere(index, len(self._plan.samples_of(index)) - told))

    def _tell(self, index: int, entries: Sequence[SampleEntry | LedgerEntry]) -> None:
        told = self._told[index]
        source_bytes = {s.key: s.size_bytes for s in self._plan.samples_of(index)}
        for entry in entries:
            if entry.key in told:
                continue
            told.add(entry.key)
            if isinstance(entry, LedgerEntry):
                failure = Failure(entry.stage, entry.error_class, entry.message)
                self._watch(SampleFailed(entry.key, index, entry.path, failure))
                continue
            self._watch(
                SampleWritten(
                    entry.key,
                    index,
                    source_bytes[entry.key],
                    entry.payload_bytes,
                    entry.orientation,
                )
            )

    def _record(self, index: int) -> ShardRecord:
        return ShardRecord.load(self._folder / record_name(index))

    def _journal(self, index: int) -> list[SampleEntry | LedgerEntry]:
        header = JournalHeader.of(index, self._plan)
        _, lines = read_journal(self._folder / journal_name(index), header)
        return [line.entry for line in lines]
