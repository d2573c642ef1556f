"""Pinned memory that volumes go up from after the caller has gone on."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Buffer, BufferPool, Bytes
from ctgpu.engines.cupy_runtime import forget, sleeping_event

# One is read by the device while the next is filled.
_MOST_QUEUED = 2


class Staging:
    """Lends pinned memory, and takes it back once the device has read it.

    Parameters
    ----------
    cupy : module
    allocate : callable
        Gives pinned memory of at least so many bytes.

    Attributes
    ----------
    pool : BufferPool
        Where the memory comes from.
    """

    def __init__(self, cupy: Any, allocate: Callable[[int], Bytes]) -> None:
        self.pool = BufferPool(allocate=allocate)
        self._cupy = cupy
        self._lock = threading.Lock()
        self._queued: list[tuple[_Held, Any]] = []
        self._forget = functools.partial(forget, cupy, self._queued, os.getpid())
        # Also where close() is never called: memory that is given back must not be read any more.
        weakref.finalize(self, self._forget)

    def copy_of(self, voxels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Buffer]:
        """Voxels in this memory, in the order of their strides, and the memory.

        Parameters
        ----------
        voxels : numpy.ndarray
            Any shape, strides and dtype.
        """
        order = sorted(range(voxels.ndim), key=lambda axis: -abs(voxels.strides[axis]))
        buffer = self.pool.acquire(voxels.nbytes)
        with buffer.released_on_error():
            laid_out = voxels.transpose(order)
            copy = buffer.array(laid_out.shape, voxels.dtype)
            copy[...] = laid_out
        return copy.transpose(np.argsort(order)), buffer

    def release_after(
        self, stream: Any, buffers: Sequence[Buffer], arrays: Sequence[npt.NDArray[Any]] = ()
    ) -> None:
        """Take memory back once what is queued on a stream of the current device is done.

        Waits only where two batches before it are not done yet.

        Parameters
        ----------
        stream : cupy.cuda.Stream
        buffers : sequence of Buffer
            The memory.
        arrays : sequence of numpy.ndarray
            What else has to be there until then.
        """
        passed = sleeping_event(self._cupy)
        passed.record(stream)
        with self._lock:
            self._queued.append(((list(buffers), list(arrays)), passed))
            while self._queued:
                oldest, passed = self._queued[0]
                if len(self._queued) > _MOST_QUEUED:
                    passed.synchronize()
                elif not passed.done:
                    break
                del self._queued[0]
                for buffer in oldest[0]:
                    buffer.release()

    def close(self) -> None:
        """Give all memory back, once it is no longer read."""
        with self._lock:
            self._forget()


_Held = tuple[list[Buffer], list[npt.NDArray[Any]]]
