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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Of tests/, which the script has made known.
from driving import RayCluster, array, begin, catch, finish, ray_environment
from scenarios import snapshot

import ctgpu
from benchmarks.harness.asking import Question, Scan, phantom_ct
from benchmarks.harness.measuring import Facts, Run, measured, rounds, seconds_of
from benchmarks.questions.build import make_source
from ctgpu.distribute.ray import RayExecutor
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.machine import usable_cores
from ctgpu.shards.manifest import write_manifest
from ctgpu.spec import Spec

_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and measure costs and scaling."""
    question = Question("distribute", __doc__, repeats=3)
    add = question.add_argument
    add("--samples", type=int, default=8, help="real scans, two to a shard")
    add("--wait-s", type=float, default=5.0, help="the simulated device stage")
    asked = question.asked(arguments, samples=4, repeats=1, wait_s=0.2)
    os.environ.update(ray_environment())
    options, scan = asked.options, asked.scan()
    workers, shards = ((1, 2), 4) if asked.quick else ((1, 4, 16, 64), 128)
    halved = Spec(shape_hwd=(240, 240, 120), target_spacing_mm=(1.5, 1.5, 3.0))
    with asked.folder() as folder:
        make_source(folder / "source", scan, ".nii.gz", options.samples)
        about = "" if asked.quick else "; 16 × 16 × 8 phantoms for cost"
        facts = {
            "data": scan.about + about,
            "cores": usable_cores(),
            "cache": "warm: the sources were written just before",
            "bytes": same_bytes(folder, halved if asked.quick else Spec(), options.samples),
            "overhead": overhead(folder, shards, asked.repeats),
            "scaling": scaling(folder, workers, options.wait_s, asked.repeats),
        }
    return asked.publish(facts)


# ---- the same bytes -----------------------------------------------------------------------------


def same_bytes(folder: Path, spec: Spec, samples: int) -> Facts:
    """Builds by several processes, disturbed and not, held against that of one."""
    out = folder / "out"
    shape, spacing = (",".join(map(str, of)) for of in (spec.shape_hwd, spec.target_spacing_mm))
    options: tuple[object, ...] = (
        "--output-dir",
        out,
        "--source",
        folder / "source",
        "--shape",
        shape,
    )
    options += ("--spacing", spacing, "--samples-per-shard", 2, "--num-workers", 1)

    def parts() -> None:
        for process in [begin(*options, **array(element, 2)) for element in range(2)]:
            finish(process)
        write_manifest(out)

    cluster = RayCluster(2)

    def on_cluster(disturb: Any = lambda driver: None) -> None:
        driver = begin(*options, "--ray", cluster.address)
        disturb(driver)
        finish(driver)

    def kill_worker(driver: Any) -> None:
        for pid in catch(out, 1, driver):
            os.kill(pid, signal.SIGKILL)

    ways: dict[str, Run] = {
        "Ray, 2 nodes": on_cluster,
        "2 parts of a job array": parts,
        "Ray, a worker killed": partial(on_cluster, kill_worker),
        "Ray, a node lost": partial(on_cluster, lambda d: cluster.lose_node(catch(out, 2, d))),
    }
    finish(begin(*options))
    expected = snapshot(out)
    facts: Facts = {}
    with cluster:
        for name, way in ways.items():
            shutil.rmtree(out)
            seconds = seconds_of(way)
            made = snapshot(out)
            differ = {f for f in expected.keys() | made.keys() if expected.get(f) != made.get(f)}
            facts[name] = {
                "time": measured([seconds], "s"),
                "files": len(expected),
                "files_that_differ": sorted(differ),
            }
    shutil.rmtree(out)
    return {"samples": samples, "ways": facts}


# ---- what a task costs, and scaling -------------------------------------------------------------


def overhead(folder: Path, shards: int, repeats: int) -> Facts:
    """Tiny shards in this process, and one Ray task each on one worker, in turns."""
    source = tiny_source(folder / "tiny", shards)
    build = partial(build_tiny, folder / "out", source, "cpu")
    with connected(RayCluster(1)):
        runs = {"one process": build, "Ray, one worker": partial(build, by_ray=True)}
        of_shard = {
            name: [seconds / shards for seconds in taken]
            for name, taken in rounds(runs, repeats).items()
        }
    costs = [ray - own for own, ray in zip(*of_shard.values(), strict=True)]
    return {
        "shards": shards,
        "contenders": {n: {"time_per_shard": measured(runs, "s")} for n, runs in of_shard.items()},
        "ray_per_shard": measured(costs, "s"),
    }


def scaling(folder: Path, workers: Sequence[int], wait_s: float, repeats: int) -> Facts:
    """Eight shards for each worker, each of which waits: simulated device, real rest."""
    facts: Facts = {}
    for count in workers:
        shards = 8 * count
        source = tiny_source(folder / f"tiny-{count}", shards)
        build = partial(build_tiny, folder / "out", source, WaitingEngine(wait_s), by_ray=True)
        with connected(RayCluster(1, count)):
            # The first run also starts the workers' processes.
            first, *rates = [
                shards / seconds for seconds in rounds({"": build}, 1 + repeats, warm_ups=0)[""]
            ]
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
    for count_, fact in facts.items():
        fact["this_over_one_worker"] = fact["rate"]["median"] / alone
        fact["share_of_linear"] = fact["this_over_one_worker"] / int(count_)
    return facts


@contextmanager
def connected(cluster: RayCluster) -> Iterator[None]:
    """This process is a driver on `cluster`, and its workers stay from one build to the next."""
    import ray

    # Workers need not find this module for its engine.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster:
        ray.init(cluster.address, log_to_driver=False, logging_level="WARNING")
        try:
            yield
        finally:
            ray.shutdown()


def tiny_source(root: Path, samples: int) -> Path:
    """So many names of one tiny phantom."""
    make_source(root, Scan(phantom_ct((32, 32, 16)), (4.0, 4.0, 8.0), ""), ".nii.gz", samples)
    return root


def build_tiny(out: Path, source: Path, device: str | Engine, *, by_ray: bool = False) -> float:
    """Seconds of one build of one-sample shards; what it made is removed."""
    began = time.perf_counter()
    report = ctgpu.build(
        out,
        source=source,
        spec=_TINY,
        samples_per_shard=1,
        device=device,
        num_workers=1,
        executor=RayExecutor() if by_ray else None,
    )
    seconds = time.perf_counter() - began
    assert report.exit_code == 0
    assert report.manifest["total_samples"] == report.manifest["planned_samples"]
    shutil.rmtree(out)
    return seconds
