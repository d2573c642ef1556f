"""What do several processes cost, how do they scale, and are their bytes those of one?

A Ray cluster on this machine, whose nodes and cores are only said to be there.  First the same real
scans built alone, on the cluster, on the cluster with a worker killed and with a node lost in the
middle of a shard, and as two parts of a SLURM job array: every byte is compared.  Then what a Ray
task costs beside its shard.  Then scaling, with a simulated device stage: every worker makes
one-sample shards whose engine also waits a fixed time, so that the cores of this machine do not
decide, and what is lost is the cost of distributing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ctgpu
from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    load_real_ct,
    measured,
    phantom_ct,
    print_table,
)
from ctgpu.distribute.ray import RayExecutor
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.machine import usable_cores
from ctgpu.shards.manifest import write_manifest
from ctgpu.spec import Spec
from publishing import publish
from run_build import make_source

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "distribute")]

from driving import RayCluster, array, begin, catch, finish, ray_environment  # noqa: E402
from scenarios import snapshot  # noqa: E402

_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))
_TINY_SPACING_MM = (4.0, 4.0, 8.0)


class WaitingEngine(Engine):
    """The CPU engine, and a wait that stands for a device: simulated.

    Parameters
    ----------
    wait_s : float
        Seconds that every volume takes longer.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    @property
    def name(self) -> str:
        return "simulated"

    @property
    def concurrency(self) -> int:
        return 1

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        open_engine("cpu").run(jobs, threads=threads)
        time.sleep(self._wait_s * len(jobs))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "wait_s": self._wait_s}


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "", repeats=3)
    parser.add_argument("--samples", type=int, default=8, help="real scans, two to a shard")
    parser.add_argument("--wait-s", type=float, default=5.0, help="the simulated device stage")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    options = parser.parse_args()
    os.environ.update(ray_environment())
    workers, shards = (1, 4, 16, 64), 128
    if options.quick:
        options.samples, options.repeats, options.wait_s = 4, 1, 0.2
        workers, shards = (1, 2), 4
        voxels, spacing_mm, data = phantom_ct((96, 80, 60)), (3.0, 3.0, 6.0), "phantom 96×80×60"
        spec = Spec(shape_hwd=(240, 240, 120), target_spacing_mm=(1.5, 1.5, 3.0))
    else:
        voxels, spacing_mm, spec = load_real_ct(options.data), REAL_CT_SPACING_MM, Spec()
        data = f"{REAL_CT_NAME}, its 112 slices repeated to 300; 16 × 16 × 8 phantoms for cost"
    with tempfile.TemporaryDirectory(dir=options.work_dir) as name:
        folder = Path(name)
        make_source(folder / "source", voxels, spacing_mm, ".nii.gz", options.samples)
        del voxels
        result = {
            "data": data,
            "cores": usable_cores(),
            "cache": "warm: the sources were written just before",
            "bytes": same_bytes(folder, spec, options.samples),
            "overhead": overhead(folder, shards, options.repeats),
            "scaling": scaling(folder, workers, options.wait_s, options.repeats),
        }
    publish(options, "distribute", result)


# ---- the same bytes -----------------------------------------------------------------------------


def same_bytes(folder: Path, spec: Spec, samples: int) -> dict[str, Any]:
    """Builds by several processes, disturbed and not, held against that of one."""
    source = folder / "source"
    shape = ",".join(map(str, spec.shape_hwd))
    spacing = ",".join(map(str, spec.target_spacing_mm))
    options = ("--source", source, "--shape", shape, "--spacing", spacing)
    options += ("--samples-per-shard", 2, "--num-workers", 1)

    def alone(out: Path) -> None:
        finish(begin("--output-dir", out, *options))

    def parts(out: Path) -> None:
        running = [
            begin("--output-dir", out, *options, **array(element, 2)) for element in range(2)
        ]
        for process in running:
            finish(process)
        write_manifest(out)

    def undisturbed(out: Path) -> None:
        finish(begin("--output-dir", out, *options, "--ray", cluster.address))

    def killed(out: Path) -> None:
        driver = begin("--output-dir", out, *options, "--ray", cluster.address)
        for pid in catch(out, 1, driver):
            os.kill(pid, signal.SIGKILL)
        finish(driver)

    def node_lost(out: Path) -> None:
        driver = begin("--output-dir", out, *options, "--ray", cluster.address)
        cluster.lose_node(catch(out, 2, driver))
        finish(driver)

    ways: dict[str, Callable[[Path], None]] = {
        "Ray, 2 nodes": undisturbed,
        "2 parts of a job array": parts,
        "Ray, a worker killed": killed,
        "Ray, a node lost": node_lost,
    }
    alone(folder / "alone")
    expected = snapshot(folder / "alone")
    facts: dict[str, Any] = {}
    with RayCluster(2) as cluster:
        for name, way in ways.items():
            out = folder / "out"
            began = time.perf_counter()
            way(out)
            seconds = time.perf_counter() - began
            made = snapshot(out)
            facts[name] = {
                "time": measured([seconds], "s"),
                "files": len(expected),
                "files_that_differ": sorted(
                    file
                    for file in expected.keys() | made.keys()
                    if expected.get(file) != made.get(file)
                ),
            }
            shutil.rmtree(out)
    print_table(
        f"{samples} scans in shards of two, against one process, byte by byte",
        ["built by", "files", "differ", "s, once"],
        [
            [name, f["files"], len(f["files_that_differ"]), f["time"]["median"]]
            for name, f in facts.items()
        ],
    )
    return {"samples": samples, "ways": facts}


# ---- what a task costs --------------------------------------------------------------------------


def overhead(folder: Path, shards: int, repeats: int) -> dict[str, Any]:
    """Tiny shards in this process, and one Ray task each on one worker, in turns."""
    source = tiny_source(folder / "tiny", shards)
    seconds: dict[str, list[float]] = {"one process": [], "Ray, one worker": []}
    with connected(RayCluster(1)):
        for turn in range(-1, repeats):
            for name in seconds:
                executor = RayExecutor() if name.startswith("Ray") else None
                took = build_tiny(folder / "out", source, "cpu", executor)
                if turn >= 0:
                    seconds[name].append(took / shards)
    costs = [ray - own for own, ray in zip(*seconds.values(), strict=True)]
    facts = {
        "shards": shards,
        "contenders": {
            name: {"time_per_shard": measured(runs, "s")} for name, runs in seconds.items()
        },
        "ray_per_shard": measured(costs, "s"),
    }
    print_table(
        f"{shards} shards of one tiny sample each, one worker",
        ["made by", "ms a shard"],
        [
            *(
                [name, f"{f['time_per_shard']['median'] * 1e3:.1f}"]
                for name, f in facts["contenders"].items()
            ),
            ["Ray beside the shard", f"{facts['ray_per_shard']['median'] * 1e3:.1f}"],
        ],
    )
    return facts


# ---- scaling ------------------------------------------------------------------------------------


def scaling(
    folder: Path, workers: Sequence[int], wait_s: float, repeats: int
) -> dict[str, dict[str, Any]]:
    """Eight shards for each worker, each of which waits: simulated device, real rest."""
    facts: dict[str, dict[str, Any]] = {}
    for count in workers:
        shards = 8 * count
        source = tiny_source(folder / f"tiny-{count}", shards)
        engine = WaitingEngine(wait_s)
        rates, first = [], 0.0
        with connected(RayCluster(1, count)):
            # The first run also starts the workers' processes.
            for turn in range(-1, repeats):
                seconds = build_tiny(folder / "out", source, engine, RayExecutor())
                if turn < 0:
                    first = shards / seconds
                else:
                    rates.append(shards / seconds)
        rate = measured(rates, "shards/s")
        facts[str(count)] = {
            "shards": shards,
            "simulated": True,
            "wait_s": wait_s,
            "ideal_shards_per_s": count / wait_s,
            "rate": rate,
            "share_of_ideal": rate["median"] * wait_s / count,
            "with_start": measured([first], "shards/s"),
        }
    alone = facts[str(workers[0])]["rate"]["median"] / workers[0]
    for count, fact in facts.items():
        fact["this_over_one_worker"] = fact["rate"]["median"] / alone
        fact["share_of_linear"] = fact["this_over_one_worker"] / int(count)
    print_table(
        f"workers on {usable_cores()} cores; simulated device, {wait_s} s for each shard",
        ["workers", "shards", "shards/s", "ideal", "of ideal", "× one worker", "with start"],
        [
            [
                count,
                f["shards"],
                f["rate"]["median"],
                f["ideal_shards_per_s"],
                f"{f['share_of_ideal']:.0%}",
                f"{f['this_over_one_worker']:.1f}",
                f["with_start"]["median"],
            ]
            for count, f in facts.items()
        ],
    )
    return facts


@contextmanager
def connected(cluster: RayCluster) -> Iterator[None]:
    """This process is a driver on `cluster`, and its workers stay from one build to the next."""
    import ray

    with cluster:
        ray.init(cluster.address, log_to_driver=False, logging_level="WARNING")
        try:
            yield
        finally:
            ray.shutdown()


def tiny_source(root: Path, samples: int) -> Path:
    """So many names of one tiny phantom."""
    make_source(root, phantom_ct((32, 32, 16)), _TINY_SPACING_MM, ".nii.gz", samples)
    return root


def build_tiny(
    out: Path, source: Path, device: str | Engine, executor: RayExecutor | None
) -> float:
    """Seconds of one build of one-sample shards; what it made is removed."""
    began = time.perf_counter()
    report = ctgpu.build(
        out,
        source=source,
        spec=_TINY,
        samples_per_shard=1,
        device=device,
        num_workers=1,
        executor=executor,
    )
    seconds = time.perf_counter() - began
    assert report.exit_code == 0
    assert report.manifest["total_samples"] == report.manifest["planned_samples"]
    shutil.rmtree(out)
    return seconds


if __name__ == "__main__":
    main()
