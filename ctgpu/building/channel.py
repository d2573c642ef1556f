"""Hand-offs between the stages of a pipeline."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ctgpu.buffers import Reservation


@dataclass(order=True, slots=True)
class Item:
    """A sample on its way, with its share of the byte budget."""

    order: int
    reservation: Reservation = field(compare=False)
    payload: object = field(compare=False)


class Channel:
    """A hand-off between two stages that gives out the earliest sample first.

    Parameters
    ----------
    changed : threading.Condition
        Notified on every change; shared by all channels and the budget of one pipeline.
    producers : int
        Threads that will call :meth:`done`; when all have, the channel is drained and closed.
    """

    def __init__(self, changed: threading.Condition, producers: int) -> None:
        self._changed = changed
        self._producers = producers
        self._items: list[Item] = []
        self._stopped = False

    def put(self, item: Item) -> None:
        """Hand `item` over."""
        with self._changed:
            heapq.heappush(self._items, item)
            self._changed.notify_all()

    def get(self, accept: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """The earliest item once `accept` takes it; None when nothing will come any more."""
        with self._changed:
            while not self._stopped:
                if self._items and accept(self._items[0]):
                    return heapq.heappop(self._items)
                if not self._items and not self._producers:
                    return None
                self._changed.wait()
            return None

    def get_waiting(self, count: int) -> list[Item]:
        """Up to `count` more items, as far as they are there already."""
        with self._changed:
            return [heapq.heappop(self._items) for _ in range(min(count, len(self._items)))]

    def done(self) -> None:
        """One producer has nothing more to hand over."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def stop(self) -> list[Item]:
        """Give out nothing more; returns what was left."""
        with self._changed:
            self._stopped = True
            left, self._items = self._items, []
            self._changed.notify_all()
            return left
