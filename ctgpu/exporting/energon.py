"""An index by which Megatron-Energon reads the shards of a folder as they are.

It is what ``energon prepare`` would write, made from the records instead of the tars: for each tar
where its samples begin (``shard-000000.tar.idx``), and in ``.nv-meta/`` the samples and their
members (``index.sqlite``), how many each tar holds, which tars are of which split, and how a data
set is made of them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import xxhash

from ctgpu.arguments import path_of, require_choice, require_flag
from ctgpu.errors import StorageError, UsageError, reason_of
from ctgpu.exporting.formats import new_file
from ctgpu.loading.catalogue import Shard, find_shards

#: Energon's folder of what it knows about a data set.
META_NAME = ".nv-meta"

# Undecoded: `ctgpu.loading.webdataset.decoder` takes the bytes of all members, and Energon's own
# decoder would take `.cls` for a number in words.
_DATASET = """\
# Raw members; ctgpu.loading.webdataset.decoder makes volume, labels, report and mask of them.
__module__: megatron.energon
__class__: CrudeWebdataset
decoder: null
subflavors:
  source: ctgpu
"""
_TABLES = (
    "CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, "
    "sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER)",
    "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, "
    "content_byte_offset INTEGER, content_byte_size INTEGER)",
)
_INDEXES = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON sample_parts"
    "(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts"
    "(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)
#: Energon's splits.
Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index holds.

    Attributes
    ----------
    folder : Path
        The data set's folder.
    shards, samples : int
        How many it names; a shard without samples is not named.
    split : {"train", "val", "test"}
        Which of Energon's splits they are.
    kept_dataset : bool
        Whether a ``dataset.yaml`` was there, and was left as it was.
    """

    folder: Path
    shards: int
    samples: int
    split: Split
    kept_dataset: bool


def write_energon_index(
    folder: str | PathLike[str], *, split: Split = "train", force: bool = False
) -> Indexed:
    """Write Megatron-Energon's index of the finished shards of a folder, beside them.

    It is made of the records alone, so it takes as long for large tars as for small ones, and the
    same shards give the same bytes.  Write it again when the folder has more shards.

    Parameters
    ----------
    folder : path
        The data set's folder.
    split : {"train", "val", "test"}
        Which of Energon's splits all of its shards are.
    force : bool
        Also replace ``.nv-meta/dataset.yaml``, which is otherwise left to who has changed it.

    Returns
    -------
    Indexed

    Raises
    ------
    UsageError
        If it is no folder, or holds no finished sample, or another argument is something else.
    StorageError
        If a record cannot be read, or a file not be written.
    """
    require_choice("split", split, get_args(Split))
    require_flag("force", force)
    place = path_of("folder", folder)
    if not place.is_dir():
        raise UsageError(
            f"{place} is no folder; Energon's index lies beside the tars, so give the data set's "
            "folder"
        )
    _, found = find_shards(place)
    # Energon takes an empty tar for a damaged one.
    shards = [shard for shard in found if shard.samples]
    if not shards:
        raise UsageError(f"{place} holds no finished sample that could be indexed")
    meta = place / META_NAME
    try:
        meta.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{meta} cannot be made: {reason_of(error)}") from error
    for shard in shards:
        _write(shard.path.with_name(f"{shard.path.name}.idx"), _offsets(shard))
    counts = {shard.path.name: len(shard.samples) for shard in shards}
    database = _database(shards)
    _write(meta / "index.sqlite", database)
    _write(meta / "index.uuid", str(uuid.UUID(bytes=xxhash.xxh3_128_digest(database))).encode())
    _write(meta / ".info.json", _json({"shard_counts": counts}))
    parts = {name: list(counts) if name == split else [] for name in get_args(Split)}
    # JSON is YAML too.
    _write(meta / "split.yaml", _json({"split_parts": parts, "exclude": []}))
    dataset = meta / "dataset.yaml"
    kept = dataset.exists() and not force
    if not kept:
        _write(dataset, _DATASET.encode())
    return Indexed(place, len(shards), sum(counts.values()), split, kept)


def _write(path: Path, content: bytes) -> None:
    with new_file(path) as file:
        file.write(content)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _offsets(shard: Shard) -> bytes:
    """Where each sample of a tar begins, and the last one ends; headers included."""
    places = [*(entry.start for entry in shard.samples), shard.samples[-1].end]
    return struct.pack(f"<{len(places)}Q", *places)


def _database(shards: Sequence[Shard]) -> bytes:
    """Every sample and member, by the place of its tar among `shards`."""
    with _scratch() as path:
        with contextlib.closing(sqlite3.connect(path)) as database:
            for table in _TABLES:
                database.execute(table)
            for tar, shard in enumerate(shards):
                database.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                    [
                        (tar, entry.key, number, entry.start, entry.end - entry.start)
                        for number, entry in enumerate(shard.samples)
                    ],
                )
                database.executemany(
                    "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                    [
                        (tar, number, extension, member.offset, member.size_bytes)
                        for number, entry in enumerate(shard.samples)
                        for extension, member in entry.members.items()
                    ],
                )
            for index in _INDEXES:
                database.execute(index)
            database.commit()
        return path.read_bytes()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A place for a database: SQLite needs locks, which network file systems may lack."""
    try:
        with tempfile.TemporaryDirectory(prefix="ctgpu-") as folder:
            yield Path(folder, "index.sqlite")
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"{tempfile.gettempdir()} cannot take Energon's index while it is made: {error}; free "
            "some space there, or name another place in TMPDIR"
        ) from error
