"""Reads samples of a tar again, and compares their bytes with what is known about them."""

from __future__ import annotations

import os

import xxhash

from ctgpu.shards.record import Member, SampleEntry
from ctgpu.shards.untrusted import read_exactly

_CHUNK_BYTES = 4 << 20


class Rereader:
    """Reads samples of one open tar again, through one small buffer.

    What the system has cached of the file is dropped first: a page whose write-back failed would
    otherwise be read from memory as if it had reached the disk.

    Parameters
    ----------
    fd : int
        Open for reading; stays open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def fault(self, entry: SampleEntry) -> str | None:
        """What is wrong with the sample, in words; None if every byte of it is right.

        Raises
        ------
        ValueError
            If the entry contradicts itself.
        """
        placement = entry.placement()
        position = entry.start
        for extension, frame in zip((*entry.members, None), placement.frames, strict=True):
            if os.pread(self._fd, len(frame), position) != frame:
                where = f"before {entry.key}.{extension}" if extension else f"after {entry.key}"
                return f"the tar header or padding {where} is damaged"
            if extension:
                member = entry.members[extension]
                if self._digest(member) != member.xxh3_128:
                    return f"{entry.key}.{extension} does not have its checksum"
                position += len(frame) + member.size_bytes
        return None

    def _digest(self, member: Member) -> str:
        digest = xxhash.xxh3_128()
        end = member.offset + member.size_bytes
        for position in range(member.offset, end, _CHUNK_BYTES):
            part = self._buffer[: end - position]
            try:
                read_exactly(self._fd, part, position)
            except EOFError:
                break
            digest.update(part)
        return digest.hexdigest()
