"""The stages that every sample goes through, overlapped.

::

    tasks ──► fetch threads ──► decode threads ──► device threads ──► one ordered writer

Where samples are compressed, threads that do so stand before the writer, as many as decode.

Each hand-off is a :class:`Channel` that gives out the earliest sample first.  Samples are admitted
in order, each with its whole footprint reserved in one byte budget, so the sample that the writer
waits for can always go on.  What a stage does is passed in as a function: the pipeline knows
nothing of archives, engines or shards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ctgpu.buffers import ByteBudget
from ctgpu.building.channel import Channel, Item
from ctgpu.errors import EnvironmentFailure, SampleError, UsageError, shortage
from ctgpu.machine import usable_cores
from ctgpu.threads import Thread

log = logging.getLogger(__name__)

#: Of every run; one that compresses has `COMPRESS` before the last.
STAGES = ("fetch", "decode", "device", "write")
COMPRESS = "compress"

Task = TypeVar("Task")
Fetched = TypeVar("Fetched")
Decoded = TypeVar("Decoded")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no output.

    Attributes
    ----------
    stage : str
        Where it failed: ``fetch``, ``decode``, ``tables``, ``geometry``, ``intensity`` …
    error_class, message : str
        Class and text of the error.
    """

    stage: str
    error_class: str
    message: str

    @classmethod
    def of(cls, error: Exception, stage: str) -> Failure:
        """Describe `error`, raised in `stage`."""
        if isinstance(error, SampleError):
            stage = error.stage
        return cls(stage, type(error).__name__, str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class Stages(Generic[Task, Fetched, Decoded, Made]):
    """What the stages do.  All are called from several threads, except `write`.

    Attributes
    ----------
    footprint : callable
        Bytes that a task is expected to hold at its largest.
    fetch : callable
        Task to what was fetched.
    fetched_footprint : callable
        The footprint once the sample's bytes are there and say how large the volume is.
    decode : callable
        To what the device stage takes.
    decoded_footprint : callable
        The footprint once the compressed bytes have been given back.
    make : callable
        A batch of decoded samples to their results, one for each.
    made_footprint : callable
        What the result alone holds.
    write : callable
        Takes the task and its result or failure, in the order of the tasks.
    discard : callable
        Gives back the memory of something that will not be used.
    compress : callable, optional
        Task and result to the result as it will be written; takes over what it is given.
    compressed_footprint : callable
        What that alone holds.
    """

    footprint: Callable[[Task], int]
    fetch: Callable[[Task], Fetched]
    fetched_footprint: Callable[[Task, Fetched], int]
    decode: Callable[[Task, Fetched], Decoded]
    decoded_footprint: Callable[[Task, Decoded], int]
    make: Callable[[Sequence[tuple[Task, Decoded]]], Sequence[Made | Failure]]
    made_footprint: Callable[[Task], int]
    write: Callable[[Task, Made | Failure], None]
    discard: Callable[[Fetched | Decoded | Made], None]
    compress: Callable[[Task, Made], Made] | None = None
    compressed_footprint: Callable[[Task, Made], int] = lambda task, made: 0


@dataclass(frozen=True, slots=True)
class Workers:
    """Threads of each stage, and volumes that the device takes at a time."""

    fetch: int
    decode: int
    device: int
    batch_size: int = 1

    @classmethod
    def for_machine(cls, num_workers: int, device: int, batch_size: int = 1) -> Workers:
        """`num_workers` threads fetch; as many decode, but no more than there are cores."""
        return cls(num_workers, max(1, min(num_workers, usable_cores())), device, batch_size)

    @property
    def most_in_flight(self) -> int:
        """Samples admitted at a time: memory alone would admit more than keeps all busy."""
        return 2 * self.fetch + self.decode + self.device + 2


@dataclass(slots=True)
class StageTime:
    """Where the threads of one stage spent their time, in seconds summed over them."""

    name: str
    threads: int
    busy_s: float = 0.0
    waiting_s: float = 0.0

    @property
    def utilisation(self) -> float:
        """Share of the stage's thread time that was work."""
        total = self.busy_s + self.waiting_s
        return self.busy_s / total if total else 0.0

    def alone_s(self, samples: int) -> float:
        """Seconds that the stage takes for `samples` if it never waits for another one."""
        return self.busy_s / max(1, min(self.threads, samples))


@dataclass(slots=True)
class PipelineReport:
    """What a run cost.

    Attributes
    ----------
    wall_s : float
        From the first admission to the last write.
    stages : list of StageTime
        In the order of the pipeline.
    peak_reserved_bytes : int
        Largest sum of footprints in flight.
    samples : int
        How many went through, those that failed included.
    """

    wall_s: float
    stages: list[StageTime]
    peak_reserved_bytes: int
    samples: int

    @classmethod
    def together(
        cls, reports: Sequence[PipelineReport], at_a_time: int, wall_s: float
    ) -> PipelineReport:
        """What several pipelines cost together, `at_a_time` of which ran side by side.

        The peak is that of the largest of them.
        """
        stages = [
            StageTime(
                same[0].name,
                at_a_time * same[0].threads,
                sum(stage.busy_s for stage in same),
                sum(stage.waiting_s for stage in same),
            )
            for same in zip(*(report.stages for report in reports), strict=True)
        ]
        peak_bytes = max((report.peak_reserved_bytes for report in reports), default=0)
        return cls(wall_s, stages, peak_bytes, sum(report.samples for report in reports))

    @property
    def bottleneck(self) -> StageTime:
        """The stage that takes longest for the samples: no other one can make the run faster.

        How long a stage waited does not tell: threads with nothing left to do do not wait any more,
        and others wait at the beginning and the end of a run.
        """
        return max(self.stages, key=lambda stage: stage.alone_s(self.samples))


class Pipeline(Generic[Task, Fetched, Decoded, Made]):
    """Runs tasks through the stages.

    Parameters
    ----------
    stages : Stages
        What to do.
    workers : Workers
        With how many threads.
    budget : ByteBudget
        What the samples in flight may hold together.
    """

    def __init__(
        self,
        stages: Stages[Task, Fetched, Decoded, Made],
        workers: Workers,
        budget: ByteBudget,
    ) -> None:
        self._stages = stages
        self._workers = workers
        self._budget = budget
        changed = budget.changed
        self._to_fetch = Channel(changed, 1)
        self._to_decode = Channel(changed, workers.fetch)
        self._to_make = Channel(changed, workers.decode)
        self._compressors = 0 if stages.compress is None else workers.decode
        self._to_compress = Channel(changed, workers.device)
        self._to_write = Channel(changed, self._compressors or workers.device)
        self._tasks: dict[int, Task] = {}
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._admitted = 0
        self._written = 0
        self._clocks: list[_Clock] = []

    @property
    def times(self) -> list[StageTime]:
        """Where the threads of each stage have spent their time so far."""
        workers = self._workers
        counts = dict(zip(STAGES, (workers.fetch, workers.decode, workers.device), strict=False))
        if self._compressors:
            counts[COMPRESS] = self._compressors
        counts[STAGES[-1]] = 1
        return [
            StageTime(
                stage,
                threads,
                sum(clock.busy_s for clock in self._clocks if clock.stage == stage),
                sum(clock.waiting_s for clock in self._clocks if clock.stage == stage),
            )
            for stage, threads in counts.items()
        ]

    def run(self, tasks: Iterable[Task]) -> PipelineReport:
        """Run every task; returns once the last one is written.

        Raises
        ------
        EnvironmentFailure, UsageError, BaseException
            Whatever ended the run; samples that merely fail do not.
        """
        started = time.perf_counter()
        threads = [
            Thread(self._guard, body, *args, name=name)
            for count, name, body, *args in (
                (1, "ctgpu-admit", self._admit, iter(tasks)),
                (self._workers.fetch, "ctgpu-fetch", self._fetch),
                (self._workers.decode, "ctgpu-decode", self._decode),
                (self._workers.device, "ctgpu-device", self._make),
                (self._compressors, "ctgpu-compress", self._compress),
                (1, "ctgpu-write", self._write),
            )
            for _ in range(count)
        ]
        writer = threads[-1]
        try:
            for thread in threads:
                thread.start()
            # A timed wait lets signal handlers of the main thread run.
            while not writer.ended.wait(0.1):
                pass
        except BaseException as error:
            self.stop(shortage(error) or error)
        for thread in threads:
            # A stopped run does not wait for the network; native code must have come back.
            waited_for = self._error is None or thread.name != "ctgpu-fetch"
            if waited_for and thread.ident is not None:
                thread.ended.wait()
        if self._error is not None:
            raise self._error
        return PipelineReport(
            time.perf_counter() - started, self.times, self._budget.peak_bytes, self._written
        )

    def pause(self, seconds: float) -> bool:
        """Wait for tasks that are not there yet; returns whether the run goes on."""
        return not self._stopping.wait(seconds)

    def stop(self, error: BaseException) -> None:
        """End the run with `error`; what is being written is finished, the rest is dropped."""
        with self._budget.changed:
            if self._error is None:
                self._error = error
            self._stopping.set()
        self._budget.close()
        for channel in (
            self._to_fetch,
            self._to_decode,
            self._to_make,
            self._to_compress,
            self._to_write,
        ):
            for item in channel.stop():
                self._drop(item)

    def _clock(self, stage: str) -> _Clock:
        clock = _Clock(stage)
        self._clocks.append(clock)
        return clock

    def _guard(self, body: Callable[..., None], *args: object) -> None:
        try:
            body(*args)
        except BaseException as error:
            self.stop(shortage(error) or error)

    def _drop(self, item: Item) -> None:
        if item.payload is not None and not isinstance(item.payload, Failure):
            self._stages.discard(item.payload)  # type: ignore[arg-type]
        item.reservation.release()

    def _admit(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            with self._budget.changed:
                self._budget.changed.wait_for(
                    lambda: (
                        self._stopping.is_set()
                        or self._admitted - self._written < self._workers.most_in_flight
                    )
                )
            reservation = self._budget.admit(self._stages.footprint(task))
            if reservation is None:
                return
            self._tasks[reservation.order] = task
            self._admitted += 1
            self._to_fetch.put(Item(reservation.order, reservation, None))
        self._to_fetch.done()

    def _fetch(self) -> None:
        clock = self._clock("fetch")
        while item := clock.wait(self._to_fetch.get):
            task = self._tasks[item.order]
            item.payload = self._attempt("fetch", self._stages.fetch, task)
            clock.worked()
            self._hand_over(item, self._to_decode)
        self._to_decode.done()

    def _decode(self) -> None:
        clock = self._clock("decode")

        def fits(item: Item) -> bool:
            if isinstance(item.payload, Failure):
                return True
            task = self._tasks[item.order]
            return item.reservation.try_resize(
                self._stages.fetched_footprint(task, item.payload)  # type: ignore[arg-type]
            )

        while item := clock.wait(lambda: self._to_decode.get(fits)):
            task = self._tasks[item.order]
            if not isinstance(item.payload, Failure):
                item.payload = self._attempt("decode", self._stages.decode, task, item.payload)
            if not isinstance(item.payload, Failure):
                item.reservation.try_resize(
                    self._stages.decoded_footprint(task, item.payload)  # type: ignore[arg-type]
                )
            clock.worked()
            self._hand_over(item, self._to_make)
        self._to_make.done()

    def _make(self) -> None:
        clock = self._clock("device")
        following = self._to_compress if self._compressors else self._to_write
        while first := clock.wait(self._to_make.get):
            items = [first, *self._to_make.get_waiting(self._workers.batch_size - 1)]
            decoded = [item for item in items if not isinstance(item.payload, Failure)]
            if decoded:
                batch = [(self._tasks[item.order], item.payload) for item in decoded]
                made = self._attempt("device", self._stages.make, batch)
                if isinstance(made, Failure):
                    for item in decoded:
                        self._stages.discard(item.payload)  # type: ignore[arg-type]
                    made = [made] * len(decoded)
                for item, result in zip(decoded, made, strict=True):  # type: ignore[call-overload]
                    item.payload = result
            for item in items:
                item.reservation.try_resize(self._stages.made_footprint(self._tasks[item.order]))
                self._hand_over(item, following)
            clock.worked()
        following.done()

    def _compress(self) -> None:
        clock = self._clock(COMPRESS)
        compress = self._stages.compress
        while item := clock.wait(self._to_compress.get):
            if not isinstance(item.payload, Failure):
                task = self._tasks[item.order]
                item.payload = self._attempt(COMPRESS, compress, task, item.payload)  # type: ignore[arg-type]
            if not isinstance(item.payload, Failure):
                footprint = self._stages.compressed_footprint(task, item.payload)  # type: ignore[arg-type]
                item.reservation.try_resize(footprint)
            clock.worked()
            self._hand_over(item, self._to_write)
        self._to_write.done()

    def _write(self) -> None:
        clock = self._clock("write")

        def is_next(item: Item) -> bool:
            return item.order == self._written

        while item := clock.wait(lambda: self._to_write.get(is_next)):
            task = self._tasks.pop(item.order)
            try:
                self._stages.write(task, item.payload)  # type: ignore[arg-type]
            finally:
                with self._budget.changed:
                    self._written += 1
                    item.reservation.release()
                clock.worked()

    def _hand_over(self, item: Item, channel: Channel) -> None:
        with self._budget.changed:
            if not self._stopping.is_set():
                channel.put(item)
                return
        self._drop(item)

    def _attempt(self, stage: str, work: Callable[..., object], *args: object) -> object:
        try:
            return work(*args)
        except (EnvironmentFailure, UsageError):
            raise
        except Exception as error:
            if (short := shortage(error)) is not None:
                # The next sample would fail like this one, and neither is to blame.
                raise short from error
            if not isinstance(error, SampleError):
                # A defect met by one sample must not end a build of days; the ledger shows it.
                log.exception("unexpected error in the %s stage", stage)
            return Failure.of(error, stage)


class _Clock:
    """Splits one thread's time into waiting and working."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.busy_s = 0.0
        self.waiting_s = 0.0
        self._mark = time.perf_counter()

    def wait(self, get: Callable[[], Item | None]) -> Item | None:
        item = get()
        now = time.perf_counter()
        self.waiting_s += now - self._mark
        self._mark = now
        return item

    def worked(self) -> None:
        now = time.perf_counter()
        self.busy_s += now - self._mark
        self._mark = now
