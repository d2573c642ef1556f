"""Reads samples out of a shard, into memory that the caller owns."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from ctgpu.buffers import Bytes
from ctgpu.errors import FetchError, StorageError, reason_of
from ctgpu.shards.names import parse_shard_name, record_name
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.shards.scan import TarMember, scan_tar
from ctgpu.shards.tar import PAYLOADS
from ctgpu.shards.untrusted import open_regular, read_exactly
from ctgpu.shards.writer import PackedSample

# Hashed while it still is in the processor's cache: a fraction of the cost of hashing it later.
_CHECKED_BYTES = 1 << 20
_CLOSED = -1


class ShardReader:
    """One open shard.  Reads are positioned, so threads may share it.

    Parameters
    ----------
    path : Path
        The tar.

    Raises
    ------
    StorageError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = open_regular(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {reason_of(error)}") from error

    @property
    def path(self) -> Path:
        """The tar."""
        return self._path

    @cached_property
    def record(self) -> ShardRecord:
        """The shard's record, which lies beside the tar.

        Raises
        ------
        StorageError
            If there is none, or it is damaged.
        """
        shard = parse_shard_name(self._path.name)
        if shard is None:
            raise StorageError(f"{self._path} is not named as a shard of ctgpu, so has no record")
        return ShardRecord.load(self._path.with_name(record_name(shard[0])))

    def scan(self) -> list[TarMember]:
        """Every file in the tar, found without a record.

        Raises
        ------
        DecodeError
            If the tar is truncated, damaged or hostile.
        StorageError
            If it cannot be read.
        """
        try:
            return list(scan_tar(self._fd, self._path))
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {reason_of(error)}") from error

    def read_into(
        self, entry: SampleEntry, extension: str, out: memoryview, *, verify: bool = True
    ) -> None:
        """Read one member of a sample into `out`.

        Parameters
        ----------
        entry : SampleEntry
            Of this shard's record.
        extension : str
            ``bin`` or ``ctz``, ``seg`` or ``segz``, ``cls``, ``txt`` or ``json``.
        out : memoryview
            Contiguous and writable, of exactly the member's size in bytes.
        verify : bool
            Hold the bytes against their checksum.

        Raises
        ------
        FetchError
            If the tar is too short, or the bytes do not have their checksum.
        """
        member = entry.members[extension]
        view = out.cast("B")
        if len(view) != member.size_bytes:
            raise ValueError(f"out has {len(view)} bytes; the member has {member.size_bytes}")
        digest = xxhash.xxh3_128()
        step = _CHECKED_BYTES if verify else max(1, len(view))
        for start in range(0, len(view), step):
            part = view[start : start + step]
            self.read_part(entry, extension, start, part)
            if verify:
                digest.update(part)
        if verify and digest.hexdigest() != member.xxh3_128:
            raise FetchError(
                f"{self._path}: {entry.key}.{extension} does not have its checksum "
                f"{member.xxh3_128}; the tar has changed since it was written"
            )

    def read_part(
        self, entry: SampleEntry, extension: str, start_bytes: int, out: memoryview
    ) -> None:
        """Fill `out` with a part of one member, which cannot be verified.

        Parameters
        ----------
        entry : SampleEntry
            Of this shard's record.
        extension : str
            ``bin`` or ``ctz``, ``seg`` or ``segz``, ``cls``, ``txt`` or ``json``.
        start_bytes : int
            Where in the member the part begins.
        out : memoryview
            Of bytes, contiguous and writable, as long as the part.

        Raises
        ------
        FetchError
            If the tar is too short or cannot be read.
        """
        member = entry.members[extension]
        if not 0 <= start_bytes <= member.size_bytes - len(out):
            raise ValueError(f"{len(out)} bytes from {start_bytes} are not within the member")
        try:
            read_exactly(self._fd, out, member.offset + start_bytes)
        except EOFError as error:
            raise FetchError(f"{self._path} ends within {entry.key}.{extension}") from error
        except OSError as error:
            raise FetchError(
                f"{self._path}: {entry.key}.{extension} cannot be read: {reason_of(error)}"
            ) from error

    def read(self, entry: SampleEntry, extension: str) -> bytes:
        """One small member, verified; as :meth:`read_into`."""
        member = entry.members[extension]
        # A record may claim anything, and memory is taken for what the tar has at most.
        if member.offset + member.size_bytes > os.fstat(self._fd).st_size:
            raise FetchError(f"{self._path} ends within {entry.key}.{extension}")
        data = bytearray(member.size_bytes)
        self.read_into(entry, extension, memoryview(data))
        return bytes(data)

    def copy_sample(self, entry: SampleEntry, *payloads: Bytes) -> PackedSample:
        """A sample as the writer takes it, verified: how a shard is rewritten around its failures.

        Parameters
        ----------
        entry : SampleEntry
            Of this shard's record.
        *payloads : numpy.ndarray
            uint8, page-aligned, of the size of its volume as it is stored and, where there is
            one, of its mask; the result has them.

        Raises
        ------
        FetchError
            If its bytes are not those that were written.
        """
        copied = dict(zip(filter(PAYLOADS.__contains__, entry.members), payloads, strict=True))
        for extension, payload in copied.items():
            self.read_into(entry, extension, payload.data)
        volume, mask = entry.volume_extension, entry.mask_extension
        return PackedSample(
            entry.key,
            copied[volume],
            entry.members[volume].xxh3_128,
            self.read(entry, "cls"),
            self.read(entry, "txt"),
            self.read(entry, "json"),
            entry.orientation,
            entry.source_bytes,
            None if mask is None else copied[mask],
            None if mask is None else entry.members[mask].xxh3_128,
            compressed=entry.is_compressed,
        )

    def close(self) -> None:
        """Close the tar.  Once more does nothing: its descriptor may be another file's by then."""
        fd, self._fd = self._fd, _CLOSED
        if fd != _CLOSED:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
