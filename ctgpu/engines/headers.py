"""Pinned memory that headers of batches are uploaded from, so that no upload holds the host up."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ctgpu.buffers import Bytes
from ctgpu.engines.batch import address_of
from ctgpu.engines.cupy_runtime import forget, sleeping_event, upload


class Headers:
    """Uploads headers, and keeps the memory of each until the device has read it.

    A caller that goes on with a stream of its own does not wait, so the copy may still be queued
    when the next header is made: that one gets other memory.

    Parameters
    ----------
    cupy : module
    allocate : callable
        Gives pinned memory of at least so many bytes.
    """

    def __init__(self, cupy: Any, allocate: Callable[[int], Bytes]) -> None:
        self._cupy = cupy
        self._allocate = allocate
        self._lock = threading.Lock()
        self._queued: list[_Queued] = []
        self._give_back = functools.partial(forget, cupy, self._queued, os.getpid())
        # Also where close() is never called: memory that is given back must not be read any more.
        weakref.finalize(self, self._give_back)

    def upload(self, header: Bytes, address: int, stream: Any) -> None:
        """Queue the copy of a header to device memory.

        Parameters
        ----------
        header : numpy.ndarray
            Shape (n,), uint8; may be changed as soon as this returns.
        address : int
            Of the device memory.
        stream : cupy.cuda.Stream
            To copy on; of the current device.
        """
        pinned = self._take(header.nbytes)
        pinned[: header.nbytes] = header
        upload(self._cupy, address, address_of(pinned), header.nbytes, stream.ptr)
        copied = sleeping_event(self._cupy)
        copied.record(stream)
        with self._lock:
            self._queued.append((pinned, copied))

    def close(self) -> None:
        """Give the memory back, once it is no longer read."""
        with self._lock:
            self._give_back()

    def _take(self, size_bytes: int) -> Bytes:
        with self._lock:
            for n, (pinned, copied) in enumerate(self._queued):
                if copied.done:
                    del self._queued[n]
                    if len(pinned) >= size_bytes:
                        return pinned
                    break  # too small for what comes now, so a larger one takes its place
        return self._allocate(size_bytes + size_bytes // 4)


#: Memory, and the event behind the copy from it.
_Queued = tuple[Bytes, Any]
