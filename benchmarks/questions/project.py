"""How long would the whole of CT-RATE take, and what would hold it up?

Takes the stage times that ``run_build.py`` measured, scales them to the sizes of CT-RATE's volumes,
and says for several machines how many samples a second their cores, link, disk, memory and the
Hub's quota allow (:mod:`ctgpu.building.projection`); the least of these is the projection.  Tests
hold it against the real pipeline in virtual time, and what they found comes from the last result
(``tests/support/projection_checks.py`` makes it).  Nothing printed here was measured on the
machines it speaks of; every assumption is printed beneath.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.asking import RESULTS, Question
from benchmarks.harness.measuring import Facts, measured_leaves, three_digits
from benchmarks.publishing import tables
from ctgpu.building.pipeline import STAGES
from ctgpu.building.projection import (
    GBIT,
    SUSTAINED_SHARE,
    UNLIMITED,
    Machine,
    Projection,
    SampleCosts,
    project,
)
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA, ANONYMOUS_QUOTA, WINDOW_S
from ctgpu.spec import CT_RATE

GB = 1e9
VOXEL_BYTES = 2  # int16, as CT-RATE and the measured scan store them

# CT-RATE: train volumes, all volumes, and the two sizes that are stated for all of them.
TRAIN_VOLUMES = 47_149
ALL_VOLUMES = 50_188
READINGS_TB = (12, 21)

# Resolve requests per five minutes by kind of account.  That of PRO is what the Hub documents;
# ctgpu learns it from the answers.
QUOTAS = {
    "anonymous": ANONYMOUS_QUOTA[1],
    "free account": ACCOUNT_QUOTA[1],
    "PRO account": 12_000,
}
# Rates of links that can be bought.
_LINKS_GBIT = (1, 10, 25, 40, 100)

# The old guide's figures, compared with and never relied on: samples, minutes at best and at worst;
# and two accounts of what one step took before and after.
OLD_RUNS = ((40_279, (80, 120)), (7_686, (15, 20)))
OLD_WORKERS = 16
OLD_STEP_S = (4.8, 0.5)
OLD_STEP_TOTALS_S = (1.35, 0.41)

#: Options of a machine of one's own: its field, its unit, and what they say.
_OWN: dict[str, tuple[str, float, str]] = {
    "--cores": ("cores", 1, "of one node"),
    "--network-gbit": ("network_bytes_per_s", GBIT, "link of one node, Gbit/s"),
    "--disk-gb-per-s": ("disk_bytes_per_s", GB, "output folder of one node, GB/s"),
    "--memory-gb": ("memory_bytes", GB, "of one node"),
    "--gpus": ("gpus", 1, "of one node"),
    "--nodes": ("nodes", 1, "that share the plan"),
    "--processes": ("processes", 1, "builds on each node"),
    "--num-workers": ("workers", 1, "of each process"),
    "--connection-mb-per-s": ("connection_bytes_per_s", 1e6, "of one download at most"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the projection, and write it."""
    options = (asked := _question().asked(arguments)).options
    calibration = read_calibration(options.build, options.format)
    build = json.loads(options.build.read_text(encoding="utf-8"))
    gpu_rate = read_gpu_rate(options.gpu)
    readings = sizes(calibration.costs)
    own = {name: value for name, value in vars(options).items() if name in _fields() and value}
    if options.account:
        own["requests"] = QUOTAS.get(options.account)
    machines = example_machines(calibration)
    if own:
        machines.append(Machine(**{"name": "your own", "cores": calibration.cores, **own}))
    checked = json.loads((RESULTS / "project.json").read_text(encoding="utf-8"))
    result = {
        "simulated": True,
        "measured_by": {
            key: build["machine"].get(key) for key in ("cpu", "utc", "commit", "command")
        },
        "format": options.format,
        "core_share": calibration.core_share,
        "gpu_samples_per_s": gpu_rate,
        "volumes": TRAIN_VOLUMES,
        "costs": {reading: asdict(costs) for reading, costs in readings.items()},
        "projections": [
            _projection(reading, machine, project(machine, [costs], gpu_rate), gpu_rate)
            for reading, costs in readings.items()
            for machine in machines
        ],
        "old_guide": {
            "runs": [
                old_run(samples, minutes, reading, costs)
                for samples, minutes in OLD_RUNS
                for reading, costs in readings.items()
            ],
            "steps": steps_contradiction(),
        },
        **{key: checked[key] for key in ("checks", "largest_deviation", "tolerance")},
        "assumptions": assumptions(calibration, build["machine"], gpu_rate),
    }
    print("\n".join(tables.projection(result, build)))
    return asked.publish(result)


def _question() -> Question:
    question = Question("project", (__doc__ or "").splitlines()[0])
    add, results = question.add_argument, RESULTS
    add("--build", type=Path, default=results / "build.json", help="result of run_build.py")
    add("--gpu", type=Path, default=results / "gpu.json", help="result of run_gpu.py, if any")
    add("--format", default=".nii.gz", choices=(".nii.gz", ".npz"))
    own = question.add_argument_group("a machine of one's own, added to the tables")
    for option, (field, unit, text) in _OWN.items():
        own.add_argument(option, dest=field, type=_positive(unit), help=text)
    own.add_argument("--account", choices=(*QUOTAS, "none"), help="whose quota")
    return question


def _fields() -> set[str]:
    return {field for field, _, _ in _OWN.values()}


def _positive(unit: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not 0 < value < UNLIMITED or (unit == 1 and value % 1):
            wanted = "whole number" if unit == 1 else "number"
            raise argparse.ArgumentTypeError(f"{text} was given; it takes a {wanted} above zero")
        return int(value) if unit == 1 else value * unit

    return number


# ---- what was measured --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a ``build.json`` says of the scan's costs and of the machine that it was measured on.

    `core_share` are the core seconds counted for each busy second of a thread that computes.
    """

    costs: SampleCosts
    cores: int
    memory_bytes: float
    core_share: float


def read_calibration(path: Path, volume_format: str) -> Calibration:
    """Read the stage times of `volume_format` from a result of ``run_build.py``.

    Raises
    ------
    SystemExit
        With one sentence, where the file is missing or has not what is needed.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        measured = result["formats"][volume_format]
        busy_s = {name: float(measured["stages"][name]["busy"]["median"]) for name in STAGES}
        # The writer is one thread and there from the first moment to the last.
        run_s = float(measured["stages"]["write"]["span"]["median"])
        samples, cores = int(result["samples_per_run"]), int(result["cores"])
        raw_bytes = math.prod(result["shape_hwd"]) * VOXEL_BYTES
        compressed_bytes = int(measured["file_bytes"])
        memory_bytes = float(result["machine"]["memory_gib"]) * 2**30
    except FileNotFoundError:
        raise SystemExit(f"{path.name} is not there: run benchmarks/run_build.py first") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{path.name} has not what a projection needs ({type(error).__name__}: {error}): "
            f"run benchmarks/run_build.py again, or choose another --format than {volume_format}"
        ) from None
    computing_s = sum(busy_s[name] for name in STAGES[:3])
    there_s = cores * run_s
    if min(samples, cores, raw_bytes, compressed_bytes, computing_s, there_s) <= 0:
        raise SystemExit(f"{path.name} tells of a run in which nothing happened: measure it again")
    share = min(1.0, there_s / computing_s)
    fetch_s, decode_s, device_s, write_s = (busy_s[name] / samples for name in STAGES)
    costs = SampleCosts(
        *(compressed_bytes, raw_bytes, CT_RATE.size_bytes),
        *(fetch_s * share, decode_s * share, device_s * share, write_s),
    )
    return Calibration(costs, cores, memory_bytes, share)


def read_gpu_rate(path: Path) -> float | None:
    """Samples per second of one GPU in a result of ``run_gpu.py``; None where there is none.

    Raises
    ------
    SystemExit
        With one sentence, where the file is there but is no JSON.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SystemExit(f"{path.name} is no JSON ({error}): run run_gpu.py again") from None
    rates = [
        float(leaf["median"])
        for keys, leaf in measured_leaves(result)
        if keys[0] == "pipeline" and "ctgpu" in keys and leaf["unit"] == "samples/s"
    ]
    return rates[0] if rates else None


def sizes(costs: SampleCosts) -> dict[str, SampleCosts]:
    """What a sample costs by each reading of how large CT-RATE's volumes are."""
    scaled = {f"{tb} TB": costs.scaled_to(tb * 1e12 / ALL_VOLUMES) for tb in READINGS_TB}
    return {"as measured": costs, **scaled}


def example_machines(calibration: Calibration) -> list[Machine]:
    """The machines of the tables: the measuring one, and chosen examples."""
    node = Machine("64 cores, 25 Gbit/s", 64, 25 * GBIT, 4 * GB, 512 * GB)
    split = replace(node, name="the same, 4 processes", processes=4)
    pro = QUOTAS["PRO account"]
    here = Machine("the measuring machine, local Hub", calibration.cores, requests=None)
    return [
        replace(here, memory_bytes=calibration.memory_bytes),
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


# ---- the old guide ------------------------------------------------------------------------------


def old_run(samples: int, minutes: tuple[float, float], reading: str, costs: SampleCosts) -> Facts:
    """A run as the old guide tells of it, and what its rates would take of each resource."""
    rates = sorted(samples / (minute * 60) for minute in minutes)
    each = {
        "samples_per_s": 1.0,
        "network_gbit_per_s": costs.compressed_bytes / GBIT,
        "inflate_cores": costs.decode_core_s,
        "all_cores": costs.core_s,
        "disk_gb_per_s": costs.output_bytes / GB,
        "requests_per_window": WINDOW_S,
        "writer_threads": costs.write_s,
    }
    needs = {name: (rates[0] * of, rates[1] * of) for name, of in each.items()}
    return {
        "samples": samples,
        "minutes": minutes,
        "workers": OLD_WORKERS,
        "reading": reading,
        "needs": needs,
        "verdict": _verdict(samples, needs, costs),
    }


def _verdict(samples: int, needs: Mapping[str, tuple[float, float]], costs: SampleCosts) -> str:
    """In a sentence, which resource stands against a run and what it would have to be."""
    gbit, cores = needs["network_gbit_per_s"], needs["all_cores"]
    by_link_s = samples * costs.compressed_bytes / (10 * GBIT)
    by_cores_s = samples * costs.core_s / OLD_WORKERS
    fits = "are too few"
    if cores[0] <= OLD_WORKERS:
        fits = "are enough" if cores[1] <= OLD_WORKERS else "are enough for its slow end only"
    return (
        f"it would need {tables.between(gbit)} Gbit/s of volumes, that is a link of "
        f"{_link(gbit[0])} Gbit/s for the slow end and of {_link(gbit[1])} for the fast one "
        f"(10 Gbit/s: {three_digits(by_link_s / 60)} min at best); and {tables.between(cores)} "
        f"cores by ctgpu's costs: {OLD_WORKERS} {fits} ({three_digits(by_cores_s / 60)} min at "
        "best)"
    )


def _link(gbit: float) -> str:
    return next((str(link) for link in _LINKS_GBIT if link >= gbit), f"over {_LINKS_GBIT[-1]}")


def steps_contradiction() -> dict[str, float]:
    """The old guide's two accounts of one step, as ratios."""
    facts: dict[str, float] = {}
    for what, (before, after) in (("claimed", OLD_STEP_S), ("total", OLD_STEP_TOTALS_S)):
        ratio = before / after
        facts |= {f"{what}_s_before": before, f"{what}_s_after": after, f"{what}_ratio": ratio}
    return facts


# ---- the result ---------------------------------------------------------------------------------


def _projection(
    reading: str, machine: Machine, projection: Projection, gpu_rate: float | None
) -> Facts:
    return {
        "reading": reading,
        "machine": _finite(asdict(machine)),
        "upper_bound": bool(machine.gpus) and gpu_rate is None,
        "samples_per_s": projection.samples_per_s,
        "hours": projection.hours(TRAIN_VOLUMES),
        "bottleneck": projection.bottleneck,
        "second": projection.second,
        "headroom": projection.headroom,
        "limits_samples_per_s": _finite(projection.limits),
    }


def _finite(values: Mapping[str, Any]) -> Facts:
    """JSON knows no infinity: what is not looked at is null."""
    return {k: None if v == UNLIMITED else v for k, v in values.items()}


def assumptions(
    calibration: Calibration, machine: Mapping[str, Any], gpu_rate: float | None
) -> list[str]:
    """Everything that the figures rest on, one sentence or two each."""
    costs = calibration.costs
    ratio = costs.raw_bytes / costs.compressed_bytes
    mean_mb = " and ".join(f"{tb * 1e6 / ALL_VOLUMES:.0f}" for tb in READINGS_TB)
    of_gpu = (
        "No rate of one is known from a measurement: it is never the limit here, and its rows "
        "are upper bounds."
        if gpu_rate is None
        else f"One makes {three_digits(gpu_rate)} samples/s, as measured (gpu.json), of the "
        "measured size; larger volumes take it longer, which is not counted."
    )
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
        f"A GPU takes the fused pass off the cores. {of_gpu}",
        "Rates are those of the steady state, without failures; filling and draining the "
        "pipeline is seconds in a run of hours.",
        "Simulated: what the stages do, in virtual time. Real: threads, channels, byte budget, "
        "ordered writer, request quota. Cores, link and disk are shared evenly by who uses them. "
        "Sizes lie evenly within ±30% of their mean except where all are alike; one "
        "node is simulated, with its part of the quota, and no GPU. The simulation takes the "
        "costs above as they are: it checks the model, not the measurement.",
    ]
