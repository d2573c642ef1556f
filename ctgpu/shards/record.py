"""What is in a committed shard: the file whose existence commits it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ctgpu.errors import StorageError
from ctgpu.shards import disk
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import parse_shard_name, record_name, shard_name
from ctgpu.shards.tar import BLOCK_BYTES, EXTENSIONS, Layout, lay_out

FORMAT = "ctgpu-shard-1"


def checksum(data: bytes | memoryview | Any) -> str:
    """XXH3-128 of any contiguous buffer, 32 hexadecimal digits; the GIL is released."""
    return xxhash.xxh3_128_hexdigest(data)


@dataclass(frozen=True, slots=True)
class Member:
    """Where one member's data is in the tar, in bytes, and its XXH3-128."""

    offset: int
    size_bytes: int
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """One sample of a shard.

    Attributes
    ----------
    key, study_id : str
        As planned.
    start, end : int
        Its extent in the tar, headers and padding included.
    members : dict of str to Member
        By extension: ``bin``, ``cls``, ``txt``, ``json``.
    labelled : bool
        False where the tables have no label row for it, so that ``.cls`` is all NaN.
    """

    key: str
    study_id: str
    start: int
    end: int
    members: Mapping[str, Member]
    labelled: bool = True

    def layout(self) -> Layout:
        """Its bytes around the data, recomputed.

        Raises
        ------
        ValueError
            If the entry does not say what the format says.
        """
        layout = lay_out(self.start, self.key, {e: m.size_bytes for e, m in self.members.items()})
        offsets = tuple(self.members[extension].offset for extension in EXTENSIONS)
        if layout.end != self.end or layout.offsets != offsets:
            raise ValueError(f"the entry of {self.key} contradicts itself")
        return layout

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "key": self.key,
            "study_id": self.study_id,
            "start": self.start,
            "end": self.end,
            "labelled": self.labelled,
            "members": {
                extension: [member.offset, member.size_bytes, member.xxh3_128]
                for extension, member in self.members.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleEntry:
        """What :meth:`to_dict` made, checked against the format.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        try:
            entry = cls(
                values["key"],
                values["study_id"],
                values["start"],
                values["end"],
                {extension: Member(*values["members"][extension]) for extension in EXTENSIONS},
                values["labelled"],
            )
            numbers = [entry.start, entry.end]
            for member in entry.members.values():
                numbers += [member.offset, member.size_bytes]
            if not all(type(n) is int and n >= 0 for n in numbers) or entry.start % BLOCK_BYTES:
                raise ValueError("offsets and sizes are whole numbers from 0, in whole blocks")
            if not isinstance(entry.key, str) or not isinstance(entry.study_id, str):
                raise ValueError("key and study_id are text")
            entry.layout()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sample entry: {error}") from error
        return entry


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The first line of a record: all that a re-run needs to know about a finished shard."""

    shard_index: int
    fingerprint: str
    size_bytes: int
    num_samples: int
    num_unlabelled: int
    num_failed: int

    @classmethod
    def load(cls, path: Path) -> ShardSummary:
        """Read the first line of the record at `path`.

        Raises
        ------
        StorageError
            If it cannot be read or is no record.
        """
        with _reading(path), path.open("rb") as file:
            return cls._from_dict(json.loads(file.readline(4096).rstrip(b",\n") + b"}"))

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> ShardSummary:
        if values["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        numbers = [values[name] for name in cls.__slots__ if name != "fingerprint"]
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("its counts are not whole numbers")
        return cls(**{name: values[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One committed shard.

    Attributes
    ----------
    shard_index : int
        Which one.
    fingerprint : str
        Of the plan it was made to.
    size_bytes : int
        Of the tar.
    samples : sequence of SampleEntry
        In the order of the tar.
    failures : sequence of LedgerEntry
        Samples that were planned for this shard and are not in it.
    run : dict
        Facts about the run that committed it: engine, timings.  Nothing else depends on the run.
    """

    shard_index: int
    fingerprint: str
    size_bytes: int
    samples: Sequence[SampleEntry]
    failures: Sequence[LedgerEntry] = ()
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> ShardSummary:
        """Its first line."""
        return ShardSummary(
            self.shard_index,
            self.fingerprint,
            self.size_bytes,
            len(self.samples),
            sum(not sample.labelled for sample in self.samples),
            len(self.failures),
        )

    def save(self, folder: Path) -> None:
        """Write it, atomically and durably: the shard is committed.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        disk.replace_file(folder / record_name(self.shard_index), self.to_json())

    @classmethod
    def load(cls, path: Path) -> ShardRecord:
        """The record at `path`.

        Raises
        ------
        StorageError
            If it cannot be read or is no record, or is that of another shard.
        """
        with _reading(path):
            values = json.loads(path.read_bytes())
            summary = ShardSummary._from_dict(values)
            record = cls(
                summary.shard_index,
                summary.fingerprint,
                summary.size_bytes,
                [SampleEntry.from_dict(sample) for sample in values["samples"]],
                [LedgerEntry.from_dict(failure) for failure in values["failures"]],
                dict(values["run"]),
            )
            if record.summary != summary:
                raise ValueError("its first line contradicts the rest")
            if parse_shard_name(path.name) != (record.shard_index, "json"):
                raise ValueError(f"it is the record of shard {record.shard_index}")
            return record

    def to_json(self) -> bytes:
        """One JSON object: a line of summary, and a line for each sample and failure."""
        dumps = json.JSONEncoder(separators=(",", ":")).encode
        summary = self.summary
        head = {
            "format": FORMAT,
            "filename": shard_name(self.shard_index),
            **{name: getattr(summary, name) for name in ShardSummary.__slots__},
        }
        samples = ",\n".join(dumps(sample.to_dict()) for sample in self.samples)
        failures = ",\n".join(dumps(failure.to_dict()) for failure in self.failures)
        return (
            f'{dumps(head)[:-1]},\n"samples":[\n{samples}\n],\n"failures":[\n{failures}\n],\n'
            f'"run":{json.dumps(self.run, sort_keys=True)}}}\n'
        ).encode()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path} is not the record of its shard ({error}); remove it and run the build again, "
            "which makes the shard anew"
        ) from error
