"""A byte-budgeted pool of reusable host buffers.

Fresh 100 MB buffers cost more in page faults than the work done in them, so buffers are kept
and handed out again.  The pool only recycles; who may hold how much is decided at admission, by
:class:`ByteBudget`.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

#: Buffers start on this boundary and are rounded up to it (``O_DIRECT``, huge pages).
PAGE_BYTES = 4096
_HUGE_PAGE_BYTES = 2 << 20

Bytes = npt.NDArray[np.uint8]


def allocate_pages(size_bytes: int) -> Bytes:
    """Anonymous page-aligned memory, in huge pages where the system grants them.

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
    unit = _HUGE_PAGE_BYTES if size_bytes >= _HUGE_PAGE_BYTES else PAGE_BYTES
    rounded = max(unit, -(-size_bytes // unit) * unit)
    # Over-allocated by one unit so that a huge-page boundary can be chosen inside.
    try:
        pages = mmap.mmap(-1, rounded + (unit if unit > PAGE_BYTES else 0))
    except OSError as error:
        raise MemoryError(f"{rounded} bytes cannot be had: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE") and unit == _HUGE_PAGE_BYTES:
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    skip = -memory.ctypes.data % unit
    return memory[skip : skip + rounded]


class Buffer:
    """Memory on loan from a :class:`BufferPool`; give it back with :meth:`release`."""

    __slots__ = ("_memory", "_pool", "size_bytes")

    def __init__(self, memory: Bytes, size_bytes: int, pool: BufferPool) -> None:
        self._memory: Bytes | None = memory
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
        return np.ndarray(shape, dtype, buffer=self.bytes.data, offset=offset, order=order)

    def release(self) -> None:
        """Hand the memory back; doing so twice is harmless."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self._pool._give_back(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class BufferPool:
    """Recycles page-aligned buffers among threads.

    Parameters
    ----------
    limit_bytes : int
        Idle buffers are given back to the system before buffers on loan and idle ones together
        would exceed this.  Loans themselves are never refused: :class:`ByteBudget` bounds them.
    allocate : callable
        Makes fresh memory of at least the given size (a CUDA engine passes pinned memory).
    """

    def __init__(
        self, limit_bytes: int = 1 << 62, allocate: Callable[[int], Bytes] = allocate_pages
    ) -> None:
        self._limit_bytes = limit_bytes
        self._allocate = allocate
        self._idle: list[Bytes] = []
        self._lent_bytes = 0
        self._lock = threading.Lock()

    @property
    def idle_bytes(self) -> int:
        """Memory that waits for reuse."""
        with self._lock:
            return sum(map(len, self._idle))

    @property
    def lent_bytes(self) -> int:
        """Memory on loan."""
        return self._lent_bytes

    def acquire(self, size_bytes: int) -> Buffer:
        """A buffer of `size_bytes`, its contents undefined.

        An idle buffer serves where it is large enough but not more than half again as large as
        wanted, so that a pool of mixed sizes does not waste what the budget granted.
        """
        with self._lock:
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
        with self._lock:
            self._lent_bytes -= len(memory)
            self._idle.append(memory)
            self._make_room(0)

    def _make_room(self, size_bytes: int) -> None:
        # The oldest idle buffers go first: they are of sizes no longer asked for.
        kept = sum(map(len, self._idle))
        while self._idle and self._lent_bytes + kept + size_bytes > self._limit_bytes:
            kept -= len(self._idle.pop(0))


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
