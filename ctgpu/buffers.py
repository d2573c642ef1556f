"""A byte-budgeted pool of reusable host buffers.

Fresh 100 MB buffers cost more in page faults than the work done in them, so buffers are kept
and handed out again.  The pool only recycles; who may hold how much is decided at admission, by
:class:`ByteBudget`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctgpu.errors import reason_of

#: Buffers start on this boundary and are rounded up to it (``O_DIRECT``, huge pages).
PAGE_BYTES = 4096
_HUGE_PAGE_BYTES = 2 << 20
# From Linux's mman-common.h; Python's mmap does not name it.
_MADV_WIPEONFORK = 18

Bytes = npt.NDArray[np.uint8]


def allocate_pages(size_bytes: int) -> Bytes:
    """Anonymous page-aligned memory, in huge pages where the system grants them.

    It is private to this process, for few systems grant shared memory huge pages.  A forked child
    has a copy of it.

    Parameters
    ----------
    size_bytes : int
        Wanted size; rounded up to whole pages.

    Returns
    -------
    numpy.ndarray
        Shape (at least `size_bytes`,), uint8.

    Raises
    ------
    MemoryError
        If the system has no more.
    """
    return _within(_map_pages(size_bytes), size_bytes)


def allocate_pinned(
    size_bytes: int, register: Callable[[int, int], object], unregister: Callable[[int], object]
) -> Bytes:
    """As :func:`allocate_pages`, registered with a device for as long as it is in use.

    The device knows the pages themselves.  After an ordinary fork, the process that writes first
    moves to a copy of the page, and that may leave this process with other pages than the device.
    So a forked child does not get these: it finds zeros in their place, which it may use and free.
    (``MADV_DONTFORK`` would leave a hole there: touching it is a crash, and freeing its array
    unmaps whatever has been put there since.)

    Parameters
    ----------
    size_bytes : int
        Wanted size; rounded up to whole pages.
    register : callable
        Called with the address and size of the memory; raises where the device refuses.
    unregister : callable
        Called with the address once nothing refers to the memory any more, and before the system
        has it back; never in a forked child.

    Returns
    -------
    numpy.ndarray
        Shape (at least `size_bytes`,), uint8.

    Raises
    ------
    MemoryError
        If the system has no more; and whatever `register` raises.
    """
    pages = _map_pages(size_bytes)
    if sys.platform == "linux":
        try:
            pages.madvise(_MADV_WIPEONFORK)
        except OSError:  # older than 4.14, or not Linux itself
            pages.madvise(mmap.MADV_DONTFORK)
    memory = _within(pages, size_bytes)
    address = memory.ctypes.data
    register(address, memory.nbytes)
    # Views, and views of views, have the base in common.
    weakref.finalize(memory.base, _in_process, os.getpid(), unregister, address)
    return memory


def whole_pages(size_bytes: int) -> int:
    """How much memory :func:`allocate_pages` makes of `size_bytes`."""
    return _rounded(size_bytes)[1]


def _map_pages(size_bytes: int) -> mmap.mmap:
    unit, rounded = _rounded(size_bytes)
    # One huge page more, so that a boundary can be chosen inside; what is beyond is never touched
    # and takes only addresses.
    spare = unit if unit > PAGE_BYTES else 0
    try:
        pages = mmap.mmap(-1, rounded + spare, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{rounded} bytes cannot be had: {reason_of(error)}") from error
    if hasattr(mmap, "MADV_HUGEPAGE") and unit == _HUGE_PAGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel built without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _within(pages: mmap.mmap, size_bytes: int) -> Bytes:
    unit, rounded = _rounded(size_bytes)
    memory = np.frombuffer(pages, np.uint8)
    skip = -memory.ctypes.data % unit
    return memory[skip : skip + rounded]


def _rounded(size_bytes: int) -> tuple[int, int]:
    """Page size to align to, and `size_bytes` in whole pages."""
    unit = _HUGE_PAGE_BYTES if size_bytes >= _HUGE_PAGE_BYTES else PAGE_BYTES
    return unit, max(unit, -(-size_bytes // unit) * unit)


def _in_process(process: int, call: Callable[[int], object], address: int) -> None:
    """Call unless this is a forked child, which inherits arrays and no device."""
    if os.getpid() == process:
        call(address)


class Buffer:
    """Memory on loan from a :class:`BufferPool`; give it back with :meth:`release`."""

    __slots__ = ("_memory", "_pool", "_root", "size_bytes")

    def __init__(self, memory: Bytes, size_bytes: int, pool: BufferPool) -> None:
        self._memory: Bytes | None = memory
        # Views of an array keep the innermost object that is no array, rather than the array.
        self._root: ctypes.Array[ctypes.c_ubyte] | None = None
        self._pool = pool
        self.size_bytes = size_bytes

    @property
    def bytes(self) -> Bytes:
        """The memory, shape (`size_bytes`,), uint8, writable, page-aligned."""
        if self._memory is None:
            raise ValueError("the buffer was released")
        return self._memory[: self.size_bytes]

    @property
    def capacity(self) -> Bytes:
        """All of the memory, `size_bytes` rounded up to whole pages or more."""
        if self._memory is None:
            raise ValueError("the buffer was released")
        return self._memory

    def array(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, order: Any = "C", offset: int = 0
    ) -> npt.NDArray[Any]:
        """A view of the memory as an array, without a copy."""
        memory = self.bytes
        if self._root is None:
            self._root = (ctypes.c_ubyte * self.size_bytes).from_buffer(memory.data)
        return np.ndarray(shape, dtype, buffer=memoryview(self._root), offset=offset, order=order)

    def release(self) -> None:
        """Hand the memory back; doing so twice is harmless."""
        memory, self._memory, self._root = self._memory, None, None
        if memory is not None:
            self._pool._give_back(memory)

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Hand the memory back if the body raises anything; otherwise it stays on loan."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release_with_arrays(self) -> None:
        """Hand the memory back once nobody holds what :meth:`array` gave, or a view of it."""
        if self._memory is None or self._root is None:
            self.release()
            return
        weakref.finalize(self._root, self._pool._give_back_later, self._memory).atexit = False
        self._memory, self._root = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


#: Lends a buffer of so many bytes.
Allocate = Callable[[int], Buffer]


class BufferPool:
    """Recycles page-aligned buffers among threads.

    Parameters
    ----------
    limit_bytes : int
        Idle buffers are given back to the system before buffers on loan and idle ones together
        would exceed this.  Loans themselves are never refused: :class:`ByteBudget` bounds them.
    allocate : callable
        Makes fresh memory of at least the given size (a CUDA engine passes pinned memory).

    Notes
    -----
    A forked child begins with no idle buffers: to write into those of its parent would copy them
    page by page, and they may be registered with a device that the child cannot use.
    """

    def __init__(
        self, limit_bytes: int = 1 << 62, allocate: Callable[[int], Bytes] = allocate_pages
    ) -> None:
        self._limit_bytes = limit_bytes
        self._allocate = allocate
        self._idle: list[Bytes] = []
        self._returned: deque[Bytes] = deque()
        self._lent_bytes = 0
        self._lock = threading.Lock()
        _pools.add(self)

    @property
    def idle_bytes(self) -> int:
        """Memory that waits for reuse."""
        with self._lock:
            self._take_back()
            return sum(map(len, self._idle))

    @property
    def lent_bytes(self) -> int:
        """Memory on loan."""
        with self._lock:
            self._take_back()
            return self._lent_bytes

    def acquire(self, size_bytes: int) -> Buffer:
        """A buffer of `size_bytes`, its contents undefined.

        An idle buffer serves where it is large enough but not more than half again as large as
        wanted, so that a pool of mixed sizes does not waste what the budget granted.
        """
        with self._lock:
            self._take_back()
            largest = size_bytes * 3 // 2 + 2 * _HUGE_PAGE_BYTES
            fitting = [m for m in self._idle if size_bytes <= len(m) <= largest]
            memory = min(fitting, key=len, default=None)
            if memory is not None:
                self._idle = [m for m in self._idle if m is not memory]
                self._lent_bytes += len(memory)
            else:
                self._make_room(size_bytes)
        if memory is None:
            memory = self._allocate(size_bytes)
            with self._lock:
                self._lent_bytes += len(memory)
        return Buffer(memory, size_bytes, self)

    def _give_back(self, memory: Bytes) -> None:
        self._returned.append(memory)
        with self._lock:
            self._take_back()

    def _give_back_later(self, memory: Bytes) -> None:
        # The garbage collector may call this in the middle of anything, also of what holds the
        # lock; the next to take it then does the rest.
        self._returned.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._lent_bytes -= len(memory)
            self._idle.append(memory)
            self._make_room(0)

    def _make_room(self, size_bytes: int) -> None:
        # The oldest idle buffers go first: they are of sizes no longer asked for.
        kept = sum(map(len, self._idle))
        while self._idle and self._lent_bytes + kept + size_bytes > self._limit_bytes:
            kept -= len(self._idle.pop(0))

    def _begin_in_child(self) -> None:
        # The thread that held the lock while the process was forked does not exist here.
        self._lock = threading.Lock()
        self._idle = []
        self._returned = deque()


_pools: weakref.WeakSet[BufferPool] = weakref.WeakSet()


def _begin_in_child() -> None:
    for pool in list(_pools):
        pool._begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


class Reservation:
    """One sample's share of a :class:`ByteBudget`."""

    __slots__ = ("_budget", "order", "size_bytes")

    def __init__(self, budget: ByteBudget, order: int, size_bytes: int) -> None:
        self._budget = budget
        self.order = order
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Give the share back; doing so twice is harmless."""
        self._budget._release(self)

    def try_resize(self, size_bytes: int) -> bool:
        """Change the share to `size_bytes` if that fits, or if this is the oldest sample in flight.

        The oldest always can: the ordered writer waits for it, so it is what frees the rest.
        """
        return self._budget._try_resize(self, size_bytes)


class ByteBudget:
    """How many bytes the samples in flight may hold together.

    Samples are admitted one after the other, each with its whole expected footprint.  One that is
    larger than the budget is admitted alone.

    Parameters
    ----------
    limit_bytes : int
        The budget.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self.changed = threading.Condition()
        self._in_flight: dict[int, Reservation] = {}
        self._next_order = 0
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """Bytes reserved now."""
        return sum(r.size_bytes for r in self._in_flight.values())

    def admit(self, size_bytes: int) -> Reservation | None:
        """Wait until `size_bytes` fit, or nothing else is in flight; None once closed."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self._closed
                    or not self._in_flight
                    or self.used_bytes + size_bytes <= self.limit_bytes
                )
            )
            if self._closed:
                return None
            reservation = Reservation(self, self._next_order, size_bytes)
            self._next_order += 1
            self._in_flight[reservation.order] = reservation
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return reservation

    def close(self) -> None:
        """Wake everyone who waits; nothing is admitted any more."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def _try_resize(self, reservation: Reservation, size_bytes: int) -> bool:
        with self.changed:
            grown = self.used_bytes - reservation.size_bytes + size_bytes
            oldest = min(self._in_flight, default=reservation.order)
            if (
                size_bytes > reservation.size_bytes
                and grown > self.limit_bytes
                and reservation.order != oldest
            ):
                return False
            reservation.size_bytes = size_bytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            self.changed.notify_all()
            return True

    def _release(self, reservation: Reservation) -> None:
        with self.changed:
            self._in_flight.pop(reservation.order, None)
            self.changed.notify_all()
