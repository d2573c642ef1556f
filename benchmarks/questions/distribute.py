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
from benchmarks.harness.asking import Question, Scan
from benchmarks.harness.measuring import Facts, Run, measured, rounds, seconds_of
from benchmarks.questions.build import make_source
from ctgpu.distribute.ray import RayExecutor
from ctgpu.engines import Engine, Job
from ctgpu.engines.cpu import CpuEngine
from ctgpu.machine import usable_cores
from ctgpu.shards.manifest import write_manifest
from ctgpu.spec import Spec

_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))


class WaitingEngine(CpuEngine):
    """The CPU engine, and a wait of some seconds a volume that stands for a device: simulated."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self._wait_s = wait_s

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        super().run(jobs, threads=threads)
        time.sleep(self._wait_s * len(jobs))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "name": "simulated", "wait_s": self._wait_s}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and measure costs and scaling."""
    asked = Question("distribute", __doc__, repeats=3).asked(arguments, repeats=1)
    scan, about, spec = asked.scan(), "; 16 × 16 × 8 phantoms for cost", Spec()
    samples, shards, workers, wait_s = 8, 128, [1, 4, 16, 64], 5.0
    if asked.quick:
        about, spec = "", Spec(shape_hwd=(240, 240, 120), target_spacing_mm=(1.5, 1.5, 3.0))
        samples, shards, workers, wait_s = 4, 4, [2], 0.2
    os.environ.update(ray_environment())
    with asked.folder() as folder:
        make_source(folder / "source", scan, ".nii.gz", samples)
        facts = {
            "data": scan.about + about,
            "cores": usable_cores(),
            "cache": "warm: the sources were written just before",
            "bytes": {"samples": samples, "ways": same_bytes(folder, spec)},
            "overhead": overhead(folder, shards, asked.repeats),
            "scaling": scaling(folder, workers, wait_s, asked.repeats),
        }
    return asked.publish(facts)


# ---- the same bytes -----------------------------------------------------------------------------


def same_bytes(folder: Path, spec: Spec) -> Facts:
    """Builds by several processes, disturbed and not, held against that of one."""
    out = folder / "out"
    shape, spacing = (",".join(map(str, of)) for of in (spec.shape_hwd, spec.target_spacing_mm))
    options: tuple[object, ...] = (
        *("--output-dir", out, "--source", folder / "source", "--shape", shape),
        *("--spacing", spacing, "--samples-per-shard", 2, "--num-workers", 1),
    )

    def parts() -> None:
        for process in [begin(*options, **array(element, 2)) for element in range(2)]:
            finish(process)
        write_manifest(out)

    def on_cluster(disturb: Any = lambda driver: None) -> None:
        driver = begin(*options, "--ray", cluster.address)
        disturb(driver)
        finish(driver)

    def kill_worker(driver: Any) -> None:
        for pid in catch(out, 1, driver):
            os.kill(pid, signal.SIGKILL)

    def lose_node(driver: Any) -> None:
        cluster.lose_node(catch(out, 2, driver))

    ways: dict[str, Run] = {
        "Ray, 2 nodes": on_cluster,
        "2 parts of a job array": parts,
        "Ray, a worker killed": partial(on_cluster, kill_worker),
        "Ray, a node lost": partial(on_cluster, lose_node),
    }
    finish(begin(*options))
    expected = snapshot(out)
    facts: Facts = {}
    with RayCluster(2) as cluster:
        for name, way in ways.items():
            shutil.rmtree(out)
            seconds = seconds_of(way)
            made = snapshot(out)
            names = sorted(expected.keys() | made.keys())
            differ = [n for n in names if made.get(n) != expected.get(n)]
            of = {"time": measured([seconds], "s"), "files": len(expected)}
            facts[name] = of | {"files_that_differ": differ}
    shutil.rmtree(out)
    return facts


# ---- what a task costs, and scaling -------------------------------------------------------------


def overhead(folder: Path, shards: int, repeats: int) -> Facts:
    """Tiny shards in this process, and one Ray task each on one worker, in turns."""
    build = partial(build_tiny, folder / f"tiny-{shards}", shards, "cpu")
    with connected(RayCluster(1)):
        runs = {"one process": build, "Ray, one worker": partial(build, by_ray=True)}
        taken = rounds(runs, repeats)
    costs = [ray - own for own, ray in zip(*taken.values(), strict=True)]
    return {
        "shards": shards,
        "contenders": {name: {"time_per_shard": measured(s, "s")} for name, s in taken.items()},
        "ray_per_shard": measured(costs, "s"),
    }


def scaling(folder: Path, workers: Sequence[int], wait_s: float, repeats: int) -> Facts:
    """Eight shards for each worker, each of which waits: simulated device, real rest."""
    facts: dict[int, Facts] = {}
    for count in workers:
        shards, engine = 8 * count, WaitingEngine(wait_s)
        build = partial(build_tiny, folder / f"tiny-{shards}", shards, engine, by_ray=True)
        with connected(RayCluster(1, count)):
            # The first run also starts the workers' processes.
            first, *rates = [1 / build() for _ in range(1 + repeats)]
        rate = measured(rates, "shards/s")
        alone = facts.get(workers[0], {"rate": rate})["rate"]["median"] / workers[0]
        facts[count] = {
            "shards": shards,
            "simulated": True,
            "wait_s": wait_s,
            "ideal_shards_per_s": count / wait_s,
            "rate": rate,
            "share_of_ideal": rate["median"] * wait_s / count,
            "with_start": measured([first], "shards/s"),
            "this_over_one_worker": rate["median"] / alone,
            "share_of_linear": rate["median"] / alone / count,
        }
    return {str(count): of for count, of in facts.items()}


@contextmanager
def connected(cluster: RayCluster) -> Iterator[None]:
    """This process is a driver on `cluster`, and its workers stay from one build to the next."""
    import ray

    # Workers need not find this module for its engine.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster, ray.init(cluster.address, log_to_driver=False, logging_level="WARNING"):
        yield


def build_tiny(source: Path, shards: int, device: str | Engine, *, by_ray: bool = False) -> float:
    """Seconds for each shard of one build of so many, of one tiny phantom each; it is removed."""
    if not source.exists():
        make_source(source, Scan.phantom((32, 32, 16), (4.0, 4.0, 8.0)), ".nii.gz", shards)
    out = source.with_name("out")
    began = time.perf_counter()
    how: Facts = {"spec": _TINY, "samples_per_shard": 1, "device": device, "num_workers": 1}
    report = ctgpu.build(out, source=source, executor=RayExecutor() if by_ray else None, **how)
    seconds = time.perf_counter() - began
    assert report.exit_code == 0
    assert report.manifest["total_samples"] == report.manifest["planned_samples"]
    shutil.rmtree(out)
    return seconds / shards
