"""Which iteration of a loader counts, how far it is, and how long its batches live."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from ctgpu.buffers import Buffer
from ctgpu.errors import UsageError
from ctgpu.loading.order import Share
from ctgpu.loading.reading import Batch, BatchReader, Read
from ctgpu.printable import counted

# A batch stays valid until the next but one is asked for.
_VALID_BATCHES = 2


@dataclass(slots=True)
class Place:
    """How far an epoch has been handed out, in samples of all ranks together."""

    epoch: int
    position: int = 0
    resumed: bool = False
    #: Slots in whose place the next good one was handed out, or is to be.
    skipped: frozenset[int] = frozenset()


class Progress:
    """What the iterations of one loader share.

    Attributes
    ----------
    place : Place
        Where the loader is.  Replacing it ends the iteration that counts in it.
    lent : deque of Buffer
        Of batches that iterations handed out which have ended since, oldest first.
    """

    def __init__(self) -> None:
        self.place = Place(0)
        self.lent: deque[Buffer] = deque()
        self._latest: weakref.ref[Iteration] | None = None
        self._lock = threading.Lock()

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch` next, unless the loader was set to a place in it and is still there.

        Raises
        ------
        UsageError
            If it is negative.
        """
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; epochs count from 0")
        with self._lock:
            if not (self.place.resumed and epoch == self.place.epoch):
                self.place = Place(epoch)

    def resume(self, epoch: int, position: int, skipped: frozenset[int]) -> None:
        """Go on at `position` next."""
        with self._lock:
            self.place = Place(epoch, position, resumed=True, skipped=skipped)

    def begin(self, iteration: Iteration, share: Share, total: int) -> Place:
        """Where `iteration` starts, which from now on is the one that counts.

        Raises
        ------
        UsageError
            If `total` samples do not fill one step.
        """
        if share.steps(total) == 0:
            raise UsageError(
                f"{counted(total, 'sample does', 'samples do')} not fill one step of "
                f"{counted(share.world_size, 'rank')} × {share.batch_size}; choose a smaller "
                "batch_size, or drop_last=False"
            )
        with self._lock:
            before = self.place
            if before.resumed:
                place = Place(before.epoch, before.position, skipped=before.skipped)
            else:
                # Those who count steps by len() never ask for what comes after the last.
                finished = share.steps(total - before.position) == 0
                place = Place(before.epoch + finished)
            self.place = place
            latest, self._latest = self._latest, weakref.ref(iteration)
        if latest is not None and (other := latest()) is not None:
            other.retire()
        return place

    def finish(self, place: Place) -> None:
        """All of an epoch was handed out."""
        with self._lock:
            if self.place is place:
                self.place = Place(place.epoch + 1)


class Iteration(Iterator[Batch]):
    """The batches of one epoch, for the thread that asks for the first.

    Threads would overwrite each other's batches, and iterations beside each other would count each
    other's steps: both are refused.  A batch is valid until its iteration is asked for the next but
    one; if the iteration is over, until the loader is.

    Parameters
    ----------
    progress : Progress
        The loader's.
    reader : BatchReader
        Reads the batches.
    share : callable
        Which part of each step is ours; asked once, when the first batch is.
    hand_over : callable
        Makes what the consumer gets of what was read.
    """

    def __init__(
        self,
        progress: Progress,
        reader: BatchReader,
        share: Callable[[], Share],
        hand_over: Callable[[Batch], Batch],
    ) -> None:
        self._progress = progress
        self._reader = reader
        self._share = share
        self._hand_over = hand_over
        self._begun: tuple[Place, Share] | None = None
        self._owner: tuple[int, int] | None = None
        self._ahead: Generator[Read, None, None] | None = None
        self._lent: deque[Buffer] = deque()
        self._over = False
        self._turn = threading.Lock()

    def __next__(self) -> Batch:
        """The next batch; after an error, the one that it kept from being handed out.

        Raises
        ------
        UsageError
            If another thread or process asks than the one that began, or the iteration no longer
            counts.
        FetchError, StorageError
            As :meth:`BatchReader.read_ahead`.
        """
        self._check_owner()
        if not self._turn.acquire(blocking=False):
            raise _one_thread()
        try:
            self._check_owner()  # again, as the first batch may just have gone to another thread
            place, position, skipped, batch = self._take()
        finally:
            self._turn.release()
        place.skipped |= skipped
        place.position = position  # last, so that an interrupt before it counts nothing
        return batch

    def __del__(self) -> None:
        self._end()

    def close(self) -> None:
        """End it and its threads; the loader's next iteration uses its memory."""
        if not self._turn.acquire(blocking=False):
            raise _one_thread()
        try:
            self._end()
        finally:
            self._turn.release()

    def retire(self) -> None:
        """End its threads, as another iteration counts now; its batches stay valid."""
        if self._turn.acquire(blocking=False):  # otherwise it is busy, and finds out itself
            try:
                self._stop()
            finally:
                self._turn.release()

    def _take(self) -> tuple[Place, int, frozenset[int], Batch]:
        """The next batch, and where its epoch will be once it is handed out."""
        try:
            return self._take_ahead()
        except BaseException:
            # A batch that was not handed out is read again: a transform may have changed it.
            self._stop()
            raise

    def _take_ahead(self) -> tuple[Place, int, frozenset[int], Batch]:
        if self._over:
            raise StopIteration
        total = self._reader.total
        if self._begun is None:
            self._owner = os.getpid(), threading.get_ident()
            share = self._share()
            self._begun = self._progress.begin(self, share, total), share
        place, share = self._begun
        if share.steps(total - place.position) == 0:
            self._end()
            self._progress.finish(place)
            raise StopIteration
        self._check_counts(place)
        before = self._progress.lent
        while len(before) + len(self._lent) >= _VALID_BATCHES:
            (before or self._lent).popleft().release()
        if self._ahead is None:
            self._ahead = self._reader.read_ahead(share, place.epoch, place.position, place.skipped)
        batch, buffer, skipped = next(self._ahead)
        if buffer is not None:
            self._lent.append(buffer)
        try:
            batch = self._hand_over(batch)
        except StopIteration as error:  # would pass for the end of the epoch
            raise RuntimeError("the transform raised StopIteration") from error
        self._check_counts(place)
        return place, share.after(total, place.position), skipped, batch

    def _check_owner(self) -> None:
        if self._owner is None:
            return
        process, thread = self._owner
        if process != os.getpid():
            raise UsageError(
                "this iteration of the loader began in the process that this one was forked from, "
                "where its threads are; begin another one here with iter(loader)"
            )
        if thread != threading.get_ident():
            raise _one_thread()

    def _check_counts(self, place: Place) -> None:
        if self._progress.place is not place:
            raise UsageError(
                "this iteration was given up when its loader began a newer one, or was set to "
                "another place by set_epoch or load_state_dict; to iterate twice at a time, make "
                "two loaders of the data set"
            )

    def _stop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    def _end(self) -> None:
        self._over = True
        self._stop()
        while self._lent:
            self._progress.lent.append(self._lent.popleft())


def _one_thread() -> UsageError:
    return UsageError(
        "an iteration of the loader serves the thread that began it, with one batch after the "
        "other; hand the batches on from there, or make a loader for each thread"
    )
