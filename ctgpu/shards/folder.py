"""The state of a data set's folder, from its file names and records alone: no tar is read."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ctgpu.errors import StorageError, reason_of
from ctgpu.shards import disk
from ctgpu.shards.fence import remove_fences
from ctgpu.shards.lease import is_leased
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import (
    journal_name,
    parse_fence_name,
    parse_shard_name,
    record_name,
    shard_name,
)
from ctgpu.shards.record import ShardRecord, ShardSummary


def committed_shards(folder: Path) -> list[int]:
    """Indices of the shards that have both tar and record, ascending.

    Raises
    ------
    StorageError
        If the folder cannot be read.
    """
    files = _shard_files(folder)
    return sorted(files["json"] & files["tar"])


def is_committed(folder: Path, index: int) -> bool:
    """Whether shard `index` is complete; asked again after its lease was had."""
    return (folder / record_name(index)).exists() and (folder / shard_name(index)).exists()


def remove_leftovers(folder: Path) -> None:
    """Remove what runs left that were killed: what belongs to committed shards, temporary files.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """
    files = _shard_files(folder)
    with disk.storage_errors(folder):
        for index in (files["journal"] & files["json"] & files["tar"]) - files["tar.partial"]:
            disk.remove(folder / journal_name(index))
        for index in files["fence"] & files["json"] & files["tar"]:
            if not is_leased(folder, index):
                remove_fences(folder, index)
        disk.remove_stale_temporaries(folder)


def summaries(folder: Path) -> list[ShardSummary]:
    """The first lines of all records, by shard.

    Raises
    ------
    StorageError
        If one cannot be read.
    """
    return [ShardSummary.load(folder / record_name(index)) for index in committed_shards(folder)]


def failures(
    folder: Path, shards: Sequence[ShardSummary] | None = None
) -> list[tuple[int, LedgerEntry]]:
    """Every failed sample of the committed shards, with its shard, in plan order.

    Parameters
    ----------
    folder : Path
        The data set's folder.
    shards : sequence of ShardSummary, optional
        Its :func:`summaries`, where they have been read already.

    Raises
    ------
    StorageError
        If a record cannot be read.
    """
    return [
        (summary.shard_index, failure)
        for summary in (summaries(folder) if shards is None else shards)
        if summary.num_failed
        for failure in ShardRecord.load(folder / record_name(summary.shard_index)).failures
    ]


def _shard_files(folder: Path) -> dict[str, set[int]]:
    """Which shards have a file of each kind."""
    files: dict[str, set[int]] = defaultdict(set)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if shard := parse_shard_name(entry.name):
                    if shard[1] in ("tar", "json") and not entry.is_file():
                        raise StorageError(
                            f"{entry.path} is no file, nor a link to one, and a shard's {shard[1]} "
                            "is wanted there; remove it, or put that back"
                        )
                    files[shard[1]].add(shard[0])
                elif (index := parse_fence_name(entry.name)) is not None:
                    files["fence"].add(index)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {reason_of(error)}") from error
    return files
