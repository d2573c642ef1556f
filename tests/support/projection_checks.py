"""The projection held against the real pipeline in virtual time: cases, and what comes of them.

``PYTHONPATH=.:tests python -m support.projection_checks`` makes the checks of
``benchmarks/results/project.json`` again, with the costs that stand there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctgpu.building.projection import GBIT, UNLIMITED, Machine, SampleCosts, project
from ctgpu.sources.hub.quota import ANONYMOUS_QUOTA
from support.virtual_time import Node, simulate

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "project.json"
# Projection and simulation may differ by so much.
TOLERANCE = 0.10
# The reading at which the tables' machines are simulated.
CHECKED_READING = "12 TB"
# Samples of a published check, at least.
SAMPLES = 240
# Sizes of simulated volumes lie evenly within so much of their mean.
SPREAD = 0.3
_GB = 1e9
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Case:
    """A machine and samples on which the projection is held against a simulated run.

    Attributes
    ----------
    name : str
        What the table calls it.
    machine : Machine
        Where.
    samples : tuple of SampleCosts
        Repeated over and over.
    spread : float
        Sizes lie evenly within so much of those; 0 where all are exactly alike.
    """

    name: str
    machine: Machine
    samples: tuple[SampleCosts, ...]
    spread: float = SPREAD

    def sequence(self, count: int) -> list[SampleCosts]:
        """The first `count` samples; their mean size is that of `samples`."""
        length = len(self.samples)
        # Multiples of the golden ratio fill an interval evenly, in an order without a period.
        places = (((n // length) * _GOLDEN + (n % length) / length) % 1 for n in range(count))
        return [
            sample.scaled_to(sample.compressed_bytes * (1 + self.spread * (2 * place - 1)))
            for sample, place in zip(itertools.cycle(self.samples), places, strict=False)
        ]


def stress_cases(costs: SampleCosts) -> list[Case]:
    """Cases made so that each resource decides in one of them, and sizes that are mixed."""
    base = Machine("16 cores", 16, requests=None)
    large = costs.scaled_to(4 * costs.compressed_bytes)
    huge = costs.scaled_to(12 * costs.compressed_bytes)

    def memory_for(samples: float) -> Machine:
        return replace(base, memory_bytes=2 * samples * costs.footprint_bytes)

    return [
        Case("cores", replace(base, cores=4), (costs,)),
        Case("few workers", replace(base, workers=4), (costs,)),
        Case("slow link", replace(base, network_bytes_per_s=2 * GBIT), (costs,)),
        Case("slow link, volumes alike", replace(base, network_bytes_per_s=GBIT), (costs,), 0.0),
        Case("fast link, volumes alike", replace(base, network_bytes_per_s=5 * GBIT), (large,), 0),
        Case("slow connections", replace(base, connection_bytes_per_s=20e6), (costs,)),
        Case("slow disk", replace(base, disk_bytes_per_s=0.2 * _GB), (costs,)),
        Case("one writer", base, (costs,)),
        Case("small quota", replace(base, requests=ANONYMOUS_QUOTA[1] // 3), (costs,)),
        Case("memory for 1.2 samples", memory_for(1.2), (costs,)),
        Case("memory for 2.5 samples", memory_for(2.5), (costs,)),
        Case("memory for 6 samples", memory_for(6), (costs,)),
        Case("every 20th larger than memory", memory_for(8), (*(costs,) * 19, huge)),
        Case("mixed sizes, cores", replace(base, cores=4), (costs, large, costs, costs)),
        Case("mixed sizes, slow link", replace(base, network_bytes_per_s=GBIT), (large, costs)),
        Case("two processes", replace(base, cores=4, processes=2), (costs,)),
    ]


def check(case: Case, samples: int) -> dict[str, Any]:
    """Run the real pipeline of one node in virtual time, and compare with the projection.

    Parameters
    ----------
    case : Case
        What to run.
    samples : int
        Samples of all processes at least; more where so many are in flight.

    Returns
    -------
    dict
        JSON-ready; ``deviation`` is that of the simulated rate from the projected one.
    """
    machine, threads = case.machine, case.machine.threads
    projection = project(machine, case.samples, alike=case.spread == 0)
    # The steady half begins after a quarter, when the first that were in flight are written.
    least = max(-(-samples // machine.processes), 4 * threads.most_in_flight)
    whole = 4 * len(case.samples)
    count = -(-least // whole) * whole
    run = simulate(
        Node(
            cores=machine.cores,
            network_bytes_per_s=machine.network_bytes_per_s,
            connection_bytes_per_s=machine.connection_bytes_per_s,
            disk_bytes_per_s=machine.disk_bytes_per_s,
            budget_bytes=machine.budget_bytes,
            workers=threads,
            processes=machine.processes,
            requests=machine.requests,
            parts=machine.nodes * machine.processes,
        ),
        case.sequence(count),
    )
    simulated = run.samples_per_s * machine.nodes
    return {
        "name": case.name,
        "bottleneck": projection.bottleneck,
        "projected_samples_per_s": projection.samples_per_s,
        "simulated_samples_per_s": simulated,
        "deviation": simulated / projection.samples_per_s - 1,
        "simulated_samples": count * machine.processes,
        "simulated_busy": run.busy,
        "simulated_peak_bytes": run.peak_reserved_bytes,
    }


def published_cases(result: Mapping[str, Any]) -> list[Case]:
    """The cases of a result: those of :func:`stress_cases`, and the machines of its tables."""
    costs = {name: SampleCosts(**of) for name, of in result["costs"].items()}
    rows = [row["machine"] for row in result["projections"] if row["reading"] == CHECKED_READING]
    machines = [Machine(**facts | _unlimited(facts)) for facts in rows]
    # What a GPU does is not simulated.
    return stress_cases(costs["as measured"]) + [
        Case(f"{CHECKED_READING}: {m.name}", m, (costs[CHECKED_READING],))
        for m in machines
        if not m.gpus
    ]


def _unlimited(facts: Mapping[str, Any]) -> dict[str, float]:
    """JSON knows no infinity: what is not looked at is null there."""
    kinds = ("bytes_per_s", "memory_bytes")
    return {k: UNLIMITED for k, v in facts.items() if v is None and k.endswith(kinds)}


def main() -> None:
    """Write the checks again."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    checks = [check(case, SAMPLES) for case in published_cases(result)]
    result |= {"checks": checks, "tolerance": TOLERANCE}
    result["largest_deviation"] = max(abs(one["deviation"]) for one in checks)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
