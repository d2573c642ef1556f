"""How fast a build would be on a machine that is not at hand: a model of a few divisions.

What a sample costs comes from a measured run; each resource of a machine allows so many samples a
second; the least of them is the projection.  Tests hold it against the real pipeline, in virtual
time (``tests/support/virtual_time.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ctgpu.building.executor import LEAST_DEFAULT_WORKERS, MOST_DEFAULT_WORKERS
from ctgpu.building.pipeline import Workers
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA, WINDOW_S

UNLIMITED = math.inf
GBIT = 1e9 / 8
#: Volumes that a GPU works on at a time, a thread for each (docs/gpu.md).
LANES_OF_A_GPU = 3
#: Of a window's requests: a tenth is kept for a burst, the others are spent evenly.
SUSTAINED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class SampleCosts:
    """What one sample costs.

    Attributes
    ----------
    compressed_bytes, raw_bytes, output_bytes : float
        Downloaded, inflated and stored.
    fetch_core_s, decode_core_s, device_core_s : float
        Seconds of one core.
    write_s : float
        Seconds of the writer's thread, on the measuring machine's disk.
    fetch_wait_s : float
        Seconds of a fetching thread beside those of a core, over the measuring machine's link;
        they count where no link is named.
    compress_core_s : float
        Seconds of one core; 0 where nothing is compressed.
    """

    compressed_bytes: float
    raw_bytes: float
    output_bytes: float
    fetch_core_s: float
    decode_core_s: float
    device_core_s: float
    write_s: float
    fetch_wait_s: float = 0.0
    compress_core_s: float = 0.0

    @property
    def core_s(self) -> float:
        """Core seconds of the stages that compute."""
        return self.fetch_core_s + self.decode_core_s + self.device_core_s + self.compress_core_s

    @property
    def footprint_bytes(self) -> float:
        """What it holds at its largest."""
        return self.compressed_bytes + self.raw_bytes + self.output_bytes

    def scaled_to(self, compressed_bytes: float) -> SampleCosts:
        """The same for a volume of another compressed size, alike in all but its size."""
        ratio = compressed_bytes / self.compressed_bytes
        moved = self.raw_bytes + self.output_bytes
        return replace(
            self,
            compressed_bytes=compressed_bytes,
            raw_bytes=self.raw_bytes * ratio,
            fetch_core_s=self.fetch_core_s * ratio,
            fetch_wait_s=self.fetch_wait_s * ratio,
            decode_core_s=self.decode_core_s * ratio,
            device_core_s=self.device_core_s * (self.raw_bytes * ratio + self.output_bytes) / moved,
        )

    @classmethod
    def mean(cls, samples: Sequence[SampleCosts]) -> SampleCosts:
        """The average sample."""
        columns = zip(*(asdict(sample).values() for sample in samples), strict=True)
        return cls(*(sum(column) / len(samples) for column in columns))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a build would run.  Infinite is what is not looked at.

    Attributes
    ----------
    name : str
        What the tables call it.
    cores : int
        Of one node.
    network_bytes_per_s, disk_bytes_per_s : float
        Of one node: from the Hub, and to its output folder.
    memory_bytes : float
        Of one node; half of it is the byte budget, shared by its processes.
    nodes, processes : int
        Nodes, and processes on each, that share the plan.
    workers : int or None
        ``--num-workers`` of each process; by default what the build takes.
    connection_bytes_per_s : float
        That the Hub gives one download at most.
    gpus : int
        Of one node; 0 is the CPU engine.
    requests : int or None
        Resolve requests in five minutes, for all nodes; None is no quota.
    device_threads : int or None
        Volumes that the engine of a process takes at a time; by default one a core, or three a
        GPU.
    """

    name: str
    cores: int
    network_bytes_per_s: float = UNLIMITED
    disk_bytes_per_s: float = UNLIMITED
    memory_bytes: float = UNLIMITED
    nodes: int = 1
    processes: int = 1
    workers: int | None = None
    connection_bytes_per_s: float = UNLIMITED
    gpus: int = 0
    requests: int | None = ACCOUNT_QUOTA[1]
    device_threads: int | None = None

    @property
    def threads(self) -> Workers:
        """Threads of one process."""
        cores = max(1, self.cores // self.processes)
        fetch = self.workers or min(MOST_DEFAULT_WORKERS, max(LEAST_DEFAULT_WORKERS, cores))
        device = self.device_threads or LANES_OF_A_GPU * self.gpus or cores
        return Workers(fetch, min(fetch, cores), device)

    @property
    def budget_bytes(self) -> float:
        """Byte budget of one process."""
        return self.memory_bytes / 2 / self.processes


@dataclass(frozen=True, slots=True)
class Projection:
    """How fast a machine would be.

    Attributes
    ----------
    limits : dict of str to float
        Samples per second of all nodes that each resource alone would allow, least first.
    alone_s : float
        Seconds per sample lost to samples that are larger than the budget and run alone.
    """

    limits: dict[str, float]
    alone_s: float = 0.0

    @property
    def samples_per_s(self) -> float:
        """The projection, for all nodes."""
        return 1 / (1 / min(self.limits.values()) + self.alone_s)

    @property
    def bottleneck(self) -> str:
        """What decides."""
        name, rate = next(iter(self.limits.items()))
        return "memory" if self.alone_s * rate > 1 else name

    @property
    def second(self) -> str:
        """What would decide next."""
        return next(name for name in self.limits if name != self.bottleneck)

    @property
    def headroom(self) -> float:
        """How many times faster it would have to be before the second one decides."""
        return self.limits[self.second] / self.samples_per_s

    def hours(self, samples: int) -> float:
        """Hours for so many samples."""
        return samples / self.samples_per_s / 3600


def project(
    machine: Machine,
    samples: Sequence[SampleCosts],
    gpu_samples_per_s: float | None = None,
    *,
    alike: bool = False,
) -> Projection:
    """How many samples a second `machine` makes of an endless repetition of `samples`.

    Parameters
    ----------
    machine : Machine
        Where.
    samples : sequence of SampleCosts
        What; several where sizes are mixed.
    gpu_samples_per_s : float, optional
        Measured rate of one GPU; without one, GPUs take the device stage off the cores and are
        themselves never the limit, so that the projection is an upper bound.
    alike : bool
        Whether volumes are exactly as large as one another.  Downloads that share a link then
        begin and end together, and the link idles while all of them are looked at.
    """
    budget = machine.budget_bytes
    fitting = [s for s in samples if s.footprint_bytes <= budget]
    alone = [s for s in samples if s.footprint_bytes > budget]
    limits = _limits(machine, SampleCosts.mean(fitting or alone), alike)
    if machine.gpus and gpu_samples_per_s is not None:
        limits["GPU"] = machine.nodes * machine.gpus * gpu_samples_per_s
    lost_s = 0.0
    if fitting and alone:
        usual = SampleCosts.mean(fitting)
        lost_s = sum(_alone_s(machine, large, usual) for large in alone) / len(samples)
        lost_s /= machine.nodes * machine.processes
        share = len(fitting) / len(samples)
        limits = {name: rate / share for name, rate in limits.items()}
    return Projection(dict(sorted(limits.items(), key=lambda item: item[1])), lost_s)


def _limits(machine: Machine, mean: SampleCosts, alike: bool) -> dict[str, float]:
    threads, nodes = machine.threads, machine.nodes
    processes = nodes * machine.processes
    fetch_s, *_ = unloaded = _unloaded_s(machine, mean)
    if alike:
        at_once = machine.processes * threads.fetch
        together_s = at_once * mean.compressed_bytes / machine.network_bytes_per_s
        fetch_s = max(fetch_s, together_s + mean.fetch_core_s)
    on_cores_s = mean.core_s - (mean.device_core_s if machine.gpus else 0.0)
    limits = {
        "cores": _rate(nodes * machine.cores, on_cores_s),
        "network": nodes * machine.network_bytes_per_s / mean.compressed_bytes,
        "disk": nodes * machine.disk_bytes_per_s / mean.output_bytes,
        "fetch threads": _rate(processes * threads.fetch, fetch_s),
        "decode threads": _rate(processes * threads.decode, mean.decode_core_s),
        "compress threads": _rate(processes * threads.decode, mean.compress_core_s),
        "writer thread": _rate(processes, mean.write_s),
        "samples in flight": _rate(processes * threads.most_in_flight, sum(unloaded)),
        "Hub requests": SUSTAINED_SHARE * (machine.requests or UNLIMITED) / WINDOW_S,
    }
    if machine.device_threads and not machine.gpus:
        limits["device threads"] = _rate(processes * threads.device, mean.device_core_s)
    if machine.budget_bytes != UNLIMITED:
        limits["memory"] = processes / _period_s(machine.budget_bytes, mean, unloaded)
    return limits


def _rate(at_once: float, each_s: float) -> float:
    return at_once / each_s if each_s else UNLIMITED


def _unloaded_s(machine: Machine, sample: SampleCosts) -> tuple[float, float, float, float]:
    """Seconds that a sample spends in each stage when it has the machine to itself.

    What compresses counts as a part of the third.
    """
    one_download = min(machine.network_bytes_per_s, machine.connection_bytes_per_s)
    waiting_s = sample.fetch_wait_s
    if one_download != UNLIMITED:
        waiting_s = sample.compressed_bytes / one_download
    return (
        waiting_s + sample.fetch_core_s,
        sample.decode_core_s,
        (0.0 if machine.gpus else sample.device_core_s) + sample.compress_core_s,
        max(sample.write_s, sample.output_bytes / machine.disk_bytes_per_s),
    )


def _held_bytes(
    sample: SampleCosts, unloaded: tuple[float, float, float, float], age_s: float
) -> float:
    """All bytes until the sample is inflated, then no compressed ones, at last only the output."""
    fetch_s, decode_s, device_s, _ = unloaded
    if age_s < fetch_s + decode_s:
        return sample.footprint_bytes
    if age_s < fetch_s + decode_s + device_s:
        return sample.raw_bytes + sample.output_bytes
    return sample.output_bytes


def _alone_s(machine: Machine, large: SampleCosts, usual: SampleCosts) -> float:
    """Seconds in which a sample larger than the budget keeps the others from being written.

    The pipeline runs empty and the large one passes; the others come after it as soon as the bytes
    that it still holds let them.
    """
    passing = fetch_s, decode_s, device_s, _ = _unloaded_s(machine, large)
    followed_s = next(
        (
            age_s
            for age_s in (fetch_s + decode_s, fetch_s + decode_s + device_s)
            if _held_bytes(large, passing, age_s) + usual.footprint_bytes <= machine.budget_bytes
        ),
        sum(passing),
    )
    return max(sum(passing), followed_s + sum(_unloaded_s(machine, usual)))


def _period_s(
    budget_bytes: float, sample: SampleCosts, unloaded: tuple[float, float, float, float]
) -> float:
    """Least time between two admissions for which those in flight and the next fit the budget."""
    total_s = sum(unloaded)
    if sample.footprint_bytes > budget_bytes:
        return total_s

    def fits(period_s: float) -> bool:
        in_flight = math.ceil(total_s / period_s) - 1
        held_bytes = sum(
            _held_bytes(sample, unloaded, n * period_s) for n in range(1, in_flight + 1)
        )
        return held_bytes + sample.footprint_bytes <= budget_bytes

    # With this many outputs alone in flight the budget is full already.
    too_short, long_enough = total_s * sample.output_bytes / budget_bytes / 2, total_s
    for _ in range(40):
        middle = (too_short + long_enough) / 2
        if fits(middle):
            long_enough = middle
        else:
            too_short = middle
    return long_enough
