"""How long would the whole of CT-RATE take, and what would hold it up?

Takes the stage times that ``run_build.py`` measured, scales them to the sizes of CT-RATE's volumes,
and says for several machines how many samples a second their cores, link, disk, memory and the
Hub's quota allow (:mod:`ctgpu.building.projection`); the least of these is the projection.  Tests
hold it against the real pipeline in virtual time, and what they found comes from the last result
(``tests/support/projection_checks.py`` makes it).  Nothing printed here was measured on the
machines it speaks of; every assumption is printed beneath.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.asking import RESULTS, Question
from benchmarks.harness.measuring import Facts, three_digits
from benchmarks.publishing import tables
from ctgpu.building.pipeline import STAGES
from ctgpu.building.projection import (
    GBIT,
    SUSTAINED_SHARE,
    UNLIMITED,
    Machine,
    SampleCosts,
    project,
)
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA, ANONYMOUS_QUOTA, WINDOW_S
from ctgpu.spec import CT_RATE

GB = 1e9
FORMAT = ".nii.gz"
VOXEL_BYTES = 2  # int16, as CT-RATE and the measured scan store them

# CT-RATE: train volumes, all volumes, and the two sizes that are stated for all of them.
TRAIN_VOLUMES = 47_149
ALL_VOLUMES = 50_188
READINGS_TB = (12, 21)

# Resolve requests per five minutes by kind of account.  That of PRO is what the Hub documents;
# ctgpu learns it from the answers.
QUOTAS = {"anonymous": ANONYMOUS_QUOTA[1], "free account": ACCOUNT_QUOTA[1], "PRO account": 12_000}
# Rates of links that can be bought.
_LINKS_GBIT = (1, 10, 25, 40, 100)

# The old guide's figures, compared with and never relied on: samples, minutes at best and at worst;
# and two accounts of what one step took before and after.
OLD_RUNS = ((40_279, (80, 120)), (7_686, (15, 20)))
OLD_WORKERS = 16
OLD_STEPS_S = {"claimed": (4.8, 0.5), "total": (1.35, 0.41)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the projection, and write it."""
    question, results = Question("project", (__doc__ or "").splitlines()[0]), RESULTS
    add = question.add_argument
    add("--build", type=Path, default=results / "build.json", help="result of run_build.py")
    add("--gpu", type=Path, default=results / "gpu.json", help="result of run_gpu.py, if any")
    asked = question.asked(arguments)
    calibration = read_calibration(asked.options.build)
    build, readings = calibration.build, sizes(calibration.costs)
    gpu_rate = read_gpu_rate(asked.options.gpu)
    checked = json.loads((RESULTS / "project.json").read_text(encoding="utf-8"))
    result = {
        "simulated": True,
        "measured_by": {
            key: build["machine"].get(key) for key in ("cpu", "utc", "commit", "command")
        },
        "format": FORMAT,
        "core_share": calibration.core_share,
        "gpu_samples_per_s": gpu_rate,
        "volumes": TRAIN_VOLUMES,
        "costs": {reading: asdict(costs) for reading, costs in readings.items()},
        "projections": [
            {"reading": reading, **projected(machine, costs, gpu_rate)}
            for reading, costs in readings.items()
            for machine in example_machines(calibration)
        ],
        "old_guide": {
            "runs": [old_run(*run, *each) for run in OLD_RUNS for each in readings.items()],
            "steps": steps_contradiction(),
        },
        **{key: checked[key] for key in ("checks", "largest_deviation", "tolerance")},
        "assumptions": assumptions(calibration, gpu_rate),
    }
    print(tables.part("whole_split", project=result, build=build), end="")
    return asked.publish(result)


# ---- what was measured --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a ``build.json`` says of the scan's costs and of the machine that it was measured on.

    `core_share` are the core seconds counted for each busy second of a thread that computes.
    """

    build: Mapping[str, Any]
    costs: SampleCosts
    cores: int
    memory_bytes: float
    core_share: float


def read_calibration(path: Path) -> Calibration:
    """Read the stage times from a result of ``run_build.py``."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        measured = result["formats"][FORMAT]
        busy_s = [float(measured["stages"][name]["busy"]["median"]) for name in STAGES]
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
            "run benchmarks/run_build.py again"
        ) from None
    *computing_s, write_s = busy_s
    there_s = cores * run_s
    if min(samples, cores, raw_bytes, compressed_bytes, sum(computing_s), there_s) <= 0:
        raise SystemExit(f"{path.name} tells of a run in which nothing happened: measure it again")
    share = min(1.0, there_s / sum(computing_s))
    each_s = [s * share / samples for s in computing_s] + [write_s / samples]
    costs = SampleCosts(compressed_bytes, raw_bytes, CT_RATE.size_bytes, *each_s)
    return Calibration(result, costs, cores, memory_bytes, share)


def read_gpu_rate(path: Path) -> float | None:
    """Samples per second of one GPU in a result of ``run_gpu.py``; None where there is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SystemExit(f"{path.name} is no JSON ({error}): run run_gpu.py again") from None
    contenders = result.get("pipeline", {}).get("contenders", {})
    return float(contenders["ctgpu"]["rate"]["median"]) if "ctgpu" in contenders else None


# ---- what is projected --------------------------------------------------------------------------


def sizes(costs: SampleCosts) -> dict[str, SampleCosts]:
    """What a sample costs by each reading of how large CT-RATE's volumes are."""
    scaled = {f"{tb} TB": costs.scaled_to(tb * 1e12 / ALL_VOLUMES) for tb in READINGS_TB}
    return {"as measured": costs, **scaled}


def example_machines(calibration: Calibration) -> list[Machine]:
    """The machines of the tables: the measuring one, and chosen examples."""
    here = Machine("the measuring machine, local Hub", calibration.cores, requests=None)
    small = Machine("16 cores, 10 Gbit/s", 16, 10 * GBIT, 2 * GB, 64 * GB)
    node = Machine("64 cores, 25 Gbit/s", 64, 25 * GBIT, 4 * GB, 512 * GB)
    split = replace(node, name="the same, 4 processes", processes=4)
    pro = QUOTAS["PRO account"]
    return [
        replace(here, memory_bytes=calibration.memory_bytes),
        Machine("16 cores, 1 Gbit/s", 16, GBIT, 0.5 * GB, 64 * GB),
        small,
        replace(small, name="16 cores, 10 Gbit/s, 1 GPU", gpus=1),
        Machine("64 cores, 10 Gbit/s", 64, 10 * GBIT, 2 * GB, 256 * GB),
        node,
        replace(node, name="the same, 32 workers", workers=32),
        split,
        replace(split, name="8 such nodes, PRO account", nodes=8, requests=pro),
        replace(split, name="8 such nodes, no quota", nodes=8, requests=None),
    ]


def projected(machine: Machine, costs: SampleCosts, gpu_rate: float | None) -> Facts:
    """How fast a machine would be, and what would decide."""

    def finite(values: Mapping[str, Any]) -> Facts:
        """JSON knows no infinity: what is not looked at is null."""
        return {name: None if value == UNLIMITED else value for name, value in values.items()}

    made = project(machine, [costs], gpu_rate)
    return {
        "machine": finite(asdict(machine)),
        "upper_bound": bool(machine.gpus) and gpu_rate is None,
        "samples_per_s": made.samples_per_s,
        "hours": made.hours(TRAIN_VOLUMES),
        **{name: getattr(made, name) for name in ("bottleneck", "second", "headroom")},
        "limits_samples_per_s": finite(made.limits),
    }


def assumptions(calibration: Calibration, gpu_rate: float | None) -> list[str]:
    """Everything that the figures rest on, one sentence or two each."""
    facts: Facts = {
        **asdict(calibration),
        "gpu_rate": gpu_rate,
        "all_volumes": ALL_VOLUMES,
        "readings_tb": READINGS_TB,
        "quotas": QUOTAS,
        "sustained_share": SUSTAINED_SHARE,
    }
    return tables.rendered("assumptions", facts).splitlines()


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
    gbit, cores = needs["network_gbit_per_s"], needs["all_cores"]
    slow_link, fast_link = (
        next((str(link) for link in _LINKS_GBIT if link >= rate), f"over {_LINKS_GBIT[-1]}")
        for rate in gbit
    )
    by_link_s = samples * costs.compressed_bytes / (10 * GBIT)
    by_cores_s = samples * costs.core_s / OLD_WORKERS
    fits = ("are too few", "are enough for its slow end only", "are enough")
    return {
        "samples": samples,
        "minutes": minutes,
        "workers": OLD_WORKERS,
        "reading": reading,
        "needs": needs,
        "verdict": f"it would need {tables.between(gbit)} Gbit/s of volumes, that is a link of "
        f"{slow_link} Gbit/s for the slow end and of {fast_link} for the fast one (10 Gbit/s: "
        f"{three_digits(by_link_s / 60)} min at best); and {tables.between(cores)} cores by "
        f"ctgpu's costs: {OLD_WORKERS} {fits[sum(n <= OLD_WORKERS for n in cores)]} "
        f"({three_digits(by_cores_s / 60)} min at best)",
    }


def steps_contradiction() -> dict[str, float]:
    """The old guide's two accounts of one step, as ratios."""
    facts: dict[str, float] = {}
    for what, (before, after) in OLD_STEPS_S.items():
        facts |= {f"{what}_s_before": before, f"{what}_s_after": after}
        facts[f"{what}_ratio"] = before / after
    return facts
