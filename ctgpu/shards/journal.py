"""What is complete in a partial shard.

A line is appended once a sample's bytes have been written, or once it has failed.  Each line starts
with a checksum of its own, so that a torn or lost one ends what is believed.  Nothing is synced
here: after a loss of power the checksums in the lines decide.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from ctgpu.shards import disk
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, checksum
from ctgpu.shards.tar import key_fault
from ctgpu.shards.untrusted import JSON_LIMIT_BYTES, Count, decode, read_file

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """Which shard of which plan a journal belongs to."""

    shard_index: Count
    fingerprint: str
    samples: str

    @classmethod
    def of(cls, index: int, plan: Plan) -> JournalHeader:
        """The header for shard `index` of a plan."""
        rows: list[Any] = [
            [s.key, s.path, s.size_bytes, s.checksum] for s in plan.samples_of(index)
        ]
        if plan.masks is not None:
            rows.append(plan.masks.to_dict())
        if plan.compression is not None:
            rows.append(plan.compression)
        return cls(index, plan.fingerprint, checksum(json.dumps(rows).encode()))


class Journal:
    """An open journal, to append to.

    Parameters
    ----------
    path : Path
        The file; created if need be.
    size_bytes : int
        Size of what is to be kept of it.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._size_bytes = size_bytes
        os.ftruncate(self._fd, size_bytes)

    def begin(self, header: JournalHeader) -> None:
        """Write the first line."""
        self._append(asdict(header))

    def append(self, entry: SampleEntry | LedgerEntry) -> None:
        """Add a line for a sample that is complete, or has failed."""
        kind = "sample" if isinstance(entry, SampleEntry) else "failure"
        self._append({kind: entry.to_dict()})

    def sync(self) -> None:
        """Make it durable."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, values: dict[str, Any]) -> None:
        line = _seal(json.dumps(values, separators=(",", ":")).encode())
        disk.write_all(self._fd, line, self._size_bytes)
        self._size_bytes += len(line)


@dataclass(frozen=True, slots=True)
class JournalLine:
    """An intact line, and where it ends in the file."""

    entry: SampleEntry | LedgerEntry
    end: int


@dataclass(frozen=True, slots=True)
class _StoredLine:
    sample: SampleEntry | None = None
    failure: LedgerEntry | None = None

    @property
    def entry(self) -> SampleEntry | LedgerEntry:
        if self.sample is not None:
            self.sample.check()
            return self.sample
        if self.failure is None or key_fault(self.failure.key):
            raise ValueError("it is neither a sample nor a failure")
        return self.failure


def read_journal(path: Path, header: JournalHeader) -> tuple[int, list[JournalLine]]:
    """The intact lines of a journal.

    Parameters
    ----------
    path : Path
        The journal, which may not exist.
    header : JournalHeader
        What it must belong to.

    Returns
    -------
    int
        Size of the first line; 0 if the journal is missing, damaged or another shard's.
    list of JournalLine
        What follows, up to the first line that is not intact.

    Raises
    ------
    OSError
        If there is a file that cannot be read, or something else has its place.
    """
    try:
        file = io.BytesIO(read_file(path, JSON_LIMIT_BYTES))
    except FileNotFoundError:
        return 0, []
    lines: list[JournalLine] = []
    try:
        if _unseal(file.readline(), JournalHeader) != header:
            return 0, []
    except ValueError:
        return 0, []
    header_bytes = file.tell()
    with contextlib.suppress(ValueError):
        for line in iter(file.readline, b""):
            lines.append(JournalLine(_unseal(line, _StoredLine).entry, file.tell()))
    return header_bytes, lines


def _seal(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _unseal(line: bytes, kind: type[_T]) -> _T:
    """What a line holds; a ValueError if it is torn or holds something else."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or xxhash.xxh3_64_hexdigest(text).encode() != digest:
        raise ValueError("it does not have its checksum")
    return decode(text, kind)
