"""What a build costs on this machine, measured on a few samples, and what follows for others."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.building.builder import make_shards
from ctgpu.building.events import Event, SampleWritten, Watcher
from ctgpu.building.executor import MOST_DEFAULT_WORKERS, LocalExecutor
from ctgpu.building.feeding import Feeding, Reading, Training
from ctgpu.building.projection import UNLIMITED, Machine, Projection, SampleCosts, project
from ctgpu.building.request import Request
from ctgpu.errors import StorageError, reason_of
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.machine import usable_cores
from ctgpu.volume.stored import numpy_dtype


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage of the whole build, on this machine.

    Attributes
    ----------
    name : str
        ``fetch``, ``decode``, ``device`` or ``write``.
    thread_s : float
        Work of one thread.
    threads : int
        That share it.
    """

    name: str
    thread_s: float
    threads: int

    @property
    def wall_s(self) -> float:
        """Time it takes if nothing else holds it up."""
        return self.thread_s / self.threads


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the build would take on a machine that was named.

    Attributes
    ----------
    machine : Machine
        Its cores, network and GPUs; what was not named is as here.
    samples_per_s : float
        Of the whole build.
    wall_s : float
        Of the whole build, without filling and draining the pipeline.
    bottleneck, second : str
        What decides, and what would decide next.
    is_least : bool
        Whether it may take longer, for no GPU was measured.
    limits : dict of str to float
        Samples per second that each resource alone would allow, least first; what is not looked at
        is left out.
    """

    machine: Machine
    samples_per_s: float
    wall_s: float
    bottleneck: str
    second: str
    is_least: bool
    limits: dict[str, float]

    @classmethod
    def of(
        cls, machine: Machine, projection: Projection, samples: int, is_least: bool
    ) -> Elsewhere:
        """For so many samples."""
        return cls(
            machine,
            projection.samples_per_s,
            samples / projection.samples_per_s,
            projection.bottleneck,
            projection.second,
            is_least,
            {name: rate for name, rate in projection.limits.items() if rate != UNLIMITED},
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: no infinity."""
        machine = {
            name: value for name, value in asdict(self.machine).items() if value != UNLIMITED
        }
        return {**asdict(self), "machine": machine}


@dataclass(frozen=True, slots=True)
class Work:
    """What a build is to do, and how fast a machine does it.

    Attributes
    ----------
    costs : SampleCosts
        Of one sample, as measured here; a GPU's stage is counted as one of cores, too.
    samples : int
        Of the whole build.
    device_threads : int
        Volumes that this machine's engine takes at a time.
    gpus : int
        That it has for them; 0 is an engine that runs on the cores.
    """

    costs: SampleCosts
    samples: int
    device_threads: int
    gpus: int = 0

    @property
    def cores_wall_s(self) -> float:
        """Time that the work on the processor takes with every core busy."""
        return self.samples / self._project(self.here(1)).limits["cores"]

    def here(self, num_workers: int) -> Machine:
        """This machine, with so many threads that fetch."""
        return Machine(
            "here",
            usable_cores(),
            workers=num_workers,
            gpus=self.gpus,
            requests=None,
            device_threads=self.device_threads,
        )

    def stages(self, num_workers: int) -> tuple[StageEstimate, ...]:
        """Every stage of the whole build, here."""
        threads = self.here(num_workers).threads
        costs, n = self.costs, self.samples
        return (
            StageEstimate("fetch", n * (costs.fetch_wait_s + costs.fetch_core_s), threads.fetch),
            StageEstimate("decode", n * costs.decode_core_s, threads.decode),
            StageEstimate("device", n * costs.device_core_s, threads.device),
            StageEstimate("write", n * costs.write_s, 1),
        )

    def suggest(self) -> int:
        """The fewest workers that are not slower than any other number of them."""

        def rate(num_workers: int) -> float:
            limits = self._project(self.here(num_workers)).limits
            # What is admitted at a time bounds the shortest of builds alone.
            return min(rate for name, rate in limits.items() if name != "samples in flight")

        counts = range(1, MOST_DEFAULT_WORKERS + 1)
        fastest = max(map(rate, counts))
        return next(n for n in counts if 1.02 * rate(n) >= fastest)

    def elsewhere(
        self, named: dict[str, float], num_workers: int | None, requests: int | None
    ) -> Elsewhere:
        """On a machine of which this was named; what was not is as here."""
        facts: dict[str, Any] = {"cores": usable_cores(), "gpus": self.gpus, **named}
        machine = Machine("as named", workers=num_workers, requests=requests, **facts)
        is_least = bool(machine.gpus) and not self.gpus
        return Elsewhere.of(machine, self._project(machine), self.samples, is_least=is_least)

    def feeding(
        self, training: Training, named: dict[str, float], reading: Reading, *, is_local: bool
    ) -> Feeding:
        """How well training is fed on a machine of which this was named.

        A thread that reads a file is busy, one that downloads it waits.
        """
        costs = self.costs
        if is_local:
            costs = replace(costs, fetch_core_s=costs.fetch_wait_s, fetch_wait_s=0.0)
        return Feeding.of(
            training,
            costs,
            reading,
            cores=int(named.get("cores", usable_cores())),
            network_bytes_per_s=named.get("network_bytes_per_s", UNLIMITED),
            gpu_samples_per_s=self._of_a_gpu,
        )

    @property
    def _of_a_gpu(self) -> float | None:
        """Samples per second that one GPU makes, where that was measured."""
        each_s = self.costs.device_core_s
        return self.device_threads / self.gpus / each_s if self.gpus and each_s else None

    def _project(self, machine: Machine) -> Projection:
        return project(machine, [self.costs], self._of_a_gpu)


def calibrate_in(
    home: Path, trial: Request, watch: Watcher
) -> tuple[int, int, dict[str, float], Reading]:
    """Build a few samples beside a folder, read them again, and remove them.

    Returns
    -------
    written : int
        How many succeeded.
    read_bytes : int
        What these were made of.
    busy : dict of str to float
        Seconds of each stage.
    reading : Reading
        What it takes to read a sample that was made.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """
    read_bytes = 0

    def listen(event: Event) -> None:
        nonlocal read_bytes
        if isinstance(event, SampleWritten):
            read_bytes += event.source_bytes
        watch(event)

    try:
        folder = tempfile.TemporaryDirectory(prefix=".ctgpu-plan-", dir=home)
    except OSError as error:
        raise StorageError(f"{home} cannot be written: {reason_of(error)}") from error
    try:
        with folder as name:
            report = make_shards(Path(name), trial, LocalExecutor(), listen)
            reading = _read_again(Path(name)) if report.written else Reading()
    finally:
        folder.cleanup()  # once more: a signal may have come while it was being removed
    assert report.pipeline is not None
    busy = {stage.name: stage.busy_s for stage in report.pipeline.stages}
    return report.written, read_bytes, busy, reading


def _read_again(folder: Path) -> Reading:
    """What it takes to read a sample of a folder and check it: of each, the median."""
    dataset = VolumeDataset(folder, verify="always")
    volume = np.empty(dataset.spec.stored_shape, numpy_dtype(dataset.spec.dtype))
    volume.fill(0)  # its pages are there
    cores_s, waits_s = [], []
    for index in range(len(dataset)):
        began_s, of_core_s = time.perf_counter(), time.thread_time()
        dataset.read_into(index, volume)
        cores_s.append(time.thread_time() - of_core_s)
        waits_s.append(max(0.0, time.perf_counter() - began_s - cores_s[-1]))
    return Reading(statistics.median(cores_s), statistics.median(waits_s))
