"""Volumes of a source that are the same bytes: a scan that counts twice, or lies in two splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import xxhash

from ctgpu.volume.ref import SampleRef

# Scans of one size differ nearly always within as much of their begin, middle or end.
_PROBE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22


def duplicates(
    refs: Iterable[SampleRef], path_of: Callable[[SampleRef], Path | None] = lambda ref: None
) -> list[tuple[SampleRef, ...]]:
    """Volumes that are the same, each group in the order given.

    Where the source states checksums these decide.  Of files on this machine the bytes do: only
    those of one size are looked at, first in three places, and as a whole where these agree.

    Parameters
    ----------
    refs : iterable of SampleRef
        The volumes.
    path_of : callable, optional
        Where the file of one is on this machine; one without a file and without a checksum is not
        compared.
    """
    by_checksum: dict[str, list[SampleRef]] = {}
    by_size: dict[int, list[SampleRef]] = {}
    for ref in refs:
        if ref.checksum is not None:
            by_checksum.setdefault(ref.checksum, []).append(ref)
        elif ref.size_bytes:
            by_size.setdefault(ref.size_bytes, []).append(ref)
    found = [tuple(same) for same in by_checksum.values() if len(same) > 1]
    for same_size in by_size.values():
        for alike in _parted(same_size, lambda ref: _probe(path_of(ref))):
            found += map(tuple, _parted(alike, lambda ref: _whole(path_of(ref))))
    return found


def _parted(
    refs: Sequence[SampleRef], digest: Callable[[SampleRef], bytes | None]
) -> list[list[SampleRef]]:
    """Those of some volumes that agree in a digest; what cannot be read agrees with nothing."""
    if len(refs) < 2:
        return []
    groups: dict[bytes, list[SampleRef]] = {}
    for ref in refs:
        if (value := digest(ref)) is not None:
            groups.setdefault(value, []).append(ref)
    return [group for group in groups.values() if len(group) > 1]


def _probe(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            last = max(0, size_bytes - _PROBE_BYTES)
            parts = [os.pread(file.fileno(), _PROBE_BYTES, place) for place in (0, last // 2, last)]
    except OSError:
        return None
    return xxhash.xxh3_128_digest(b"".join(parts))


def _whole(path: Path | None) -> bytes | None:
    if path is None:
        return None
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()
