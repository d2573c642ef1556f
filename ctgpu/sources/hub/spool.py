"""Buffers that lie on disk instead of in memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from ctgpu.buffers import PAGE_BYTES, BufferPool, Bytes
from ctgpu.errors import StorageError, reason_of


class SpoolPool(BufferPool):
    """A pool whose buffers are mapped files in a folder.

    A file has no name from the moment it can be used, so the system itself takes it back when its
    buffer is released or its process dies, however it dies: there is nothing to clean up.

    Parameters
    ----------
    folder : Path
        Where the bytes go; made where it does not exist.

    Raises
    ------
    StorageError
        If the folder cannot be made or written; from :meth:`acquire`, if it is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        super().__init__(limit_bytes=0, allocate=self._map_file)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {reason_of(error)}; choose another --temp-dir"
            ) from error
        self.acquire(1).release()

    def _map_file(self, size_bytes: int) -> Bytes:
        rounded = max(PAGE_BYTES, -(-size_bytes // PAGE_BYTES) * PAGE_BYTES)
        try:
            with tempfile.TemporaryFile(prefix="ctgpu-", dir=self._folder) as file:
                _reserve(file.fileno(), rounded)
                return np.frombuffer(mmap.mmap(file.fileno(), rounded), np.uint8)
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot hold {rounded:,} bytes more: {reason_of(error)}; "
                "free space there or choose another --temp-dir"
            ) from error


def _reserve(file: int, size_bytes: int) -> None:
    """Take the space now: a full disk is an error here and would be a crash in mapped memory."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size_bytes)
        return
    zeros = bytes(min(size_bytes, 1 << 20))
    for offset in range(0, size_bytes, len(zeros)):
        os.pwrite(file, zeros[: size_bytes - offset], offset)
