"""The real pipeline, with simulated stages, in virtual time.

The threads, channels, byte budget and ordered writer are those of
:mod:`ctgpu.building.pipeline`; only what a stage does is simulated: it asks shared resources for
time (cores, link, disk) and the clock moves on once no thread has anything left to do at the
present moment.  One thread runs at a time and the order is fixed, so a run gives the same figures
every time and on every machine.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ctgpu.buffers import ByteBudget
from ctgpu.building.pipeline import Pipeline, Stages, Workers
from ctgpu.building.projection import UNLIMITED as _UNLIMITED
from ctgpu.building.projection import SampleCosts
from ctgpu.sources.hub.quota import RequestQuota


class Stuck(BaseException):
    """Every thread waits and nothing is left that could wake one.

    No ``Exception``: in a stage the pipeline would take that for the failure of one sample.
    """


@dataclass(slots=True, eq=False)
class _Turn:
    """One thread's place in the order; `gate` is held until it is its turn."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    stuck: str = ""

    def __post_init__(self) -> None:
        self.gate.acquire()


class VirtualClock:
    """Lets the threads of a simulation run one at a time, and moves time on when all wait.

    Parameters
    ----------
    threads : int
        Threads that will call :meth:`enter`; nothing runs before all of them have.
    """

    def __init__(self, threads: int) -> None:
        self.now_s = 0.0
        self._expected = threads
        self._entered: list[tuple[tuple[int, ...], int, _Turn]] = []
        self._ready: deque[_Turn] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._alive = 0
        # In the order in which they parked.
        self._parked: dict[_Turn, None] = {}
        self._mine = threading.local()
        # Guards all of this: the main thread may end a run from outside the order.
        self._lock = threading.RLock()

    def enter(self, rank: tuple[int, ...]) -> None:
        """Take part; returns when all threads have entered and it is this one's turn.

        Parameters
        ----------
        rank : tuple of int
            Where this thread stands in the order of the first turns; equals are interchangeable.
        """
        turn = self._mine.turn = _Turn()
        with self._lock:
            self._entered.append((rank, len(self._entered), turn))
            self._alive += 1
            complete = len(self._entered) == self._expected
            if complete:
                self._ready.extend(entry[2] for entry in sorted(self._entered, key=lambda e: e[:2]))
        if complete:
            self._next().gate.release()
        turn.gate.acquire()

    def leave(self) -> None:
        """This thread is done."""
        with self._lock:
            self._alive -= 1
            chosen = self._next() if self._alive else None
        if chosen is not None:
            chosen.gate.release()

    def sleep(self, seconds: float) -> None:
        """Come back when so much virtual time has passed."""
        self.sleep_until(self.now_s + seconds)

    def sleep_until(self, when_s: float) -> None:
        """Come back at `when_s`, or at once where that has passed."""
        if when_s > self.now_s:
            turn = self.turn
            self.call_at(when_s, lambda: self.wake(turn))
            self.park()

    def call_at(self, when_s: float, event: Callable[[], None]) -> None:
        """Have `event` called once the clock stands at `when_s`."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._events, (when_s, self._count, event))

    @property
    def turn(self) -> _Turn:
        """The calling thread's place, for :meth:`wake`."""
        turn: _Turn = self._mine.turn
        return turn

    def wake(self, turn: _Turn) -> None:
        """Give a parked thread its turn, after those that are ready already."""
        with self._lock:
            self._parked.pop(turn, None)
            self._ready.append(turn)

    def park(self) -> None:
        """Let others run until somebody wakes this thread.

        Raises
        ------
        Stuck
            If nobody could.
        """
        turn = self.turn
        with self._lock:
            self._parked[turn] = None
            chosen = self._next()
        if chosen is not turn:
            chosen.gate.release()
            turn.gate.acquire()
        if turn.stuck:
            raise Stuck(turn.stuck)

    def _next(self) -> _Turn:
        """Whose turn it is now, time having moved on where nobody was ready."""
        with self._lock:
            while not self._ready:
                if not self._events:
                    # Told to one of them: its pipeline then stops, which wakes the others.
                    first = next(iter(self._parked))
                    first.stuck = (
                        f"at {self.now_s:.3f} virtual seconds all {self._alive} threads wait and "
                        "nothing would wake one"
                    )
                    self.wake(first)
                    break
                when_s, _, event = heapq.heappop(self._events)
                self.now_s = max(self.now_s, when_s)
                event()
            return self._ready.popleft()


class _VirtualCondition(threading.Condition):
    """A condition whose waiters give their turn away instead of blocking for real."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self._depth = 0
        self._parked: list[_Turn] = []

    def __enter__(self) -> bool:
        entered = super().__enter__()
        self._depth += 1
        return entered

    def __exit__(self, *details: Any) -> None:
        self._depth -= 1
        super().__exit__(*details)

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            raise NotImplementedError("a timed wait would need an event of its own")
        turn, depth = self._clock.turn, self._depth
        self._parked.append(turn)
        self._depth = 0
        for _ in range(depth):
            self.release()
        try:
            self._clock.park()
        finally:
            for _ in range(depth):
                self.acquire()
            self._depth = depth
            self._parked = [other for other in self._parked if other is not turn]
        return True

    def notify(self, n: int = 1) -> None:
        woken, self._parked = self._parked[:n], self._parked[n:]
        for turn in woken:
            self._clock.wake(turn)

    def notify_all(self) -> None:
        self.notify(len(self._parked))


class _VirtualBudget(ByteBudget):
    def __init__(self, limit_bytes: int, clock: VirtualClock) -> None:
        super().__init__(limit_bytes)
        self.changed = _VirtualCondition(clock)


class _VirtualPipeline(Pipeline[Any, Any, Any, Any]):
    """The pipeline, its threads taking part in the clock's order."""

    def __init__(self, clock: VirtualClock, rank: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._virtual = clock
        self._rank = rank

    def _guard(self, body: Callable[..., None], *args: object) -> None:
        bodies = (
            *(self._admit, self._fetch, self._decode, self._make),
            *(self._compress, self._write),
        )
        self._virtual.enter((self._rank, bodies.index(body)))
        try:
            super()._guard(body, *args)
        finally:
            self._virtual.leave()


class Shared:
    """A resource that its users share evenly: cores, a link, a disk.

    Parameters
    ----------
    clock : VirtualClock
        Whose time it takes.
    capacity_per_s : float
        Work done in a second by all users together: cores, or bytes per second.
    most_per_s : float
        Work done in a second for one user at most: 1 where the work is a thread's seconds.
    """

    def __init__(
        self, clock: VirtualClock, capacity_per_s: float, most_per_s: float = _UNLIMITED
    ) -> None:
        self._clock = clock
        self._capacity_per_s = capacity_per_s
        self._most_per_s = most_per_s
        # Work that a user who was there from the beginning would have had done by now.
        self._served = 0.0
        self._seen_s = 0.0
        self._users: list[tuple[float, int, _Turn]] = []
        self._joined = 0
        self._plan = 0
        self.done = 0.0

    def use(self, work: float) -> None:
        """Return once `work` has been done for this user."""
        if work <= 0 or self._capacity_per_s == self._most_per_s == _UNLIMITED:
            return
        self._settle()
        self._joined += 1
        heapq.heappush(self._users, (self._served + work, self._joined, self._clock.turn))
        self._arrange()
        self._clock.park()
        self.done += work

    def _rate_per_s(self) -> float:
        return min(self._most_per_s, self._capacity_per_s / len(self._users))

    def _settle(self) -> None:
        if self._users:
            self._served += (self._clock.now_s - self._seen_s) * self._rate_per_s()
        self._seen_s = self._clock.now_s

    def _arrange(self) -> None:
        """Plan the moment at which the first user is done; earlier plans are void."""
        self._plan += 1
        if self._users:
            plan, left = self._plan, max(0.0, self._users[0][0] - self._served)
            self._clock.call_at(
                self._clock.now_s + left / self._rate_per_s(), lambda: self._finish(plan)
            )

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._served, self._seen_s = self._users[0][0], self._clock.now_s
        while self._users and self._users[0][0] <= self._served:
            self._clock.wake(heapq.heappop(self._users)[2])
        self._arrange()


@dataclass(frozen=True, slots=True)
class Node:
    """What one simulated node has.

    Attributes
    ----------
    cores : int
        Shared by all threads of all processes.
    network_bytes_per_s, connection_bytes_per_s, disk_bytes_per_s : float
        Of the link, of one connection at most, and of the disk; infinite where not looked at.
    budget_bytes : float
        Byte budget of each process.
    workers : Workers
        Threads of each process.
    processes : int
        Builds that share the node.
    requests : int or None
        Requests per window that the account grants; None where there is no quota.
    parts : int
        Processes on all nodes that share the account.
    """

    cores: int
    network_bytes_per_s: float
    connection_bytes_per_s: float
    disk_bytes_per_s: float
    budget_bytes: float
    workers: Workers
    processes: int = 1
    requests: int | None = None
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulated run gave.

    Attributes
    ----------
    samples_per_s : float
        Written by the node per virtual second in the steady middle half of the run.
    with_ramps_per_s : float
        Over the whole run, its filling and draining included.
    busy : dict of str to float
        Share of cores, link and disk in use over the whole run; infinite ones are left out.
    peak_reserved_bytes : int
        Largest sum of footprints in flight of any process.
    written : list of int
        Orders of the samples as the first process wrote them.
    """

    samples_per_s: float
    with_ramps_per_s: float
    busy: dict[str, float]
    peak_reserved_bytes: int
    written: list[int]


def simulate(node: Node, samples: Sequence[SampleCosts]) -> Simulated:
    """Run `samples` through the real pipeline of each process of a simulated node.

    Parameters
    ----------
    node : Node
        Where it runs.
    samples : sequence of SampleCosts
        What each process does, in this order.

    Raises
    ------
    Stuck
        If the pipeline stops making progress.
    """
    workers = node.workers
    compressors = workers.decode if any(sample.compress_core_s for sample in samples) else 0
    stages = workers.fetch + workers.decode + workers.device + compressors
    clock = VirtualClock(node.processes * (stages + 2))
    resources = _Resources(clock, node)
    finished_s: list[float] = []
    written: list[list[int]] = [[] for _ in range(node.processes)]
    pipelines = [
        _VirtualPipeline(
            clock,
            rank,
            resources.stages(samples, written[rank], finished_s),
            workers,
            _VirtualBudget(int(min(node.budget_bytes, 1 << 62)), clock),
        )
        for rank in range(node.processes)
    ]
    with ThreadPoolExecutor(node.processes) as pool:
        runs = [pool.submit(pipeline.run, range(len(samples))) for pipeline in pipelines]
        reports = [run.result() for run in runs]
    first, last = len(finished_s) // 4, 3 * len(finished_s) // 4
    return Simulated(
        (last - first) / (finished_s[last] - finished_s[first]),
        len(finished_s) / clock.now_s,
        resources.busy(),
        max(report.peak_reserved_bytes for report in reports),
        written[0],
    )


class _WouldWait(Exception):
    pass


def _refuse(seconds: float) -> None:
    raise _WouldWait


class _Resources:
    """What the stages of all processes of a node share."""

    def __init__(self, clock: VirtualClock, node: Node) -> None:
        self._clock = clock
        self._node = node
        self._cores = Shared(clock, node.cores, 1.0)
        self._link = Shared(clock, node.network_bytes_per_s, node.connection_bytes_per_s)
        self._disk = Shared(clock, node.disk_bytes_per_s)

    def stages(
        self, samples: Sequence[SampleCosts], written: list[int], finished_s: list[float]
    ) -> Stages[int, int, int, int]:
        """The simulated stages of one process."""
        quota = self._quota()

        def fetch(order: int) -> int:
            quota.acquire(self._clock.sleep)
            self._link.use(samples[order].compressed_bytes)
            self._cores.use(samples[order].fetch_core_s)
            return order

        def decode(order: int, fetched: int) -> int:
            self._cores.use(samples[order].decode_core_s)
            return fetched

        def make(batch: Sequence[tuple[int, int]]) -> list[int]:
            for order, _ in batch:
                self._cores.use(samples[order].device_core_s)
            return [order for order, _ in batch]

        def compress(order: int, made: int) -> int:
            self._cores.use(samples[order].compress_core_s)
            return made

        def write(order: int, made: object) -> None:
            if made != order:
                raise RuntimeError(f"sample {order} came to the writer as {made}")
            began_s = self._clock.now_s
            self._disk.use(samples[order].output_bytes)
            # What was measured holds its own disk's time: a slower disk takes its place.
            self._clock.sleep_until(began_s + samples[order].write_s)
            written.append(order)
            finished_s.append(self._clock.now_s)

        def footprint(order: int) -> int:
            sample = samples[order]
            return int(sample.compressed_bytes + sample.raw_bytes + sample.output_bytes)

        return Stages(
            footprint=footprint,
            fetch=fetch,
            fetched_footprint=lambda order, fetched: footprint(order),
            decode=decode,
            decoded_footprint=lambda order, decoded: int(
                samples[order].raw_bytes + samples[order].output_bytes
            ),
            make=make,
            made_footprint=lambda order: int(samples[order].output_bytes),
            write=write,
            discard=lambda unused: None,
            compress=compress if any(sample.compress_core_s for sample in samples) else None,
            compressed_footprint=lambda order, made: int(samples[order].output_bytes),
        )

    def _quota(self) -> RequestQuota:
        """One process's part of the quota, its burst spent as after any longer run."""
        node, clock = self._node, self._clock
        quota = RequestQuota(node.requests, part_count=node.parts, clock=lambda: clock.now_s)
        if node.requests is not None:
            with contextlib.suppress(_WouldWait):
                while True:
                    quota.acquire(_refuse)
        return quota

    def busy(self) -> dict[str, float]:
        """Share of every finite resource that was in use."""
        node, seconds = self._node, self._clock.now_s
        capacities = {
            "cores": (self._cores, node.cores),
            "network": (self._link, node.network_bytes_per_s),
            "disk": (self._disk, node.disk_bytes_per_s),
        }
        return {
            name: shared.done / (capacity * seconds)
            for name, (shared, capacity) in capacities.items()
            if capacity != _UNLIMITED
        }
