"""What a data set's folder holds, by its plan, its manifest and its records; no tar is opened."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctgpu.errors import NewerFormatError, StorageError, UsageError, reason_of
from ctgpu.shards.card import Card
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME, parse_shard_name, record_name, shard_name
from ctgpu.shards.patterns import is_tar_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.shards.untrusted import read_json
from ctgpu.viewing.charts import plural

#: What is told of where a data set comes from, if its plan or its manifest says so.
_PROVENANCE = ("dataset", "split", "arithmetic", "source", "selection")


@dataclass(frozen=True, slots=True)
class HeldShard:
    """A finished shard: its tar, and what its record says."""

    path: Path
    record: ShardRecord


@dataclass(frozen=True)
class Inventory:
    """What is in a data set's folder.

    Attributes
    ----------
    folder : Path
        The folder.
    card : Card
        What all of its samples share, and how many are planned.
    provenance : mapping
        Where they come from and how they were chosen: ``dataset``, ``split``, ``arithmetic``,
        ``source`` and ``selection``, as far as plan or manifest say.
    shards : sequence of HeldShard
        Those that are finished, and whose records can be read.
    problems : sequence of str
        What of the folder could not be read: a sentence each.
    being_made : int
        Shards of which there is a part, with or without somebody who writes it.
    """

    folder: Path
    card: Card
    provenance: Mapping[str, Any]
    shards: Sequence[HeldShard]
    problems: Sequence[str]
    being_made: int

    @classmethod
    def of(cls, folder: Path) -> Inventory:
        """That of a folder.

        Raises
        ------
        UsageError
            If it is no data set of ctgpu, or one of a newer ctgpu.
        StorageError
            If it cannot be read.
        """
        _require_data_set(folder)
        card = Card.load(folder)
        shards: list[HeldShard] = []
        problems: list[str] = []
        for index in committed_shards(folder):
            path = folder / record_name(index)
            try:
                record = ShardRecord.load(path)
            except StorageError as error:
                problems.append(str(error))
                continue
            if record.fingerprint == card.fingerprint:
                shards.append(HeldShard(folder / shard_name(index), record))
            else:
                problems.append(
                    f"{path} has the fingerprint {record.fingerprint}, and its data set has "
                    f"{card.fingerprint}; the shard belongs to another data set, so move it there"
                )
        provenance = _provenance(folder, problems)
        return cls(folder, card, provenance, shards, problems, _count_partials(folder))

    @cached_property
    def entries(self) -> list[tuple[HeldShard, SampleEntry]]:
        """The finished samples in their order, each with its shard."""
        return [(shard, entry) for shard in self.shards for entry in shard.record.samples]

    @cached_property
    def failures(self) -> list[LedgerEntry]:
        """The samples of finished shards that failed, in the order of the plan."""
        return [failure for shard in self.shards for failure in shard.record.failures]

    @property
    def size_bytes(self) -> int:
        """Of all finished tars."""
        return sum(shard.record.size_bytes for shard in self.shards)

    @property
    def is_finished(self) -> bool:
        """Whether nothing that is planned is missing, as far as that is known."""
        planned = self.card.planned_shards
        return not self.problems and planned in (None, len(self.shards))

    def member_bytes(self) -> dict[str, int]:
        """Bytes of all finished samples' members, by extension."""
        total: dict[str, int] = {}
        for _, entry in self.entries:
            for extension, member in entry.members.items():
                total[extension] = total.get(extension, 0) + member.size_bytes
        return total


def _require_data_set(folder: Path) -> None:
    # Of os.path, which say no where they may not look.
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "is not there"
        raise UsageError(
            f"{folder} {what}, and the folder of a data set is wanted: name one that `ctgpu build` "
            "wrote"
        )
    if not any(os.path.lexists(folder / name) for name in (PLAN_NAME, MANIFEST_NAME)):
        way_out = "name a folder that `ctgpu build` wrote"
        if any(map(is_tar_name, _names(folder))):
            way_out = f"`ctgpu inspect {shlex.quote(str(folder))}` looks at tars of other writers"
        raise UsageError(
            f"{folder} holds neither {PLAN_NAME} nor {MANIFEST_NAME}, so it is no data set of "
            f"ctgpu; {way_out}"
        )


def _count_partials(folder: Path) -> int:
    kinds = [shard[1] for name in _names(folder) if (shard := parse_shard_name(name))]
    return kinds.count("tar.partial")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {reason_of(error)}") from error


def _provenance(folder: Path, problems: list[str]) -> dict[str, Any]:
    """From the plan, or from the manifest where only the shards were copied."""
    if (folder / PLAN_NAME).exists():
        try:
            plan = Plan.load(folder)
        except NewerFormatError:
            raise
        except UsageError as error:
            problems.append(str(error))
        else:
            return {name: getattr(plan, name) for name in _PROVENANCE} | {
                "samples_per_shard": plan.samples_per_shard,
                **({} if plan.data_set is None else {"description": plan.data_set.get("name")}),
            }
    try:
        stated = read_json(folder / MANIFEST_NAME)
    except (OSError, ValueError):
        return {}  # the plan was what there is, and is said to be damaged
    return {name: stated[name] for name in _PROVENANCE if name in stated}


def finished_words(inventory: Inventory) -> Iterator[str]:
    """What there is to say of a folder that is not, or not wholly, finished."""
    card, shards = inventory.card, len(inventory.shards)
    if inventory.is_finished:
        return
    if card.planned_shards is not None and shards < card.planned_shards:
        yield (
            f"This data set is not finished: it holds {shards:,} of "
            f"{plural(card.planned_shards, 'planned shard')}, and {len(inventory.entries):,} of "
            f"{plural(card.planned_samples or 0, 'planned sample')}; further shards that are "
            f"begun: {inventory.being_made:,}. Run the command that began it again to go on."
        )
    yield from inventory.problems
