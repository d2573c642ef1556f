"""What a build costs on this machine, measured on a few samples, and what follows for others."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ctgpu.building.builder import make_shards
from ctgpu.building.events import Event, SampleWritten, Watcher, ignore
from ctgpu.building.executor import MOST_DEFAULT_WORKERS, LocalExecutor
from ctgpu.building.feeding import Feeding, Reading, Training
from ctgpu.building.pipeline import COMPRESS
from ctgpu.building.projection import UNLIMITED, Machine, Projection, SampleCosts, project
from ctgpu.building.recoding import recode
from ctgpu.building.request import Request
from ctgpu.codec import Coding
from ctgpu.errors import StorageError, reason_of
from ctgpu.loading.dataset import Volume, VolumeDataset
from ctgpu.loading.region import in_stored_order, stored_order
from ctgpu.machine import usable_cores
from ctgpu.shards.plan import Plan
from ctgpu.shards.untrusted import open_regular, read_exactly
from ctgpu.volume.stored import numpy_dtype

#: Ways to store volumes, as ``--compress`` names them.
WAYS = ("none", *get_args(Coding))

# What is read at a time to measure a disk.
_READ_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage of the whole build, on this machine.

    Attributes
    ----------
    name : str
        ``fetch``, ``decode``, ``device``, ``compress`` or ``write``.
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
        compress_s = n * costs.compress_core_s
        return (
            StageEstimate("fetch", n * (costs.fetch_wait_s + costs.fetch_core_s), threads.fetch),
            StageEstimate("decode", n * costs.decode_core_s, threads.decode),
            StageEstimate("device", n * costs.device_core_s, threads.device),
            *([StageEstimate(COMPRESS, compress_s, threads.decode)] if compress_s else ()),
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


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on a few samples.

    Attributes
    ----------
    written : int
        How many were built.
    read_bytes : int
        What these were made of.
    busy : mapping of str to float
        Seconds of each stage.
    readings : mapping of str to Reading
        What it takes to read one of them again, by the :data:`WAYS` to store it; empty where none
        was built.
    from_disk : bool
        Whether they were read from the disk; else, or where that cannot be told, from memory.
    """

    written: int = 0
    read_bytes: int = 0
    busy: Mapping[str, float] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    from_disk: bool = False


def calibrate_in(home: Path, trial: Request, watch: Watcher) -> Calibration:
    """Build a few samples beside a folder, store them in each way, read them again, remove all.

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
    readings: dict[str, Reading] = {}
    from_disk = False
    try:
        with folder as name:
            built = Path(name) / (trial.compress or WAYS[0])
            report = make_shards(built, trial, LocalExecutor(), listen)
            if report.written:
                readings, from_disk = _read_again(_in_each_way(built, trial))
    finally:
        folder.cleanup()  # once more: a signal may have come while it was being removed
    assert report.pipeline is not None
    busy = {stage.name: stage.busy_s for stage in report.pipeline.stages}
    return Calibration(report.written, read_bytes, busy, readings, from_disk)


def _in_each_way(built: Path, trial: Request) -> dict[str, VolumeDataset]:
    """The samples of a folder, and copies beside it that are stored in the other ways."""
    tars, plan = sorted(built.glob("*.tar")), Plan.load(built)
    for way in WAYS:
        if way != built.name:
            asked = Request(compress=way, memory_limit_bytes=trial.memory_limit_bytes)
            recode(built.with_name(way), tars, plan, asked, ignore)
    return {way: VolumeDataset(built.with_name(way), verify="always") for way in WAYS}


def _read_again(stored: Mapping[str, VolumeDataset]) -> tuple[dict[str, Reading], bool]:
    """What it takes to read a sample that is stored in each way, and if that was from the disk."""
    tars = {way: [shard.path for shard in dataset.shards] for way, dataset in stored.items()}
    every = [tar for some in tars.values() for tar in some]
    from_disk = all([_drop_pages(tar) for tar in every])
    began_s = time.perf_counter()
    total_bytes = sum(map(_read_whole, every))
    byte_s = (time.perf_counter() - began_s) / total_bytes
    for tar in every:
        _drop_pages(tar)
    return {way: _reading(dataset, byte_s) for way, dataset in stored.items()}, from_disk


def _reading(dataset: VolumeDataset, byte_s: float) -> Reading:
    """Of the median sample; the disk takes so many seconds for a byte, as far as was seen."""
    spec, memory = dataset.spec, dataset.memory_layout

    def room(dtype: np.dtype[Any]) -> Volume:
        voxels = np.empty(stored_order(spec.shape_hwd, memory), dtype)
        voxels.fill(0)  # its pages are there
        return in_stored_order(voxels, memory, spec.layout)

    volume = room(numpy_dtype(spec.dtype))
    mask = None if dataset.masks is None else room(dataset.masks.numpy_dtype)
    cores_s, threads_s = [], []
    for index in range(len(dataset)):
        began_s, of_core_s = time.perf_counter(), time.thread_time()
        dataset.read_into(index, volume, mask=mask)
        cores_s.append(time.thread_time() - of_core_s)
        threads_s.append(time.perf_counter() - began_s)
    sizes = [entry.payload_bytes for shard in dataset.shards for entry in shard.samples]
    each_bytes, thread_s = statistics.mean(sizes), statistics.median(threads_s)
    disk_s = min(byte_s * each_bytes, thread_s)
    return Reading(each_bytes, statistics.median(cores_s), disk_s, thread_s)


def _read_whole(path: Path) -> int:
    """Read a file, and say how many bytes it has."""
    size_bytes = path.stat().st_size
    room = memoryview(bytearray(min(size_bytes, _READ_BYTES)))
    with _opened(path) as fd:
        for start in range(0, size_bytes, _READ_BYTES):
            read_exactly(fd, room[: size_bytes - start], start)
    return size_bytes


def _drop_pages(path: Path) -> bool:
    """Have a file read from its disk; False where it may come from memory all the same."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    with _opened(path) as fd:
        os.fsync(fd)  # a page that is not written yet stays
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        middle = os.fstat(fd).st_size // 2
        try:
            os.preadv(fd, [bytearray(1)], middle, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:  # the file system does not say
            return False
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = open_regular(path)
    try:
        yield fd
    finally:
        os.close(fd)
