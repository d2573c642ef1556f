"""Files that are read from their disk, and storage of a given rate, which is simulated."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

# What may pass at once after an idle time, so that to sleep a little too long costs nothing.
_BURST_S = 0.005


def evict(file: Path) -> int:
    """Drop a file from the page cache; how many bytes of it are still there."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    address, resident = (ctypes.c_void_p(array.ctypes.data) for array in (mapped, pages))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(address, ctypes.c_size_t(len(mapped)), resident):
        raise OSError(ctypes.get_errno(), "mincore")
    return mmap.PAGESIZE * int((pages & 1).sum())


@contextmanager
def throttled(call: str, bytes_per_s: float) -> Iterator[None]:
    """Let all threads together have so many bytes a second through a function of :mod:`os`.

    `call` is ``preadv``, by which shards are read, or ``pwrite``, by which they are written.
    """
    real, lock = getattr(os, call), threading.Lock()
    free_at_s = time.perf_counter()

    def slowed(*arguments: object) -> int:
        nonlocal free_at_s
        asked_s = time.perf_counter()
        count: int = real(*arguments)
        with lock:
            until_s = free_at_s = max(free_at_s, asked_s - _BURST_S) + count / bytes_per_s
        time.sleep(max(0.0, until_s - time.perf_counter()))
        return count

    with mock.patch.object(os, call, slowed):
        yield
