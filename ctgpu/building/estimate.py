"""What a build would take: volumes, bytes, memory and time, from a dry run and a calibration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ctgpu.arguments import path_of, require_whole_number
from ctgpu.building.calibration import (
    WAYS,
    Calibration,
    Elsewhere,
    StageEstimate,
    Work,
    calibrate_in,
)
from ctgpu.building.described import JoinedTable
from ctgpu.building.events import Watcher, ignore
from ctgpu.building.executor import default_workers
from ctgpu.building.feeding import Feeding, Reading, Training
from ctgpu.building.pipeline import COMPRESS
from ctgpu.building.planning import make_plan
from ctgpu.building.projection import GBIT, UNLIMITED, SampleCosts
from ctgpu.building.request import Request, called_with, taken
from ctgpu.codec import Coding
from ctgpu.engines import Engine, open_engine
from ctgpu.errors import EnvironmentFailure, UsageError
from ctgpu.machine import (
    SMALL_MEMBERS_BYTES,
    default_memory_limit_bytes,
    free_space_bytes,
    usable_cores,
)
from ctgpu.printable import counted
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA
from ctgpu.spec import CT_RATE, Spec
from ctgpu.volume.masks import MaskFormat


@dataclass(frozen=True, slots=True)
class Storage:
    """What a data set takes on disk.

    Attributes
    ----------
    samples, shards : int
        How many.
    sample_bytes : int
        Of one volume, with its mask if it has one; where they are compressed, as was measured.
    full_shard_bytes : int
        Volumes of a full shard.
    stored_bytes : int
        Volumes of all samples.
    needed_bytes : int
        Free space that a build asks for: where it compresses, no less than it expects of any
        volumes.
    """

    samples: int
    shards: int
    sample_bytes: int
    full_shard_bytes: int
    stored_bytes: int
    needed_bytes: int

    @classmethod
    def of(
        cls,
        samples: int,
        samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
        spec: Spec = CT_RATE,
        masks: MaskFormat | None = None,
    ) -> Storage:
        """For so many samples as they are, with masks where there are any."""
        sample_bytes = spec.size_bytes + (masks.size_bytes(spec) if masks else 0)
        return cls.of_bytes(samples, samples_per_shard, sample_bytes, sample_bytes)

    @classmethod
    def of_bytes(
        cls, samples: int, samples_per_shard: int, sample_bytes: int, expected_bytes: int
    ) -> Storage:
        """For so many samples of so many bytes, of which a build expects so many."""
        asked_bytes = max(sample_bytes, expected_bytes) + SMALL_MEMBERS_BYTES
        return cls(
            samples,
            -(-samples // samples_per_shard),
            sample_bytes,
            samples_per_shard * sample_bytes,
            samples * sample_bytes,
            samples * asked_bytes,
        )


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
    compression : {"pack", "rice"} or None
        How volumes would be stored; None is as they are.
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
    readings : mapping of str to Reading
        What it takes to read one of them again, by how it is compressed: ``none``, ``pack`` and
        ``rice``; empty without a calibration.
    read_from_disk : bool
        Whether that was from the disk; where it was from memory, a disk may be slower.
    elsewhere : Elsewhere or None
        The same on a machine that was named.
    online : Feeding or None
        How well training would be fed that was named.
    """

    counts: dict[str, int]
    data_set: str
    tables: tuple[JoinedTable, ...]
    storage: Storage
    compression: Coding | None
    source_bytes: int
    free_bytes: int | None
    memory_bytes: int
    num_workers: int
    stages: tuple[StageEstimate, ...]
    cores_wall_s: float
    calibrated_on: int
    readings: Mapping[str, Reading]
    read_from_disk: bool
    elsewhere: Elsewhere | None = None
    online: Feeding | None = None

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
        facts = asdict(replace(self, elsewhere=None, online=None))
        for name, also in (("elsewhere", self.elsewhere), ("online", self.online)):
            del facts[name]
            if also is not None:
                facts[name] = also.to_dict()
        for way, reading in self.readings.items():
            facts["readings"][way]["stored_bytes"] = self.storage.samples * reading.sample_bytes
            limits = reading.limits(usable_cores())
            facts["readings"][way]["limits"] = {n: r for n, r in limits.items() if r != UNLIMITED}
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
    online : bool
        Answer instead how well training on that machine would be fed, from raw volumes and from
        shards.
    step_ms, batch_size : float and int, optional
        Of that training, on `gpus` GPUs: milliseconds of a step, and samples that each of them
        takes in it.
    """

    output_dir: str | PathLike[str] = field(kw_only=False)
    calibrate: int = 3
    watch: Watcher = ignore
    cores: int | None = None
    network_gbit: float | None = None
    gpus: int | None = None
    online: bool = False
    step_ms: float | None = None
    batch_size: int | None = None


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
    training = named_training(call.online, call.step_ms, call.batch_size, call.gpus)
    return estimate(folder, taken(Request, call), call.calibrate, call.watch, named, training)


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


def named_training(
    online: bool, step_ms: float | None, batch_size: int | None, gpus: int | None
) -> Training | None:
    """The training that was named by these; None where it is not asked for.

    Raises
    ------
    UsageError
        If one of them is not above zero, or makes no sense without another.
    """
    if online and step_ms is not None:
        return Training(step_ms, *(1 if n is None else n for n in (batch_size, gpus)))
    if online:
        raise UsageError("online needs step_ms (--step-ms): how long does a training step take?")
    for name, value in (("step_ms", step_ms), ("batch_size", batch_size)):
        if value is not None:
            raise UsageError(
                f"{name} is {value}, which is of training: it goes with online (--online)"
            )
    return None


def estimate(
    folder: Path,
    request: Request,
    calibrate: int = 3,
    watch: Watcher = ignore,
    named: dict[str, float] | None = None,
    training: Training | None = None,
) -> Estimate:
    """What a request would take in a folder; as :func:`estimate_build`.

    `named` are fields of a :class:`Machine` for which it is asked, too; `training` what it is to
    feed.
    """
    require_whole_number("calibrate", calibrate, least=0)
    if (named or training) and not calibrate:
        raise UsageError(
            "calibrate is 0, and what is asked is projected from what is measured on this machine: "
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
        if named and gpus and named.get("gpus") == 0 and training is None:
            raise UsageError(
                f"gpus is 0, and {engine.name} measures what its GPU takes: take device cpu for "
                "what a machine without one would"
            )
    plan = made.plan
    home = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.is_dir())
    memory_bytes = request.memory_limit_bytes or default_memory_limit_bytes()
    calibrated = min(calibrate, len(plan.samples))
    source_bytes = sum(sample.size_bytes for sample in plan.samples)
    sample_bytes = plan.expected_bytes
    work, measured = None, Calibration()
    if calibrated:
        # One worker a stage, so that a stage's time is not that of waiting for its own kind.
        trial = replace(
            request,
            # Once it is known that no GPU works, that is not found out, and said, once more.
            device="cpu" if engine.name == "cpu" and device == "auto" else device,
            limit=calibrated,
            num_workers=1,
            memory_limit_bytes=memory_bytes,
            shards=None,
        )
        measured = calibrate_in(home, trial, watch)
        calibrated = measured.written
        if calibrated:
            # Fetching and inflating take as long as there are bytes, the others as volumes.
            each_bytes = source_bytes / len(plan.samples)
            longer = each_bytes * calibrated / max(1, measured.read_bytes)
            scale = {"fetch": longer, "decode": longer}
            each_s = {
                name: s / calibrated * scale.get(name, 1.0) for name, s in measured.busy.items()
            }
            reading = measured.readings[plan.compression or WAYS[0]]
            sample_bytes = round(reading.sample_bytes)
            costs = SampleCosts(
                each_bytes,
                0.0,  # nothing here asks for the memory that a sample takes
                sample_bytes,
                0.0,
                each_s["decode"],
                each_s["device"],
                each_s["write"],
                fetch_wait_s=each_s["fetch"],
                compress_core_s=each_s.get(COMPRESS, 0.0),
            )
            work = Work(costs, len(plan.samples), engine.concurrency, gpus)
    workers = request.num_workers or (work.suggest() if work else default_workers())
    if (named or training) and work is None:
        raise UsageError(
            f"none of {counted(calibrate, 'volume')} could be built to measure this machine, and "
            "what is asked is projected from it: see why with `ctgpu build --limit`, or take the "
            "plan alone"
        )
    requests = ACCOUNT_QUOTA[1] if request.source is None else None
    return Estimate(
        made.counts,
        made.data_set,
        made.tables,
        Storage.of_bytes(
            *(len(plan.samples), plan.samples_per_shard, sample_bytes, plan.expected_bytes)
        ),
        plan.compression,
        source_bytes,
        free_space_bytes(home),
        memory_bytes,
        workers,
        work.stages(workers) if work else (),
        work.cores_wall_s if work else 0.0,
        calibrated,
        measured.readings,
        measured.from_disk,
        work.elsewhere(named, request.num_workers, requests)
        if work and named and training is None
        else None,
        work.feeding(training, named or {}, reading, is_local=request.source is not None)
        if work and training
        else None,
    )
