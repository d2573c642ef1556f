"""The shards of a folder that are finished by now, while others are being made."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ctgpu.errors import MismatchError, SampleError
from ctgpu.loading.catalogue import Shard
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import PLAN_NAME, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord

# How old what is known of a folder may be.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished shard.

    Attributes
    ----------
    shard : Shard
        Its tar.
    entries : dict of str to SampleEntry
        Its samples, by key.
    failures : dict of str to LedgerEntry
        Those of its samples that failed.
    """

    shard: Shard
    entries: Mapping[str, SampleEntry]
    failures: Mapping[str, LedgerEntry]

    def entry(self, key: str) -> SampleEntry | None:
        """Of a sample; None where the shard does not know it.

        Raises
        ------
        SampleError
            If it failed when the shard was built.
        """
        if (failure := self.failures.get(key)) is not None:
            raise SampleError(
                f"{failure.path} failed when its shard was built ({failure.error_class}: "
                f"{failure.message}); `ctgpu build --retry-failed` tries it again"
            )
        return self.entries.get(key)


class FinishedShards:
    """Finds shards within a second of their commit; the folder is listed once a second at most.

    Threads may share it.

    Parameters
    ----------
    folder : Path
        Of a data set; it need not be there yet.
    plan : Plan
        Of what is read.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder.absolute()
        self._plan = plan
        self._checked = False
        self._there: frozenset[int] = frozenset()
        self._known: dict[int, Finished] = {}
        self._looked_s = -_LOOK_EVERY_S
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._folder, self._plan)

    def find(self, index: int) -> Finished | None:
        """A shard, if it is finished.

        Raises
        ------
        MismatchError
            If the folder is that of another plan.
        StorageError
            If it, or the record, cannot be read.
        """
        if (known := self._known.get(index)) is not None:
            return known
        with self._lock:
            if index not in self._there:
                self._look()
            if index in self._there and index not in self._known:
                self._known[index] = self._load(index)
            return self._known.get(index)

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if not self._folder.is_dir():
            return
        there = frozenset(committed_shards(self._folder))
        if there and not self._checked:
            self._require_same_plan()
            self._checked = True
        self._there = there

    def _require_same_plan(self) -> None:
        if not (self._folder / PLAN_NAME).exists():  # only the shards were copied
            return
        there = Plan.load(self._folder)
        # Compressed or not, they are the same volumes.
        if differ := there.differences(replace(self._plan, compression=there.compression)):
            raise MismatchError(
                f"{self._folder} holds shards of another plan than what is read here "
                f"({'; '.join(differ)}): name their own folder with shards, or leave it out"
            )

    def _load(self, index: int) -> Finished:
        path = self._folder / record_name(index)
        record = ShardRecord.load(path)
        if record.fingerprint != self._plan.fingerprint:
            raise MismatchError(
                f"{path} has the fingerprint {record.fingerprint}, and what is read here has "
                f"{self._plan.fingerprint}; name another folder with shards, or leave it out"
            )
        samples = tuple(record.samples)
        return Finished(
            Shard(self._folder / shard_name(index), samples),
            {entry.key: entry for entry in samples},
            {failure.key: failure for failure in record.failures},
        )
