"""The bytes of one volume, and what decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctgpu.buffers import Allocate, Buffer, BufferPool
from ctgpu.data_sets.fields import AS_STORED, ArrayRule
from ctgpu.decode import MAX_VOLUME_BYTES, decode, inflated_size
from ctgpu.errors import UsageError, reason_of
from ctgpu.sources.detached import read_volume
from ctgpu.volume.raw import RawVolume


@dataclass(frozen=True, slots=True)
class Fetched:
    """One volume as its source stores it: fetched in one thread, decoded in another.

    Attributes
    ----------
    path : str
        As the source names it; its suffix tells the format.
    buffer : Buffer
        The bytes.
    arrays : ArrayRule
        What a bare array does not say of itself.
    header : bytes or None
        The volume's header, where it has a file to itself.
    """

    path: str
    buffer: Buffer
    arrays: ArrayRule = AS_STORED
    header: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """Of the bytes as stored."""
        return self.buffer.size_bytes

    @property
    def inflated_bytes(self) -> int:
        """Bytes of memory that :meth:`decode` will need beside the buffer."""
        return inflated_size(self.path, self.buffer.bytes, self.arrays, self.header)

    def decode(self, pool: BufferPool, *, limit_bytes: int = MAX_VOLUME_BYTES) -> RawVolume:
        """The volume, as :func:`ctgpu.decode.decode`; takes the buffer over.

        Raises
        ------
        DecodeError
            If the bytes are not one whole volume.
        """
        return decode(
            self.path,
            self.buffer,
            pool,
            limit_bytes=limit_bytes,
            arrays=self.arrays,
            header=self.header,
        )

    def release(self) -> None:
        """Give the buffer back undecoded."""
        self.buffer.release()


def fetch_file(path: Path, allocate: Allocate) -> Fetched:
    """One volume that belongs to no source.

    Raises
    ------
    UsageError
        If it cannot be read.
    DecodeError, FetchError
        If it is a header, and the file of the voxels cannot be told or read.
    """
    try:
        header, buffer = read_volume(path, allocate)
        return Fetched(path.name, buffer, header=header)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason_of(error)}") from error
