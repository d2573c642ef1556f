"""How much does a first epoch on raw volumes gain from a build that fills its shards meanwhile?

``ctgpu build`` runs in a process of its own on the same cores, in the order of its plan.  A
simulated consumer takes every sample of the same plan: in that order, or shuffled, or with no build
beside it.  What counts is the CPU time of the process that trains: a sample that a shard has is
read, any other is made.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.harness.asking import Asked, Scan
from benchmarks.harness.measuring import Facts, measured, rounds
from benchmarks.questions.build import make_source
from ctgpu.loading import RawDataset, make_loader
from ctgpu.machine import usable_cores

ALONE, SAME, SHUFFLED = "no build beside it", "in the order of the build", "shuffled"


def answer(asked: Asked, scan: Scan) -> Facts:
    """An epoch of each, in turns."""
    samples, per_shard = (4, 1) if asked.quick else (24, 2)
    step_s = asked.options.step_ms / 1e3
    with asked.folder() as folder:
        source, shards = folder / "source", folder / "shards"
        make_source(source, scan, ".nii.gz", samples)
        ways = (ALONE, SAME, SHUFFLED)
        runs = {way: partial(epoch, way, source, shards, per_shard, step_s) for way in ways}
        taken = rounds(runs, asked.repeats, warm_ups=0)
    return {
        "data": f"{scan.about}, called {scan.spacing_mm} mm, as .nii.gz",
        "samples": samples,
        "samples_per_shard": per_shard,
        "cores": usable_cores(),
        "consumer": {"step_ms": asked.options.step_ms, "batch_size": 1, "simulated": True},
        "cache": "warm: every file was written just before",
        "contenders": {
            way: {"cpu_per_sample": measured([cpu_s / samples for cpu_s in used], "s")}
            for way, used in taken.items()
        },
    }


def epoch(way: str, source: Path, shards: Path, per_shard: int, step_s: float) -> float:
    """CPU seconds of this process in one epoch, from nothing."""
    options = {"order": "shuffled", "seed": 1, "samples_per_shard": per_shard, "device": "cpu"}
    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    where = ["--source", str(source), "--output-dir", str(shards), "--log-format", "json"]
    command = [sys.executable, "-m", "ctgpu.cli", "build", *where, *flags]
    if way == ALONE:
        command = [sys.executable, "-c", ""]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as build:
        began_s = time.process_time()
        data = RawDataset(source, shards=None if way == ALONE else shards, **options)  # type: ignore[arg-type]
        for _ in make_loader(data, shuffle=way == SHUFFLED):
            time.sleep(step_s)
        used_s = time.process_time() - began_s
    if build.returncode:
        raise SystemExit(
            f"the build beside it ended with {build.returncode}: {shlex.join(command)}"
        )
    shutil.rmtree(shards, ignore_errors=True)
    return used_s
