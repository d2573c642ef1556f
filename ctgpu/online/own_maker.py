"""The one maker of samples that a process has for a data set, opened when it is needed."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ctgpu.building.executor import LEAST_DEFAULT_WORKERS, default_workers
from ctgpu.building.request import Part, Request
from ctgpu.engines import open_engine
from ctgpu.errors import UsageError
from ctgpu.loading.ranks import processes_here
from ctgpu.machine import default_memory_limit_bytes, usable_cores
from ctgpu.online.maker import SampleMaker
from ctgpu.online.settling import open_unchanged_source
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source


class OwnMaker:
    """Opens engine and source once in each process: neither outlives a fork, or can be sent.

    Processes of one machine have equal shares of its cores and of the memory limit.

    Parameters
    ----------
    plan : Plan
        What to make.
    request : Request
        Where the source is, and the device, by name.
    num_threads : int, optional
        Readers of a loader; by default one for each core of this process's share, of the Hub four
        at least.
    needed : collection of str, optional
        Paths of the volumes that are to be made of the source; by default all.
    folder : Path, optional
        That of the plan, where it has one.
    """

    def __init__(
        self,
        plan: Plan,
        request: Request,
        num_threads: int | None = None,
        needed: Collection[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._plan = plan
        self._request = request
        self._num_threads = num_threads
        self._needed = needed
        self._folder = folder
        self._process = os.getpid()
        self._locks: dict[int, threading.Lock] = {}
        self._makers: dict[int, SampleMaker] = {}

    def __reduce__(self) -> tuple[object, ...]:
        facts = (self._plan, self._request, self._num_threads, self._needed, self._folder)
        return type(self), facts

    @property
    def threads(self) -> int:
        """Threads that a loader should read with."""
        if self._num_threads is not None:
            return self._num_threads
        cores = max(1, usable_cores() // processes_here())
        if self._plan.source["kind"] == "hub":  # downloads overlap on few cores, too
            return max(LEAST_DEFAULT_WORKERS, min(cores, default_workers()))
        return cores

    def open(self, source: Source | None = None) -> None:
        """Open it now, so that what stands in the way is said before the first sample.

        Parameters
        ----------
        source : Source, optional
            The plan's, open already.

        Raises
        ------
        UsageError, EnvironmentFailure
            If the source has changed, or source or device cannot be had.
        """
        process = os.getpid()
        with self._locks.setdefault(process, threading.Lock()):  # atomic: no lock is a parent's
            if process not in self._makers:
                self._makers[process] = self._opened(source)

    def get(self) -> SampleMaker:
        """The maker of this process, as :meth:`open` opens it."""
        maker = self._makers.get(os.getpid())
        if maker is None:
            self.open()
            maker = self._makers[os.getpid()]
        return maker

    def _opened(self, source: Source | None) -> SampleMaker:
        device = str(self._request.device)
        if self._process != os.getpid() and device.startswith("cuda"):
            raise UsageError(
                f"device is {device!r}, and this process was forked from one that opened it, which "
                "CUDA does not allow; give this data set to ctgpu.loading.make_loader, which needs "
                "no workers, or start workers with multiprocessing_context='spawn'"
            )
        processes = processes_here()
        request = replace(self._request, part=Part(0, processes, processes))
        limit_bytes = request.memory_limit_bytes or default_memory_limit_bytes()
        with ExitStack() as stack:
            engine = open_engine(device)
            stack.callback(engine.close)
            if source is None:
                source = open_unchanged_source(self._plan, request, self._folder, self._needed)
            stack.callback(source.close)
            maker = SampleMaker(
                self._plan,
                source,
                engine,
                memory_limit_bytes=max(1, limit_bytes // processes),
                cores=max(1, usable_cores() // processes),
            )
            weakref.finalize(maker, stack.pop_all().close).atexit = False
        return maker
