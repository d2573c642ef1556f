"""How fast does the whole job run, from the Hub to shards, against the way it was done before?

A local Hub in a process of its own serves full-size scans.  The same files go through the old way
(one thread: ``hf_hub_download``, nibabel or ``np.load``, numpy and torch steps, ``TarWriter``), the
old way as one process per core, and ``ctgpu.build`` with download and payload checksums on; then
``ctgpu.build`` from a local folder with each ``--compress``, also onto a slow disk (simulated: each
write waits its turn).  Runs are interleaved; files are warm; nothing is downloaded from anywhere.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ctgpu
from benchmarks.harness.asking import Asked, Question, Scan
from benchmarks.harness.measuring import Facts, measured, rounds, seconds_of, with_ratio
from benchmarks.harness.storage import throttled
from benchmarks.peers import old_way
from ctgpu.building.calibration import WAYS
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate, write_tables
from ctgpu.volume.raw import Spacing

REPO_ID = "local/ct-rate"
FORMATS = (".nii.gz", ".npz")
MEMORY_LIMIT_BYTES = 2_000_000_000
#: Disks that compressed shards are written to, and to how many bytes a second they are held.
DISKS = {"disk, as it is": math.inf, "simulated, 0.1 GB/s": 0.1e9}
SPAWN = multiprocessing.get_context("spawn")
ALONE, PER_CORE = "old, one thread", "old, one process per core"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the build by format of the files."""
    question = Question("build", __doc__)
    question.add_argument(
        "--format", choices=["dicom"], help="only series in a local folder, beside SimpleITK"
    )
    asked = question.asked(arguments, repeats=1)
    if asked.options.format is not None:
        from benchmarks.questions import build_dicom

        asked.name = "build_dicom"
        return asked.publish(build_dicom.answer(asked))
    scan = asked.scan((48, 40, 30))
    return asked.publish(
        {
            "data": f"{scan.about}, called {scan.spacing_mm} mm",
            "shape_hwd": list(scan.voxels.shape),
            **settings(asked),
            "memory_limit_bytes": MEMORY_LIMIT_BYTES,
            "formats": {name: of_format(asked, scan, name) for name in FORMATS},
            "compressed": compressed(asked, scan),
        }
    )


def settings(asked: Asked) -> Facts:
    """Samples of one run of ctgpu, and of one of the old way in each of its processes."""
    ours, old = (2, 1) if asked.quick else (8, 2)
    return {
        "cores": usable_cores(),
        "samples_per_run": ours,
        "old_samples_per_process": old,
        "cache": "warm: every file was read before the first run",
    }


def of_format(asked: Asked, scan: Scan, volume_format: str) -> Facts:
    """Every contender on files of one format, from a local Hub."""
    how = settings(asked)
    with asked.folder() as folder:
        source = folder / "source"
        paths = make_source(source, scan, volume_format, how["samples_per_run"])
        with serve(source) as url:
            old_paths = paths[: how["old_samples_per_process"]]
            old = partial(run_old_way, url, old_paths, scan.spacing_mm)
            hub = {"repo_id": REPO_ID, "endpoint": url}
            facts = race(asked, folder, (ALONE, PER_CORE), old, hub)
        return {"file_bytes": (source / paths[0]).stat().st_size, **facts}


def race(
    asked: Asked, folder: Path, names: tuple[str, str], old: Callable[[Path], None], source: Facts
) -> Facts:
    """`old` into a folder, in one process and in one per core, and ctgpu's build, in turns."""
    how = settings(asked)

    def by_old(processes: int) -> float:
        places = [folder / f"old-{n}" for n in range(processes)]
        seconds = seconds_of(lambda: list(pool.map(old, places)))
        for place in places:
            shutil.rmtree(place)
        return seconds

    processes = dict(zip(names, (1, how["cores"]), strict=True))
    runs: dict[str, Callable[[], Any]] = {n: partial(by_old, of) for n, of in processes.items()}
    runs["ctgpu"] = partial(one_build, folder / "out", source)
    with ProcessPoolExecutor(how["cores"], SPAWN) as pool:
        kept = rounds(runs, asked.repeats, warm_ups=0 if asked.quick else 1)
    reports = kept["ctgpu"]
    seconds = kept | {"ctgpu": [report["wall_s"] for report in reports]}
    made = {name: of * how["old_samples_per_process"] for name, of in processes.items()}
    made["ctgpu"] = how["samples_per_run"]
    contenders: dict[str, Facts] = {
        name: {"rate": measured([made[name] / s for s in taken], "samples/s")}
        for name, taken in seconds.items()
    }
    return {
        "contenders": with_ratio(contenders, "ctgpu_over_this", "ctgpu", "rate"),
        "stages": stage_times(reports),
        "bottleneck": statistics.mode(report["bottleneck"] for report in reports),
        "peak_reserved": measured([r["peak_reserved_bytes"] for r in reports], "bytes"),
        "peak_rss": measured([r["peak_rss_bytes"] for r in reports], "bytes"),
    }


def compressed(asked: Asked, scan: Scan) -> Facts:
    """What ``--compress`` costs a build of `FORMATS[0]`, and what it gains on a slow disk."""
    samples = settings(asked)["samples_per_run"]
    with asked.folder() as folder:
        out, spec = folder / "out", Spec(shape_hwd=(96, 80, 48)) if asked.quick else Spec()
        how = {"source": folder / "source", "spec": spec}
        make_source(folder / "source", scan, FORMATS[0], samples)
        runs = {
            f"{disk}, {way}": partial(one_build, out, how | {"compress": way}, rate)
            for disk, rate in DISKS.items()
            for way in WAYS
        }
        taken = rounds(runs, max(1, asked.repeats // 2), warm_ups=0)
    found: Facts = {}
    for disk in DISKS:
        facts: dict[str, Facts] = {}
        for way in WAYS:
            reports = taken[f"{disk}, {way}"]
            facts[f"ctgpu, {way}"] = {
                "rate": measured([samples / of["wall_s"] for of in reports], "samples/s"),
                "cpu_per_sample": measured([of["cpu_s"] / samples for of in reports], "s"),
            }
        with_ratio(facts, "rate_over_none", "ctgpu, none", "rate")
        with_ratio(facts, "cpu_over_none", "ctgpu, none", "cpu_per_sample")
        found[disk] = {"contenders": facts}
    return found


def stage_times(reports: Sequence[Facts]) -> Facts:
    """Each stage's work, summed over its threads, and how long one of its threads was there.

    What a thread waits is the difference.  It is not kept as a quantity of its own: a stage that
    gets faster waits longer.
    """
    stages: Facts = {}
    for runs in zip(*(report["stages"] for report in reports), strict=True):
        threads = runs[0]["threads"]
        busy = measured([run["busy_s"] for run in runs], "s")
        span = measured([(run["busy_s"] + run["waiting_s"]) / threads for run in runs], "s")
        share = busy["median"] / (threads * span["median"])
        of = {"threads": threads, "busy": busy, "span": span, "busy_share": share}
        stages[runs[0]["name"]] = of
    return stages


def make_source(root: Path, scan: Scan, volume_format: Any, samples: int) -> list[str]:
    """Lay the scan out as CT-RATE under several names, and return their paths in the data set."""
    names = [f"valid_{n}_a_1" for n in range(1, samples + 1)]
    volume = Volume(scan.voxels, scan.spacing_mm)
    only_first = {names[0]: volume}
    first = lay_out_ct_rate(root, only_first, format=volume_format, nested=False)[names[0]]
    if volume_format == ".nii.gz":
        # The level that most tools write.
        first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 6, mtime=0))
    else:
        np.savez_compressed(first, scan.voxels)
    paths = [first.with_name(name + volume_format) for name in names]
    for path in paths[1:]:
        path.hardlink_to(first)
    write_tables(root, dict.fromkeys(names, volume))
    return [path.relative_to(root).as_posix() for path in paths]


@contextlib.contextmanager
def serve(root: Path) -> Iterator[str]:
    """A local Hub in a process of its own; yields its address."""
    command = [sys.executable, "-m", "ctgpu.testing.hub", str(root), "--repo-id", REPO_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def run_old_way(url: str, paths: Sequence[str], spacing_mm: Spacing, folder: Path) -> None:
    """Make a shard of `paths` in one thread."""
    import torch
    import webdataset

    torch.set_num_threads(1)
    folder.mkdir()
    labels = np.zeros(18, np.float32)
    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as sink:
        for path in paths:
            local = old_way.download(url, REPO_ID, path, folder / "download")
            volume = old_way.preprocess(old_way.read(local), spacing_mm)
            key = local.name.partition(".")[0]
            old_way.write(sink, key, volume, labels, "findings\nimpressions")
            local.unlink()


def one_build(out: Path, source: Facts, disk_bytes_per_s: float = math.inf) -> Facts:
    """:func:`run_ctgpu` in a process of its own; what it built is removed."""
    with ProcessPoolExecutor(1, SPAWN) as alone:
        report = alone.submit(run_ctgpu, out, source, disk_bytes_per_s).result()
    shutil.rmtree(out)
    return report


def run_ctgpu(out: Path, source: Facts, disk_bytes_per_s: float) -> Facts:
    """One build onto a disk of such a rate, and what it cost."""
    began, began_cpu = time.perf_counter(), time.process_time()
    with throttled("pwrite", disk_bytes_per_s):
        report = ctgpu.build(out, **source, device="cpu", memory_limit_bytes=MEMORY_LIMIT_BYTES)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    assert report.exit_code == 0
    assert report.pipeline is not None
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "stages": [asdict(stage) for stage in report.pipeline.stages],
        "bottleneck": report.pipeline.bottleneck.name,
        "peak_reserved_bytes": report.pipeline.peak_reserved_bytes,
        # In kibibytes, but for macOS.
        "peak_rss_bytes": peak_rss if sys.platform == "darwin" else peak_rss * 1024,
    }
