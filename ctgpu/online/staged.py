"""Samples that wait in files of their own until their shard is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.shards import disk
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import TEMPORARY_SUFFIX
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.volume.ref import SampleRef

_SAMPLE, _FAILURE = ".sample", ".failure"


class _Trailer(msgspec.Struct):
    """What follows a volume in its file."""

    fingerprint: str
    volume_xxh3_128: str
    labels: bytes
    text: bytes
    metadata: bytes
    orientation: str | None


@dataclass(frozen=True, slots=True)
class StagedSamples:
    """A folder of samples, one file each, beside the shards that they are for.

    A file is there whole or not at all.  Nothing is synced: what a crash of the machine leaves of
    one does not have its checksum, and counts as nothing.

    Parameters
    ----------
    folder : Path
        Made when the first sample comes.
    size_bytes : int
        Of one volume.
    fingerprint : str
        Of the plan; files of another count as nothing.
    """

    folder: Path
    size_bytes: int
    fingerprint: str

    def put(self, sample: PackedSample) -> None:
        """Keep a sample.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        trailer = _Trailer(
            self.fingerprint,
            sample.volume_xxh3_128,
            sample.labels,
            sample.text,
            sample.metadata,
            sample.orientation,
        )
        self._write(sample.key + _SAMPLE, sample.volume, msgspec.json.encode(trailer))

    def put_failure(self, failure: LedgerEntry) -> None:
        """Keep why a sample failed.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._write(failure.key + _FAILURE, msgspec.json.encode(failure.to_dict()))

    def count(self) -> int:
        """How many samples wait."""
        with contextlib.suppress(FileNotFoundError):
            return sum(name.endswith(_SAMPLE) for name in os.listdir(self.folder))
        return 0

    def has(self, ref: SampleRef) -> bool:
        """Whether there is a file about a sample."""
        return any((self.folder / (ref.key + kind)).exists() for kind in (_SAMPLE, _FAILURE))

    def get(self, ref: SampleRef, out: Bytes) -> PackedSample | LedgerEntry | None:
        """A sample, its volume read into `out`, or why it failed; None where it is not there.

        What is damaged is removed.
        """
        with contextlib.suppress(OSError, ValueError):
            content = (self.folder / (ref.key + _FAILURE)).read_bytes()
            return LedgerEntry.from_dict(msgspec.json.decode(content))
        path = self.folder / (ref.key + _SAMPLE)
        try:
            with path.open("rb", buffering=0) as file:
                read = file.readinto(out.data)
                trailer = msgspec.json.decode(file.read(), type=_Trailer)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            read, trailer = 0, None
        if (
            trailer is None
            or read != self.size_bytes
            or trailer.fingerprint != self.fingerprint
            or trailer.volume_xxh3_128 != checksum(out)
        ):
            disk.remove(path)
            return None
        return PackedSample(
            ref.key,
            out,
            trailer.volume_xxh3_128,
            trailer.labels,
            trailer.text,
            trailer.metadata,
            trailer.orientation,
            volume_file=path,
        )

    def remove(self, ref: SampleRef) -> None:
        """Forget a sample."""
        for kind in (_SAMPLE, _FAILURE):
            disk.remove(self.folder / (ref.key + kind))

    def _write(self, name: str, *parts: bytes | Bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                offset = 0
                for part in parts:
                    view = memoryview(part.data if isinstance(part, np.ndarray) else part).cast("B")
                    disk.write_all(fd, view, offset)
                    offset += view.nbytes
            finally:
                os.close(fd)
            os.rename(temporary, self.folder / name)
        finally:
            disk.remove(temporary)
