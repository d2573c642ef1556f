"""How long would the whole of CT-RATE take, and what would hold it up?

Takes the stage times that ``run_build.py`` measured, scales them to the sizes of CT-RATE's volumes,
and says for several machines how many samples a second their cores, link, disk, memory and the
Hub's quota allow; the least of these is the projection.  Then the real pipeline runs on these
machines with simulated stages in virtual time: both must agree.  Nothing printed here was measured
on the machines it speaks of; every assumption is printed beneath.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import RESULTS, argument_parser, print_table, three_digits
from ctgpu.sources.hub.quota import WINDOW_S
from projection import (
    ALL_VOLUMES,
    GB,
    GBIT,
    QUOTAS,
    READINGS_TB,
    SUSTAINED_SHARE,
    TRAIN_VOLUMES,
    UNLIMITED,
    Calibration,
    Machine,
    Projection,
    SampleCosts,
    project,
    read_calibration,
    read_gpu_rate,
    sizes,
)
from publishing import publish
from simulate import Node, simulate

# Projection and simulation may differ by so much.
TOLERANCE = 0.10
# The reading at which the tables' machines are simulated.
CHECKED_READING = "12 TB"
# Sizes of simulated volumes lie evenly within so much of their mean.
SPREAD = 0.3
_GOLDEN = (5**0.5 - 1) / 2
# Rates of links that can be bought.
_LINKS_GBIT = (1, 10, 25, 40, 100)


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run as the old guide tells of it: samples, minutes at best and at worst, workers."""

    samples: int
    minutes: tuple[float, float]
    workers: int = 16

    @property
    def samples_per_s(self) -> tuple[float, float]:
        """Rates that this takes, least first."""
        best, worst = self.minutes
        return self.samples / (worst * 60), self.samples / (best * 60)


# The old guide's figures: compared with, never relied on.
OLD_RUNS = (OldRun(40_279, (80, 120)), OldRun(7_686, (15, 20)))
OLD_STEP_S = (4.8, 0.5)
OLD_STEP_TOTALS_S = (1.35, 0.41)


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


def example_machines(calibration: Calibration) -> list[Machine]:
    """The machines of the tables: the measuring one, and chosen examples."""
    node = Machine("64 cores, 25 Gbit/s", 64, 25 * GBIT, 4 * GB, 512 * GB)
    split = replace(node, name="the same, 4 processes", processes=4)
    pro = QUOTAS["PRO account"]
    return [
        Machine(
            "the measuring machine, local Hub",
            calibration.cores,
            memory_bytes=calibration.memory_bytes,
            requests=None,
        ),
        Machine("16 cores, 1 Gbit/s", 16, GBIT, 0.5 * GB, 64 * GB),
        Machine("16 cores, 10 Gbit/s", 16, 10 * GBIT, 2 * GB, 64 * GB),
        Machine("16 cores, 10 Gbit/s, 1 GPU", 16, 10 * GBIT, 2 * GB, 64 * GB, gpus=1),
        Machine("64 cores, 10 Gbit/s", 64, 10 * GBIT, 2 * GB, 256 * GB),
        node,
        replace(node, name="the same, 32 workers", workers=32),
        split,
        replace(split, name="8 such nodes, PRO account", nodes=8, requests=pro),
        replace(split, name="8 such nodes, no quota", nodes=8, requests=None),
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
        Case("slow disk", replace(base, disk_bytes_per_s=0.2 * GB), (costs,)),
        Case("one writer", base, (costs,)),
        Case("small quota", replace(base, requests=QUOTAS["anonymous"] // 3), (costs,)),
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


def old_run_needs(run: OldRun, costs: SampleCosts) -> dict[str, tuple[float, float]]:
    """What the rates of `run` would take of each resource, least first."""
    return {
        name: (run.samples_per_s[0] * each, run.samples_per_s[1] * each)
        for name, each in {
            "samples_per_s": 1.0,
            "network_gbit_per_s": costs.compressed_bytes / GBIT,
            "inflate_cores": costs.decode_core_s,
            "all_cores": costs.core_s,
            "disk_gb_per_s": costs.output_bytes / GB,
            "requests_per_window": WINDOW_S,
            "writer_threads": costs.write_s,
        }.items()
    }


def old_run_verdict(run: OldRun, costs: SampleCosts) -> str:
    """In a sentence, which resource stands against `run` and what it would have to be."""
    needs = old_run_needs(run, costs)
    gbit, cores = needs["network_gbit_per_s"], needs["all_cores"]
    by_link_s = run.samples * costs.compressed_bytes / (10 * GBIT)
    by_cores_s = run.samples * costs.core_s / run.workers
    if cores[1] <= run.workers:
        fits = "are enough"
    elif cores[0] <= run.workers:
        fits = "are enough for its slow end only"
    else:
        fits = "are too few"
    return (
        f"it would need {_span(gbit)} Gbit/s of volumes, that is a link of {_link(gbit[0])} Gbit/s "
        f"for the slow end and of {_link(gbit[1])} for the fast one (10 Gbit/s: "
        f"{three_digits(by_link_s / 60)} min at best); and {_span(cores)} cores by ctgpu's costs: "
        f"{run.workers} {fits} ({three_digits(by_cores_s / 60)} min at best)"
    )


def _link(gbit: float) -> str:
    return next((str(link) for link in _LINKS_GBIT if link >= gbit), f"over {_LINKS_GBIT[-1]}")


def steps_contradiction() -> dict[str, float]:
    """The old guide's two accounts of one step, as ratios."""
    (before, after), (total_before, total_after) = OLD_STEP_S, OLD_STEP_TOTALS_S
    return {
        "claimed_s_before": before,
        "claimed_s_after": after,
        "claimed_ratio": before / after,
        "total_s_before": total_before,
        "total_s_after": total_after,
        "total_ratio": total_before / total_after,
    }


def assumptions(
    calibration: Calibration, result: Mapping[str, Any], gpu_rate: float | None
) -> list[str]:
    """Everything that the figures rest on, one sentence or two each."""
    costs, machine = calibration.costs, result["machine"]
    ratio = costs.raw_bytes / costs.compressed_bytes
    mean_mb = " and ".join(f"{tb * 1e6 / ALL_VOLUMES:.0f}" for tb in READINGS_TB)
    return [
        f"Costs are those of build.json ({machine['cpu']}, {calibration.cores} cores, "
        f"{machine['utc'][:10]}). It holds busy seconds of threads, which are wall time: its "
        "threads shared the cores with each other and with the local Hub. All computing threads "
        "together cannot have had more than cores × run time, so "
        f"{calibration.core_share:.2f} core seconds are counted for each of their busy seconds; "
        "what they truly used is no more. The rate of the measuring machine follows from this and "
        "is no check of it.",
        "Fetching counts as core work like inflating and the fused pass: it was measured over "
        "loopback, with its checksum.",
        f"The writer's thread takes {costs.write_s * 1e3:.0f} ms a sample, as measured, the "
        "measuring machine's disk included. It counts as no core work (a direct write waits for "
        "the disk, not for a core), gets no faster on a faster disk, and on a slower disk takes "
        "as long as that.",
        "A core of another machine is as fast as one measured, and cores do not slow each other "
        "down (memory bandwidth, clock, hyper-threads).",
        f"CT-RATE's {ALL_VOLUMES:,} volumes are said to have {READINGS_TB[0]} to "
        f"{READINGS_TB[1]} TB (10¹² bytes): {mean_mb} MB on average, against the "
        f"{costs.compressed_bytes / 1e6:.1f} MB measured. Train volumes are as large as the "
        "average of all, and all of them are built.",
        f"Voxels are int16 and compress {ratio:.2f} ×, as measured. Fetching and inflating grow "
        "with the bytes; the fused pass with source and output bytes, as if none were cropped "
        f"away; the output is always {costs.output_bytes:,.0f} bytes.",
        "Link and disk belong to the node alone and run at their full rate. The Hub sends as "
        "fast as the link takes it, to any number of nodes, and one download may take all of it "
        "(--connection-mb-per-s says otherwise). Latency of requests is not counted. None of "
        "this has been measured against the real Hub.",
        "One resolve request a volume, none repeated; the quota of an account in five minutes "
        f"({', '.join(f'{name} {n:,}' for name, n in QUOTAS.items())}) is shared by all nodes, "
        f"and ctgpu spends {SUSTAINED_SHARE:.0%} of it evenly. Rows that do not say otherwise "
        "have a free account.",
        "Half of a node's memory is the byte budget, in equal parts for its processes; the CSV "
        "says how large a volume is, so that what is reserved is what it holds.",
        "Each process has min(16, max(4, cores)) workers, as the build takes by default, unless "
        "the row says otherwise, and its equal part of the cores.",
        "Cores, links, disks and memory of the machines are chosen examples; --cores and the "
        "other options add one's own.",
        "A GPU takes the fused pass off the cores. "
        + (
            "No rate of one is known from a measurement: it is never the limit here, and its rows "
            "are upper bounds."
            if gpu_rate is None
            else f"One makes {three_digits(gpu_rate)} samples/s, as measured (gpu.json), of the "
            "measured size; larger volumes take it longer, which is not counted."
        ),
        "Rates are those of the steady state, without failures; filling and draining the "
        "pipeline is seconds in a run of hours.",
        "Simulated: what the stages do, in virtual time. Real: threads, channels, byte budget, "
        "ordered writer, request quota. Cores, link and disk are shared evenly by who uses them. "
        f"Sizes lie evenly within ±{SPREAD:.0%} of their mean except where all are alike; one "
        "node is simulated, with its part of the quota, and no GPU. The simulation takes the "
        "costs above as they are: it checks the model, not the measurement.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the projection and its check, and write both."""
    options = _options(arguments)
    calibration = read_calibration(options.build, options.format)
    result = json.loads(options.build.read_text(encoding="utf-8"))
    gpu_rate = read_gpu_rate(options.gpu)
    readings = sizes(calibration.costs)
    machines = example_machines(calibration) + _own_machine(options, calibration)
    projections = {
        reading: [(m, project(m, [costs], gpu_rate)) for m in machines]
        for reading, costs in readings.items()
    }
    for reading, rows in projections.items():
        _show_projections(reading, readings[reading], rows, gpu_rate)
    _show_quotas()
    _show_old_guide(readings)
    checks = _run_checks(options, calibration, machines, readings[CHECKED_READING])
    notes = assumptions(calibration, result, gpu_rate)
    print("What this rests on")
    for number, note in enumerate(notes, 1):
        print(f"{number:>3}. {note}")
    publish(
        options,
        "project",
        {
            "simulated": True,
            "measured_by": {
                key: result["machine"].get(key) for key in ("cpu", "utc", "commit", "command")
            },
            "format": options.format,
            "core_share": calibration.core_share,
            "gpu_samples_per_s": gpu_rate,
            "volumes": TRAIN_VOLUMES,
            "costs": {reading: asdict(costs) for reading, costs in readings.items()},
            "projections": [
                _projection_as_json(reading, machine, projection, gpu_rate)
                for reading, rows in projections.items()
                for machine, projection in rows
            ],
            "old_guide": _old_guide_as_json(readings),
            "checks": checks,
            "largest_deviation": max(abs(c["deviation"]) for c in checks),
            "tolerance": TOLERANCE,
            "assumptions": notes,
        },
    )
    if apart := [c["name"] for c in checks if abs(c["deviation"]) > TOLERANCE]:
        raise SystemExit(
            f"projection and simulation differ by more than {TOLERANCE:.0%}: {', '.join(apart)}"
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--build", type=Path, default=RESULTS / "build.json", help="result of run_build.py"
    )
    parser.add_argument(
        "--gpu", type=Path, default=RESULTS / "gpu.json", help="result of run_gpu.py, if any"
    )
    parser.add_argument("--format", default=".nii.gz", choices=(".nii.gz", ".npz"))
    parser.add_argument("--samples", type=int, default=240, help="samples of a simulated run")
    own = parser.add_argument_group("a machine of one's own, added to the tables")
    own.add_argument("--cores", type=int, help="of one node")
    own.add_argument("--network-gbit", type=float, help="link of one node, Gbit/s")
    own.add_argument("--disk-gb-per-s", type=float, help="output folder of one node, GB/s")
    own.add_argument("--memory-gb", type=float, help="of one node")
    own.add_argument("--gpus", type=int, help="of one node")
    own.add_argument("--nodes", type=int, help="that share the plan")
    own.add_argument("--processes", type=int, help="builds on each node")
    own.add_argument("--num-workers", type=int, help="of each process")
    own.add_argument("--connection-mb-per-s", type=float, help="of one download at most")
    own.add_argument("--account", choices=(*QUOTAS, "none"), help="whose quota")
    options = parser.parse_args(arguments)
    for name in _OWN:
        value = getattr(options, name)
        if isinstance(value, (int, float)) and value < (0 if name == "gpus" else 1e-9):
            parser.error(f"--{name.replace('_', '-')} is {value}; it takes what is above zero")
    return options


_OWN = (
    *("cores", "network_gbit", "disk_gb_per_s", "memory_gb", "gpus", "nodes", "processes"),
    *("num_workers", "connection_mb_per_s", "account"),
)


def _own_machine(options: argparse.Namespace, calibration: Calibration) -> list[Machine]:
    if all(getattr(options, name) is None for name in _OWN):
        return []
    account = options.account or "free account"
    return [
        Machine(
            "your own",
            cores=options.cores or calibration.cores,
            network_bytes_per_s=(options.network_gbit or UNLIMITED) * GBIT,
            disk_bytes_per_s=(options.disk_gb_per_s or UNLIMITED) * GB,
            memory_bytes=(options.memory_gb or UNLIMITED) * GB,
            nodes=options.nodes or 1,
            processes=options.processes or 1,
            workers=options.num_workers,
            connection_bytes_per_s=(options.connection_mb_per_s or UNLIMITED) * 1e6,
            gpus=options.gpus or 0,
            requests=QUOTAS.get(account),
        )
    ]


def _run_checks(
    options: argparse.Namespace,
    calibration: Calibration,
    machines: Sequence[Machine],
    costs: SampleCosts,
) -> list[dict[str, Any]]:
    cases = stress_cases(calibration.costs)
    if not options.quick:
        # What a GPU does is not simulated.
        cases += [Case(f"{CHECKED_READING}: {m.name}", m, (costs,)) for m in machines if not m.gpus]
    checks = [check(case, 120 if options.quick else options.samples) for case in cases]
    print_table(
        "the real pipeline with simulated stages, in virtual time, against the projection",
        ["case", "decided by", "projected /s", "simulated /s", "apart"],
        [
            [
                c["name"],
                c["bottleneck"],
                three_digits(c["projected_samples_per_s"]),
                three_digits(c["simulated_samples_per_s"]),
                f"{c['deviation']:+.1%}",
            ]
            for c in checks
        ],
    )
    return checks


def _show_projections(
    reading: str,
    costs: SampleCosts,
    rows: Sequence[tuple[Machine, Projection]],
    gpu_rate: float | None,
) -> None:
    print_table(
        f"projected: {TRAIN_VOLUMES:,} volumes, {reading} "
        f"({costs.compressed_bytes / 1e6:.0f} MB each, {costs.core_s:.2f} core seconds)",
        ["machine", "samples/s", "hours", "decided by", "then", "at"],
        [
            [
                m.name,
                _bound(m, gpu_rate) + three_digits(p.samples_per_s),
                three_digits(p.hours(TRAIN_VOLUMES)),
                p.bottleneck,
                p.second,
                f"{p.headroom:.1f} ×",
            ]
            for m, p in rows
        ],
    )


def _bound(machine: Machine, gpu_rate: float | None) -> str:
    return "GPU not measured: ≤ " if machine.gpus and gpu_rate is None else ""


def _show_quotas() -> None:
    rates = {name: SUSTAINED_SHARE * n / WINDOW_S for name, n in QUOTAS.items()}
    print_table(
        "the Hub's quota alone (CT-RATE is gated: anonymous is for comparison)",
        ["account", "requests in 5 min", "samples/s", f"hours for {TRAIN_VOLUMES:,}"],
        [
            [name, f"{QUOTAS[name]:,}", three_digits(r), three_digits(TRAIN_VOLUMES / r / 3600)]
            for name, r in rates.items()
        ],
    )


def _show_old_guide(readings: Mapping[str, SampleCosts]) -> None:
    for run in OLD_RUNS:
        print_table(
            f"the old guide: {run.samples:,} samples in {run.minutes[0]:g} to "
            f"{run.minutes[1]:g} min on {run.workers} workers would take",
            ["volumes", "samples/s", "Gbit/s", "cores, inflate", "cores, all", "disk GB/s"],
            [
                [
                    reading,
                    *(
                        _span(needs[key])
                        for key in (
                            *("samples_per_s", "network_gbit_per_s", "inflate_cores"),
                            *("all_cores", "disk_gb_per_s"),
                        )
                    ),
                ]
                for reading, costs in readings.items()
                for needs in [old_run_needs(run, costs)]
            ],
        )
        needs = old_run_needs(run, readings["as measured"])
        granted = SUSTAINED_SHARE * QUOTAS["free account"]
        worker_s = sorted(run.workers / rate for rate in run.samples_per_s)
        print(
            f"Each of its workers has {_span(worker_s)} s for a sample. Requests: "
            f"{_span(needs['requests_per_window'])} in five minutes, "
            f"{'within' if needs['requests_per_window'][1] <= granted else 'beyond'} the "
            f"{granted:,.0f} that a free account allows; {_span(needs['writer_threads'])} of one "
            "writer's time. With a local copy, a disk must read what otherwise the link brings."
        )
        for reading in (f"{tb} TB" for tb in READINGS_TB):
            print(f"At {reading} {old_run_verdict(run, readings[reading])}.")
        print()
    steps = steps_contradiction()
    print(
        f"The old guide's {OLD_STEP_S[0]} → {OLD_STEP_S[1]} s a step is "
        f"{OLD_STEP_S[0]} / {OLD_STEP_S[1]} = {steps['claimed_ratio']:.1f} ×; its own totals of "
        f"a step, {OLD_STEP_TOTALS_S[0]} → {OLD_STEP_TOTALS_S[1]} s, are "
        f"{OLD_STEP_TOTALS_S[0]} / {OLD_STEP_TOTALS_S[1]} = {steps['total_ratio']:.1f} ×. "
        "Both cannot be of the same step.\n"
    )


def _span(ends: Sequence[float]) -> str:
    return f"{three_digits(ends[0])} to {three_digits(ends[1])}"


def _projection_as_json(
    reading: str, machine: Machine, projection: Projection, gpu_rate: float | None
) -> dict[str, Any]:
    return {
        "reading": reading,
        "machine": _finite(asdict(machine)),
        "upper_bound": bool(_bound(machine, gpu_rate)),
        "samples_per_s": projection.samples_per_s,
        "hours": projection.hours(TRAIN_VOLUMES),
        "bottleneck": projection.bottleneck,
        "second": projection.second,
        "headroom": projection.headroom,
        "limits_samples_per_s": _finite(projection.limits),
    }


def _old_guide_as_json(readings: Mapping[str, SampleCosts]) -> dict[str, Any]:
    runs = [
        {
            **asdict(run),
            "reading": reading,
            "needs": old_run_needs(run, costs),
            "verdict": old_run_verdict(run, costs),
        }
        for run in OLD_RUNS
        for reading, costs in readings.items()
    ]
    return {"runs": runs, "steps": steps_contradiction()}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: what is not looked at is null."""
    return {k: None if v == UNLIMITED else v for k, v in values.items()}


if __name__ == "__main__":
    main()
