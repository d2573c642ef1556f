"""What is in a committed shard: the file whose existence commits it."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import xxhash

from ctgpu.arguments import converted
from ctgpu.errors import NewerFormatError, StorageError, reason_of
from ctgpu.printable import counted
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import parse_shard_name, shard_name
from ctgpu.shards.tar import (
    BLOCK_BYTES,
    END_OF_ARCHIVE,
    PAYLOADS,
    Placement,
    extensions,
    key_fault,
    mask_of,
    place_sample,
    volume_of,
)
from ctgpu.shards.untrusted import (
    JSON_LIMIT_BYTES,
    Count,
    Digest,
    Fingerprint,
    Stated,
    Text,
    decode,
    open_regular,
    read_file,
)
from ctgpu.shards.versions import FIRST, FOURTH, THIRD, format_name, of_newer, version_of

_SUMMARY_LIMIT_BYTES = 4096

#: As :attr:`ctgpu.volume.orientation.Orientation.codes`.
Codes = Annotated[str, msgspec.Meta(pattern=r"\A[LRAPSI]{3}\Z")]


def checksum(data: bytes | memoryview | Any) -> str:
    """XXH3-128 of any contiguous buffer, 32 hexadecimal digits; the GIL is released."""
    return xxhash.xxh3_128_hexdigest(data)


class Member(msgspec.Struct, frozen=True, array_like=True):
    """Where one member's data is in the tar, in bytes, and its XXH3-128."""

    offset: Count
    size_bytes: Count
    xxh3_128: Digest


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
        By extension: ``bin``, ``cls``, ``txt``, ``json``; ``seg`` after the first, where there are
        masks.  Compressed volumes and masks are ``ctz`` and ``segz``.
    labelled : bool
        Whether one of its labels is a number; False where the tables have no label row for it, or
        a blank one, so that ``.cls`` is all NaN.
    orientation : str or None
        How its source is stored, such as ``"LPS"``; None where the source does not state it, or
        the entry is of a ctgpu that did not record it.
    source_bytes : int or None
        Size of the file that it was made of, where that was not the planned one any more.
    partly_labelled : bool
        Whether some of its labels are numbers and others NaN; False where the entry is of a ctgpu
        that did not record it.
    """

    key: str
    study_id: Text
    start: Count
    end: Count
    members: Mapping[str, Member]
    labelled: bool = True
    orientation: Codes | None = None
    source_bytes: Count | None = None
    partly_labelled: bool = False

    @property
    def volume_extension(self) -> str:
        """``bin``, or ``ctz`` where it is compressed."""
        return volume_of(self.members)

    @property
    def mask_extension(self) -> str | None:
        """``seg``, or ``segz`` where it is compressed; None where there is no mask."""
        return mask_of(self.members)

    @property
    def payload_bytes(self) -> int:
        """Bytes of its volume, and of its mask, as they are stored."""
        return sum(m.size_bytes for e, m in self.members.items() if e in PAYLOADS)

    @property
    def is_compressed(self) -> bool:
        """Whether its volume, and its mask, are compressed."""
        return self.volume_extension != "bin"

    @property
    def digests(self) -> dict[str, str]:
        """XXH3-128 of its members, by extension."""
        return {extension: member.xxh3_128 for extension, member in self.members.items()}

    def placement(self) -> Placement:
        """Its bytes around the data, recomputed.

        Raises
        ------
        ValueError
            If the entry does not say what the format says.
        """
        placement = place_sample(
            self.start, self.key, {e: m.size_bytes for e, m in self.members.items()}
        )
        offsets = tuple(member.offset for member in self.members.values())
        if placement.end != self.end or placement.offsets != offsets:
            raise ValueError(f"the entry of {self.key} contradicts itself")
        return placement

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
            **({} if self.orientation is None else {"orientation": self.orientation}),
            **({} if self.source_bytes is None else {"source_bytes": self.source_bytes}),
            **({"partly_labelled": True} if self.partly_labelled else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleEntry:
        """What :meth:`to_dict` made, checked against the format.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        entry = converted(values, cls)
        entry.check()
        return entry

    def check(self) -> None:
        """Hold what was read, and is of the right types, against the format.

        Raises
        ------
        ValueError
            If it is not what the format says.
        """
        if fault := key_fault(self.key):
            raise ValueError(f"the key {self.key!r} {fault}")
        wanted = extensions(compressed=self.is_compressed, masks=self.mask_extension is not None)
        if tuple(self.members) != wanted:
            raise ValueError(f"the members of {self.key} are not {', '.join(wanted)}")
        if self.start % BLOCK_BYTES:
            raise ValueError(f"{self.key} does not start with a block")
        self.placement()


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The first line of a record: all that a re-run needs to know about a finished shard.

    `orientations` counts how the sources of its samples are stored, in the order of the codes;
    those that are not known are left out.
    """

    shard_index: Count
    fingerprint: Fingerprint
    size_bytes: Count
    num_samples: Count
    num_unlabelled: Count
    num_failed: Count
    orientations: Mapping[Codes, Count] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> ShardSummary:
        """Read the first line of the record at `path`.

        Raises
        ------
        StorageError
            If it cannot be read or is no record, or is that of another shard.
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        with _reading(path), os.fdopen(open_regular(path), "rb") as file:
            line = file.readline(_SUMMARY_LIMIT_BYTES).rstrip(b",\n") + b"}"
            version_of(line, "shard")
            return cls._of(line, path)

    @classmethod
    def _of(cls, content: bytes, path: Path) -> ShardSummary:
        summary = decode(content, cls)
        if parse_shard_name(path.name) != (summary.shard_index, "json"):
            raise ValueError(f"it is the record of shard {summary.shard_index}")
        return summary

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        if not self.orientations:
            # As in older records: nothing is known.
            del values["orientations"]
        return values


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
    version : int
        Of the format: that of the plan.
    """

    shard_index: int
    fingerprint: str
    size_bytes: int
    samples: Sequence[SampleEntry]
    failures: Sequence[LedgerEntry] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    version: int = FIRST

    def __repr__(self) -> str:
        return (
            f"ShardRecord({self.shard_index}: {counted(len(self.samples), 'sample')}, "
            f"{len(self.failures)} failed, {self.size_bytes} bytes)"
        )

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
            dict(sorted(Counter(s.orientation for s in self.samples if s.orientation).items())),
        )

    @classmethod
    def load(cls, path: Path) -> ShardRecord:
        """The record at `path`.

        Raises
        ------
        StorageError
            If it cannot be read or is no record, or is that of another shard.
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        with _reading(path):
            content = read_file(path, JSON_LIMIT_BYTES)
            version = version_of(content, "shard")
            summary = ShardSummary._of(content, path)
            stored = decode(content, _StoredRecord)
            record = cls(
                summary.shard_index,
                summary.fingerprint,
                summary.size_bytes,
                stored.samples,
                stored.failures,
                stored.run,
                version,
            )
            if record.summary != summary:
                raise ValueError("its first line contradicts the rest")
            record._check()
            return record

    def to_json(self) -> bytes:
        """One JSON object: a line of summary, and a line for each sample and failure."""
        dumps = json.JSONEncoder(separators=(",", ":")).encode
        head = {
            "format": format_name("shard", self.version),
            "filename": shard_name(self.shard_index),
            **self.summary.to_dict(),
        }
        samples = ",\n".join(dumps(sample.to_dict()) for sample in self.samples)
        failures = ",\n".join(dumps(failure.to_dict()) for failure in self.failures)
        return (
            f'{dumps(head)[:-1]},\n"samples":[\n{samples}\n],\n"failures":[\n{failures}\n],\n'
            f'"run":{json.dumps(self.run, sort_keys=True)}}}\n'
        ).encode()

    def _check(self) -> None:
        """Hold what was read against the format: each byte of the tar is accounted for once."""
        end = 0
        compressed = self.version == FOURTH
        # Compressed ones are of one version, with masks or without.
        masks = any(s.mask_extension for s in self.samples) if compressed else self.version == THIRD
        for sample in self.samples:
            sample.check()
            if tuple(sample.members) != extensions(compressed=compressed, masks=masks):
                raise ValueError(f"{sample.key} has not the members of its version")
            if sample.start != end:
                raise ValueError(f"it leaves a gap before {sample.key}")
            end = sample.end
        if self.size_bytes != end + len(END_OF_ARCHIVE):
            raise ValueError(f"its samples end at byte {end} of {self.size_bytes}")
        for failure in self.failures:
            if fault := key_fault(failure.key):
                raise ValueError(f"the key {failure.key!r} {fault}")
        keys = Counter([s.key for s in self.samples] + [f.key for f in self.failures])
        if doubled := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"it has {doubled[0]} twice")


@dataclass(frozen=True, slots=True)
class _StoredRecord:
    """What a record holds beside its summary."""

    samples: list[SampleEntry]
    failures: list[LedgerEntry]
    run: dict[str, Stated]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except NewerFormatError as error:
        raise of_newer(path, error) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {reason_of(error)}; mend that and run the same command again"
        ) from error
    except ValueError as error:
        raise StorageError(
            f"{path} is not the record of its shard ({error}); remove it and run the build again, "
            "which rebuilds the shard"
        ) from error
