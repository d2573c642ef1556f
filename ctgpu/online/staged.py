"""Samples that wait in files of their own until their shard is complete."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.shards import disk
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.record import checksum
from ctgpu.shards.untrusted import read_exactly
from ctgpu.shards.writer import PackedSample
from ctgpu.volume.ref import SampleRef

_SAMPLE, _FAILURE = ".sample", ".failure"
_SIZE_BYTES = 4


class _Trailer(msgspec.Struct):
    """What follows a volume in its file, and before its own size, in `_SIZE_BYTES`."""

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
    fingerprint : str
        Of the plan; files of another count as nothing.
    compressed : bool
        Whether volumes are kept, and given back, compressed.
    """

    folder: Path
    fingerprint: str
    compressed: bool = False

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
        told = msgspec.json.encode(trailer)
        size = len(told).to_bytes(_SIZE_BYTES, "little")
        self._write(sample.key + _SAMPLE, sample.volume, told, size)

    def put_failure(self, failure: LedgerEntry) -> None:
        """Keep why a sample failed.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._write(failure.key + _FAILURE, msgspec.json.encode(failure.to_dict()))

    def taken_bytes(self) -> int:
        """What the volumes take that wait."""
        taken = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.glob(f"*{_SAMPLE}"):
                # Its shard may be complete by now, and it gone.
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    taken += _sizes(file.fileno())[0]
        return taken

    def has(self, ref: SampleRef) -> bool:
        """Whether there is a file about a sample."""
        return any((self.folder / (ref.key + kind)).exists() for kind in (_SAMPLE, _FAILURE))

    def get(self, ref: SampleRef, out: Bytes) -> PackedSample | LedgerEntry | None:
        """A sample, its volume read into `out`, or why it failed; None where it is not there.

        `out` has exactly the size of a volume, or as much as a compressed one can have, and then
        the sample has the beginning of it.  What is damaged is removed.
        """
        with contextlib.suppress(OSError, ValueError):
            content = (self.folder / (ref.key + _FAILURE)).read_bytes()
            return LedgerEntry.from_dict(msgspec.json.decode(content))
        path = self.folder / (ref.key + _SAMPLE)
        try:
            with path.open("rb", buffering=0) as file:
                volume, trailer = self._read(file.fileno(), out)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            disk.remove(path)
            return None
        return PackedSample(
            ref.key,
            volume,
            trailer.volume_xxh3_128,
            trailer.labels,
            trailer.text,
            trailer.metadata,
            trailer.orientation,
            volume_file=path,
            compressed=self.compressed,
        )

    def _read(self, fd: int, out: Bytes) -> tuple[Bytes, _Trailer]:
        """A volume, read into `out`, and what follows it.

        Raises
        ------
        ValueError, EOFError
            If the file is damaged, or of another plan.
        """
        size_bytes, trailer_bytes = _sizes(fd)
        if not 0 <= size_bytes <= len(out) or (size_bytes < len(out) and not self.compressed):
            raise ValueError("it is not as long as it must be")
        trailer = msgspec.json.decode(os.pread(fd, trailer_bytes, size_bytes), type=_Trailer)
        volume = out[:size_bytes]
        read_exactly(fd, volume.data, 0)
        if trailer.fingerprint != self.fingerprint or trailer.volume_xxh3_128 != checksum(volume):
            raise ValueError("it is not what was kept")
        return volume, trailer

    def remove(self, ref: SampleRef) -> None:
        """Forget a sample."""
        for kind in (_SAMPLE, _FAILURE):
            disk.remove(self.folder / (ref.key + kind))

    def _write(self, name: str, *parts: bytes | Bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = disk.temporary_beside(self.folder / name)
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


def _sizes(fd: int) -> tuple[int, int]:
    """Bytes of a volume in its file, and of what is said of it; below 0 where that is damaged."""
    end = os.fstat(fd).st_size - _SIZE_BYTES
    trailer_bytes = int.from_bytes(os.pread(fd, _SIZE_BYTES, max(0, end)), "little")
    return end - trailer_bytes, trailer_bytes
