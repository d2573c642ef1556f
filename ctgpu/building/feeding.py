"""Whether a machine keeps GPUs busy that train, from raw volumes and from shards.

A training step takes so long, each GPU takes so many samples in it: that is the rate which is
needed.  What a sample costs was measured; each resource allows so many samples a second, and the
least of them is what the GPUs get.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctgpu.arguments import require_whole_number
from ctgpu.building.projection import GBIT, UNLIMITED, SampleCosts
from ctgpu.errors import UsageError


@dataclass(frozen=True, slots=True)
class Training:
    """What is to be fed.

    Attributes
    ----------
    step_ms : float
        Of one training step.
    batch_size : int
        Samples that each GPU takes in it.
    gpus : int
        How many train on the machine.

    Raises
    ------
    UsageError
        If one of them is not above zero.
    """

    step_ms: float
    batch_size: int = 1
    gpus: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.step_ms < math.inf:
            raise UsageError(f"step_ms is {self.step_ms}; it takes milliseconds, more than 0")
        require_whole_number("batch_size", self.batch_size, least=1)
        require_whole_number("gpus", self.gpus, least=1)

    @property
    def samples_per_s(self) -> float:
        """What all GPUs together take."""
        return self.gpus * self.batch_size * 1000 / self.step_ms


@dataclass(frozen=True, slots=True)
class Reading:
    """What it takes to read one sample from shards, to check and to decode it.

    Attributes
    ----------
    sample_bytes : float
        Of its volume, and of its mask if it has one, as they are stored.
    core_s : float
        Seconds of one core.
    disk_s : float
        Seconds that the disk takes for its bytes, for one thread that does nothing but read:
        several may get more from it together.
    thread_s : float
        Seconds in which one thread has it, from the disk.
    """

    sample_bytes: float = 0.0
    core_s: float = 0.0
    disk_s: float = 0.0
    thread_s: float = 0.0

    def limits(self, cores: int) -> dict[str, float]:
        """Samples per second that cores and disk alone would allow, least first."""
        return _least_first(
            {"cores": _rate(cores, self.core_s), "disk, as measured here": _rate(1, self.disk_s)}
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One way to feed them.

    Attributes
    ----------
    sample_bytes : float
        Of one sample, where it comes from.
    core_s : float
        Core seconds of one sample.
    limits : dict of str to float
        Samples per second that each resource alone allows, least first.
    needed_per_s : float
        Samples per second that training takes.
    """

    sample_bytes: float
    core_s: float
    limits: dict[str, float]
    needed_per_s: float

    @property
    def samples_per_s(self) -> float:
        """What the machine gives."""
        return min(self.limits.values())

    @property
    def bottleneck(self) -> str:
        """What decides."""
        return next(iter(self.limits))

    @property
    def waiting_share(self) -> float:
        """Share of its time that training waits for samples."""
        return max(0.0, 1 - self.samples_per_s / self.needed_per_s)

    @property
    def cores_needed(self) -> float:
        """Cores that are busy when training gets all that it takes."""
        return self.needed_per_s * self.core_s

    @property
    def gbit_needed(self) -> float:
        """Gbit/s from where the samples are, likewise."""
        return self.needed_per_s * self.sample_bytes / GBIT

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        rate = self.samples_per_s
        return {
            "sample_bytes": self.sample_bytes,
            "core_s": self.core_s,
            "samples_per_s": None if rate == UNLIMITED else rate,
            "bottleneck": self.bottleneck,
            "waiting_share": self.waiting_share,
            "cores_needed": self.cores_needed,
            "gbit_needed": self.gbit_needed,
            "limits": {name: rate for name, rate in self.limits.items() if rate != UNLIMITED},
        }


@dataclass(frozen=True, slots=True)
class Feeding:
    """Both ways.

    Attributes
    ----------
    training : Training
        What is to be fed.
    cores : int
        Of the machine.
    network_bytes_per_s : float
        Its link to where the samples are; infinite where it was not named.
    raw, shards : Way
    """

    training: Training
    cores: int
    network_bytes_per_s: float
    raw: Way
    shards: Way

    @classmethod
    def of(
        cls,
        training: Training,
        costs: SampleCosts,
        reading: Reading,
        *,
        cores: int,
        network_bytes_per_s: float = UNLIMITED,
        gpu_samples_per_s: float | None = None,
    ) -> Feeding:
        """What a machine with so many cores gives.

        Parameters
        ----------
        training : Training
        costs : SampleCosts
            Of a raw sample; seconds of fetching count where no link is named.
        reading : Reading
            Of a stored one; the disk counts where no link is named.
        cores, network_bytes_per_s
            Of the machine.
        gpu_samples_per_s : float, optional
            What one GPU preprocesses, where they were measured to do so: it takes that off the
            cores, and off the GPU's time to train.
        """
        needed, on_gpu = training.samples_per_s, gpu_samples_per_s is not None
        core_s = costs.core_s - costs.compress_core_s
        core_s -= costs.device_core_s if on_gpu else 0.0
        limits = {"cores": _rate(cores, core_s)}
        if network_bytes_per_s == UNLIMITED:
            # As many threads as cores: one that waits for its bytes computes nothing.
            limits["fetching, as measured here"] = _rate(cores, core_s + costs.fetch_wait_s)
        else:
            limits["network"] = network_bytes_per_s / costs.compressed_bytes
        if gpu_samples_per_s is not None:
            limits["GPU"] = training.gpus * gpu_samples_per_s
        reads = reading.limits(cores)
        if network_bytes_per_s != UNLIMITED:
            network = network_bytes_per_s / costs.output_bytes
            reads = {"cores": reads["cores"], "network": network}
        return cls(
            training,
            cores,
            network_bytes_per_s,
            Way(costs.compressed_bytes, core_s, _least_first(limits), needed),
            Way(costs.output_bytes, reading.core_s, _least_first(reads), needed),
        )

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        raw, shards = self.raw, self.shards
        larger = raw.sample_bytes / shards.sample_bytes
        bytes_ = (
            f"a raw volume has {larger:.1f} × the bytes of a stored one"
            if larger >= 1
            else f"a stored volume has {1 / larger:.1f} × the bytes of a raw one"
        )
        if raw.waiting_share == 0:
            return f"train from raw volumes at once; {bytes_}"
        if shards.waiting_share == 0:
            return (
                f"build shards: from raw volumes training waits for {raw.waiting_share:.0%} of its "
                f"time, from shards it does not; {bytes_}"
            )
        better = "shards" if shards.samples_per_s > raw.samples_per_s else "raw volumes"
        return (
            f"neither is enough: from raw volumes training waits for {raw.waiting_share:.0%} of "
            f"its time, from shards for {shards.waiting_share:.0%}; of the two {better} are "
            f"faster, and {bytes_}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: no infinity."""
        named = self.network_bytes_per_s != UNLIMITED
        return {
            "step_ms": self.training.step_ms,
            "batch_size": self.training.batch_size,
            "gpus": self.training.gpus,
            "cores": self.cores,
            "network_bytes_per_s": self.network_bytes_per_s if named else None,
            "needed_per_s": self.training.samples_per_s,
            "raw": self.raw.to_dict(),
            "shards": self.shards.to_dict(),
            "advice": self.advice,
        }


def _rate(at_once: float, each_s: float) -> float:
    return at_once / each_s if each_s else UNLIMITED


def _least_first(limits: dict[str, float]) -> dict[str, float]:
    return dict(sorted(limits.items(), key=lambda item: item[1]))
