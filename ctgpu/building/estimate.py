"""What a build would take: volumes, bytes, memory and time, from a dry run and a calibration."""

from __future__ import annotations

import contextlib
import math
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
from ctgpu.building.pipeline import STAGES
from ctgpu.building.planning import make_plan
from ctgpu.building.projection import GBIT, UNLIMITED, Machine, Projection, SampleCosts, project
from ctgpu.building.request import Request, called_with, taken
from ctgpu.engines import Engine, open_engine
from ctgpu.errors import EnvironmentFailure, StorageError, UsageError, reason_of
from ctgpu.machine import (
    SMALL_MEMBERS_BYTES,
    default_memory_limit_bytes,
    free_space_bytes,
    usable_cores,
)
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA
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
    elsewhere : Elsewhere or None
        The same on a machine that was named.
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
    elsewhere: Elsewhere | None = None

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
        facts = asdict(replace(self, elsewhere=None))
        del facts["elsewhere"]
        if self.elsewhere is not None:
            facts["elsewhere"] = self.elsewhere.to_dict()
        return {
            **facts,
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
    cores, network_gbit, gpus : int, float and int, optional
        A machine for which the estimate also answers, by what was measured on this one.
    """

    output_dir: str | PathLike[str] = field(kw_only=False)
    calibrate: int = 3
    watch: Watcher = ignore
    cores: int | None = None
    network_gbit: float | None = None
    gpus: int | None = None


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
    named = named_machine(call.cores, call.network_gbit, call.gpus)
    return estimate(folder, taken(Request, call), call.calibrate, call.watch, named)


def named_machine(
    cores: int | None, network_gbit: float | None, gpus: int | None
) -> dict[str, float] | None:
    """Fields of a :class:`Machine` that was named by these; None where none of them was given.

    Raises
    ------
    UsageError
        If one of them is not above zero; no GPUs are fine.
    """
    if cores is not None:
        require_whole_number("cores", cores, least=1)
    if gpus is not None:
        require_whole_number("gpus", gpus, least=0)
    named: dict[str, float] = {}
    if network_gbit is not None:
        if not 0 < network_gbit < math.inf:
            raise UsageError(f"network_gbit is {network_gbit}; it takes Gbit/s, more than 0")
        named["network_bytes_per_s"] = network_gbit * GBIT
    named |= {k: v for k, v in (("cores", cores), ("gpus", gpus)) if v is not None}
    return named or None


def estimate(
    folder: Path,
    request: Request,
    calibrate: int = 3,
    watch: Watcher = ignore,
    named: dict[str, float] | None = None,
) -> Estimate:
    """What a request would take in a folder; as :func:`estimate_build`.

    `named` are fields of a :class:`Machine` for which it is asked, too.
    """
    require_whole_number("calibrate", calibrate, least=0)
    if named and not calibrate:
        raise UsageError(
            "calibrate is 0, and another machine is projected from what is measured on this one: "
            "take 1 or more"
        )
    device = request.device
    engine = device if isinstance(device, Engine) else open_engine(device)
    with contextlib.closing(engine):
        made = make_plan(request, engine.arithmetic, watch)
        made.source.close()
        gpus = 0
        if engine.name not in ("cpu", "reference"):
            gpus = max(1, len(engine.describe().get("devices", ())))
        if named and gpus and named.get("gpus") == 0:
            raise UsageError(
                f"gpus is 0, and {engine.name} measures what its GPU takes: take device cpu for "
                "what a machine without one would"
            )
    plan = made.plan
    home = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.is_dir())
    memory_bytes = request.memory_limit_bytes or default_memory_limit_bytes()
    calibrated = min(calibrate, len(plan.samples))
    source_bytes = sum(sample.size_bytes for sample in plan.samples)
    work = None
    if calibrated:
        # One worker a stage, so that a stage's time is not that of waiting for its own kind.
        trial = replace(
            request, limit=calibrated, num_workers=1, memory_limit_bytes=memory_bytes, shards=None
        )
        calibrated, read_bytes, busy = _calibrate(home, trial, watch)
        if calibrated:
            # Fetching and inflating take as long as there are bytes, the others as volumes.
            each_bytes = source_bytes / len(plan.samples)
            longer = each_bytes * calibrated / max(1, read_bytes)
            scale = {"fetch": longer, "decode": longer, "device": 1.0, "write": 1.0}
            each_s = {name: busy[name] / calibrated * scale[name] for name in STAGES}
            costs = SampleCosts(
                each_bytes,
                0.0,  # nothing here asks for the memory that a sample takes
                plan.spec.size_bytes,
                0.0,
                each_s["decode"],
                each_s["device"],
                each_s["write"],
                fetch_wait_s=each_s["fetch"],
            )
            work = Work(costs, len(plan.samples), engine.concurrency, gpus)
    workers = request.num_workers or (work.suggest() if work else default_workers())
    if named and work is None:
        raise UsageError(
            f"none of {calibrate} volumes could be built to measure this machine, and another is "
            "projected from it: see why with ctgpu build --limit, or name no other"
        )
    requests = ACCOUNT_QUOTA[1] if request.source is None else None
    return Estimate(
        made.counts,
        made.data_set,
        made.tables,
        Storage.of(len(plan.samples), plan.samples_per_shard, plan.spec),
        source_bytes,
        free_space_bytes(home),
        memory_bytes,
        workers,
        work.stages(workers) if work else (),
        work.cores_wall_s if work else 0.0,
        calibrated,
        work.elsewhere(named, request.num_workers, requests) if work and named else None,
    )


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

    def _project(self, machine: Machine) -> Projection:
        each_s = self.costs.device_core_s
        of_a_gpu = self.device_threads / self.gpus / each_s if self.gpus and each_s else None
        return project(machine, [self.costs], of_a_gpu)


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
