"""Reads batches ahead of their consumer: in threads, straight into batch buffers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import SampleError, UsageError
from ctgpu.loading.dataset import Labels, VolumeDataset
from ctgpu.loading.order import EpochOrder, Indices, Share
from ctgpu.loading.region import Shape, random_start
from ctgpu.loading.rooms import Room, make_rooms
from ctgpu.loading.slots import HOLE, Slots
from ctgpu.loading.targets import Target

log = logging.getLogger(__name__)

Batch = dict[str, Any]
#: A batch, the memory that it is lent (None where it has its own), and the slots left out for it.
Read = tuple[Batch, Buffer | None, frozenset[int]]

# Then it is not the samples that something is wrong with.
_MOST_IN_A_ROW = 100


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch being read, and the memory it is read into."""

    batch: Future[Batch]
    buffer: Buffer
    skipped: set[int]


class BatchReader:
    """Reads the batches of an epoch; it does not know which of them were handed out.

    Parameters
    ----------
    dataset : VolumeDataset
        The samples.
    order : EpochOrder
        In which order.
    target : Target
        What becomes of what was read.
    batch_size : int
        Samples of one batch of one rank.
    prefetch_batches : int
        How many are read ahead.
    threads : int
        Readers.
    skip_bad : bool
        Whether the next good sample of the order takes the place of a damaged one.
    box : tuple of int, optional
        Random boxes of this shape, in stored order, instead of whole volumes.
    """

    def __init__(
        self,
        dataset: VolumeDataset,
        order: EpochOrder,
        target: Target,
        *,
        batch_size: int,
        prefetch_batches: int,
        threads: int,
        skip_bad: bool,
        box: Shape | None,
    ) -> None:
        self._dataset = dataset
        self._slots = dataset.slots
        self._order = order
        self._target = target
        self._batch_size = batch_size
        self._prefetch_batches = prefetch_batches
        self._threads = threads
        self._skip_bad = skip_bad
        self._box = box
        self._rooms = make_rooms(dataset, target, batch_size, box, verify=skip_bad)
        # A taker may have kept any number of batches, and drop them all together.
        kept_bytes = (prefetch_batches + 2) * self._rooms.size_bytes
        self._pool = BufferPool(kept_bytes, target.allocate)

    def arrange(self, slots: Slots, order: EpochOrder) -> None:
        """Read these slots from the next epoch on."""
        self._slots, self._order = slots, order

    @property
    def total(self) -> int:
        """Slots of an epoch, of all ranks together."""
        return len(self._slots)

    @property
    def buffer_bytes(self) -> int:
        """Host memory of batches: read ahead, with their takers, or waiting to be used again."""
        return self._pool.lent_bytes + self._pool.idle_bytes

    def read_ahead(
        self, share: Share, epoch: int, position: int, bad: frozenset[int] = frozenset()
    ) -> Generator[Read, None, None]:
        """The batches of a share of `epoch` from `position` on; the slots in `bad` are left out.

        Beside each is the memory that it is lent, for the taker to release; None where it has
        memory of its own.  Closing the generator ends the threads.

        Raises
        ------
        FetchError, StorageError
            If a sample is damaged, or its shard is gone; at its batch.
        """
        total = self.total
        order = self._order.of(epoch)
        steps = iter(_positions(share, total, position))
        ours: set[int] = set()

        def enlist() -> None:
            ours.add(threading.get_ident())

        readers = ThreadPoolExecutor(self._threads, "ctgpu-read", enlist)
        assembler = ThreadPoolExecutor(1, "ctgpu-assemble", enlist)
        ahead: deque[_Pending] = deque()

        def read_next() -> None:
            if (place := next(steps, None)) is not None:
                positions = share.batch(total, place)
                ahead.append(self._begin(readers, assembler, order, positions, epoch, bad))

        try:
            for _ in range(self._prefetch_batches):
                read_next()
            while ahead:
                read_next()
                batch = ahead[0].batch.result()
                read = ahead.popleft()
                lent = read.buffer if self._target.memory == "lent" else None
                yield batch, lent, frozenset(read.skipped)
        finally:
            # The garbage collector may run this in one of the threads that would be waited for.
            wait = threading.get_ident() not in ours
            readers.shutdown(wait, cancel_futures=True)
            assembler.shutdown(wait, cancel_futures=True)
            if wait:  # otherwise they may still be read into, and go with their last reference
                for pending in ahead:
                    pending.buffer.release()

    def _begin(
        self,
        readers: ThreadPoolExecutor,
        assembler: ThreadPoolExecutor,
        order: Indices,
        positions: range,
        epoch: int,
        bad: frozenset[int],
    ) -> _Pending:
        """Have one batch read and assembled."""
        buffer = self._pool.acquire(self._rooms.size_bytes)
        room = self._rooms.open(buffer, len(positions))
        skipped: set[int] = set()
        reads = [
            readers.submit(self._read, order, position, epoch, room, row, bad, skipped)
            for row, position in enumerate(positions)
        ]
        batch = assembler.submit(self._assemble, buffer, room, reads)
        return _Pending(batch, buffer, skipped)

    def _read(
        self,
        order: Indices,
        position: int,
        epoch: int,
        room: Room,
        row: int,
        bad: frozenset[int],
        skipped: set[int],
    ) -> tuple[str, Labels, str]:
        """Read the sample at `position`, or the next good one of the order, into a row."""
        errors: list[SampleError] = []
        for step in range(len(order)):
            place = (position + step) % len(order)
            slot = int(order[place])
            index = int(self._slots.sample_of[slot])
            if index == HOLE or slot in bad:
                skipped.add(slot)
                continue
            start = (
                random_start(
                    self._dataset.spec.stored_shape,
                    self._box,
                    seed=self._order.seed,
                    epoch=epoch,
                    index=slot,
                    # Of what is drawn several times, each has a box of its own.
                    repeat=int(np.count_nonzero(order[:place] == slot)),
                )
                if self._box
                else (0, 0, 0)
            )
            try:
                labels, report = room.read(row, index, start)
                return self._dataset.study_ids[index], labels, report
            except SampleError as error:
                if not (self._skip_bad and self._dataset.may_skip(error)):
                    raise
                errors.append(error)
                if len(errors) == _MOST_IN_A_ROW:
                    raise type(error)(
                        f"{error}; so failed {_MOST_IN_A_ROW} samples in a row, which on_error="
                        "'skip' is not for: look at the first warnings in the log"
                    ) from error
                skipped.add(slot)
            if step < len(order) - 1:
                log.warning("%s; the next sample takes its place in this epoch", errors[-1])
        if errors:
            raise errors[-1]
        raise UsageError("no good sample is left in this epoch; begin a new one with set_epoch")

    def _assemble(
        self, buffer: Buffer, room: Room, reads: list[Future[tuple[str, Labels, str]]]
    ) -> Batch:
        # All are waited for: none may still be reading when the buffer is used again.
        samples = [read.result() for read in reads]
        tensors = room.place(np.stack([labels for _, labels, _ in samples]))
        if self._target.memory == "given":
            buffer.release_with_arrays()
        elif self._target.memory == "kept":
            buffer.release()
        return {
            **tensors,
            "report": [report for _, _, report in samples],
            "study_id": [study_id for study_id, _, _ in samples],
        }


def _positions(share: Share, total: int, position: int) -> list[int]:
    """Where in the order each step that is left begins."""
    steps = share.steps(total - position)
    return [position + step * share.step_samples for step in range(steps)]
