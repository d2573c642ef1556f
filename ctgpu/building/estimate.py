"""What a build would take: volumes, bytes, memory and time, from a dry run and a calibration."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ctgpu.arguments import path_of, require_whole_number
from ctgpu.building.builder import make_shards
from ctgpu.building.described import JoinedTable
from ctgpu.building.events import Event, SampleWritten, Watcher, ignore
from ctgpu.building.executor import MOST_DEFAULT_WORKERS, LocalExecutor, default_workers
from ctgpu.building.pipeline import STAGES, Workers
from ctgpu.building.planning import make_plan
from ctgpu.building.request import Request, called_with, taken
from ctgpu.engines import Engine, open_engine
from ctgpu.errors import EnvironmentFailure, StorageError, reason_of
from ctgpu.machine import (
    SMALL_MEMBERS_BYTES,
    default_memory_limit_bytes,
    free_space_bytes,
    usable_cores,
)
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.spec import CT_RATE, Spec


@dataclass(frozen=True, slots=True)
class Storage:
    """What a data set takes on disk.

    Attributes
    ----------
    samples, shards : int
        How many.
    sample_bytes : int
        Of one volume.
    full_shard_bytes : int
        Volumes of a full shard.
    stored_bytes : int
        Volumes of all samples.
    """

    samples: int
    shards: int
    sample_bytes: int
    full_shard_bytes: int
    stored_bytes: int

    @classmethod
    def of(
        cls, samples: int, samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD, spec: Spec = CT_RATE
    ) -> Storage:
        """For so many samples."""
        return cls(
            samples,
            -(-samples // samples_per_shard),
            spec.size_bytes,
            samples_per_shard * spec.size_bytes,
            samples * spec.size_bytes,
        )

    @property
    def needed_bytes(self) -> int:
        """Free space that a build asks for."""
        return self.stored_bytes + self.samples * SMALL_MEMBERS_BYTES


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
class Estimate:
    """What a build would take.

    Attributes
    ----------
    counts : dict of str to int
        Volumes listed, left out and why.
    data_set : str
        Name of the description that it goes by.
    tables : tuple of JoinedTable
        What would be joined to the samples.
    storage : Storage
        On disk.
    source_bytes : int
        To read or download.
    free_bytes : int or None
        On the output's file system; None where that does not say.
    memory_bytes : int
        What the volumes in flight may hold.
    num_workers : int
        Suggested: more would not be faster.
    stages : tuple of StageEstimate
        With so many workers; empty without a calibration.
    cores_wall_s : float
        Time that the work on the processor takes with every core busy.
    calibrated_on : int
        Samples that were built to measure.
    """

    counts: dict[str, int]
    data_set: str
    tables: tuple[JoinedTable, ...]
    storage: Storage
    source_bytes: int
    free_bytes: int | None
    memory_bytes: int
    num_workers: int
    stages: tuple[StageEstimate, ...]
    cores_wall_s: float
    calibrated_on: int

    @property
    def fits(self) -> bool:
        """Whether there is room for it; where that is not known, a build begins all the same."""
        return self.free_bytes is None or self.storage.needed_bytes <= self.free_bytes

    @property
    def exit_code(self) -> int:
        """0, or 3 where a build would be refused for want of space."""
        return 0 if self.fits else EnvironmentFailure.exit_code

    @property
    def bottleneck(self) -> StageEstimate | None:
        """The stage that decides; None without a calibration."""
        return max(self.stages, key=lambda stage: stage.wall_s, default=None)

    @property
    def wall_s(self) -> float:
        """The whole build: its slowest stage, or its work on all cores where that is more."""
        return max(self.cores_wall_s, *(stage.wall_s for stage in self.stages), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            **asdict(self),
            "needed_bytes": self.storage.needed_bytes,
            "fits": self.fits,
            "wall_s": self.wall_s if self.stages else None,
            "bottleneck": self.bottleneck.name if self.bottleneck else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _EstimateCall(Request):
    """The parameters of :func:`estimate_build`.

    Attributes
    ----------
    output_dir : path
        Where the build would write.  The calibration writes beside it, on the same file system,
        and removes what it wrote; nothing else is left behind.
    calibrate : int
        Samples to build for it; 0 measures nothing.
    watch : callable
        Called with the events of the listing and of the calibration.
    """

    output_dir: str | PathLike[str] = field(kw_only=False)
    calibrate: int = 3
    watch: Watcher = ignore


@called_with(_EstimateCall)
def estimate_build(call: _EstimateCall) -> Estimate:
    """Plan a build without making it, and measure this machine on its first samples.

    It takes what :func:`ctgpu.build` takes.  Without `num_workers` it suggests a number.

    Returns
    -------
    Estimate

    Raises
    ------
    UsageError, EnvironmentFailure
        As :func:`ctgpu.build`.
    """
    folder = path_of("output_dir", call.output_dir)
    return estimate(folder, taken(Request, call), call.calibrate, call.watch)


def estimate(
    folder: Path, request: Request, calibrate: int = 3, watch: Watcher = ignore
) -> Estimate:
    """What a request would take in a folder; as :func:`estimate_build`."""
    require_whole_number("calibrate", calibrate, least=0)
    device = request.device
    engine = device if isinstance(device, Engine) else open_engine(device)
    with contextlib.closing(engine):
        made = make_plan(request, engine.arithmetic, watch)
        made.source.close()
    plan = made.plan
    home = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.is_dir())
    memory_bytes = request.memory_limit_bytes or default_memory_limit_bytes()
    work = _Work({}, engine.concurrency, engine.name in ("cpu", "reference"))
    calibrated = min(calibrate, len(plan.samples))
    source_bytes = sum(sample.size_bytes for sample in plan.samples)
    if calibrated:
        # One worker a stage, so that a stage's time is not that of waiting for its own kind.
        trial = replace(
            request, limit=calibrated, num_workers=1, memory_limit_bytes=memory_bytes, shards=None
        )
        calibrated, read_bytes, busy = _calibrate(home, trial, watch)
        if calibrated:
            # Fetching and inflating take as long as there are bytes, the others as volumes.
            volumes, bytes_ = len(plan.samples) / calibrated, source_bytes / max(1, read_bytes)
            scale = {"fetch": bytes_, "decode": bytes_, "device": volumes, "write": volumes}
            work.thread_s.update({name: busy[name] * scale[name] for name in STAGES})
    workers = request.num_workers or work.suggest()
    return Estimate(
        made.counts,
        made.data_set,
        made.tables,
        Storage.of(len(plan.samples), plan.samples_per_shard, plan.spec),
        source_bytes,
        free_space_bytes(home),
        memory_bytes,
        workers,
        work.stages(workers),
        work.cores_wall_s,
        calibrated,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """Thread seconds of each stage for the whole build, and who shares them."""

    thread_s: dict[str, float]
    device_threads: int
    on_cores: bool

    @property
    def cores_wall_s(self) -> float:
        names = ("decode", "device") if self.on_cores else ("decode",)
        return sum(self.thread_s.get(name, 0.0) for name in names) / usable_cores()

    def stages(self, num_workers: int) -> tuple[StageEstimate, ...]:
        workers = Workers.for_machine(num_workers, self.device_threads)
        threads = {"fetch": workers.fetch, "decode": workers.decode, "device": workers.device}
        return tuple(
            StageEstimate(name, seconds, threads.get(name, 1))
            for name, seconds in self.thread_s.items()
        )

    def suggest(self) -> int:
        """The fewest workers that are not slower than any other number of them."""
        if not self.thread_s:
            return default_workers()

        def wall_s(num_workers: int) -> float:
            return max(self.cores_wall_s, *(s.wall_s for s in self.stages(num_workers)))

        fastest_s = min(map(wall_s, range(1, MOST_DEFAULT_WORKERS + 1)))
        return next(n for n in range(1, MOST_DEFAULT_WORKERS + 1) if wall_s(n) <= 1.02 * fastest_s)


def _calibrate(home: Path, trial: Request, watch: Watcher) -> tuple[int, int, dict[str, float]]:
    """Build a few samples; how many succeeded, bytes they were read from, busy seconds by stage."""
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
    finally:
        folder.cleanup()  # once more: a signal may have come while it was being removed
    assert report.pipeline is not None
    busy = {stage.name: stage.busy_s for stage in report.pipeline.stages}
    return report.written, read_bytes, busy
