"""How fast does the whole job run, from the Hub to shards, against the way it was done before?

A local Hub in a process of its own serves full-size scans.  The same files go through the old way
(one thread: ``hf_hub_download``, nibabel or ``np.load``, numpy and torch steps, ``TarWriter``), the
old way as one process per core, and ``ctgpu.build`` with download and payload checksums on.  Runs
are interleaved; files are warm; nothing is downloaded from anywhere.
"""

from __future__ import annotations

import contextlib
import gzip
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
from benchmarks.peers import old_way
from ctgpu.machine import usable_cores
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate, write_tables
from ctgpu.volume.raw import Spacing

REPO_ID = "local/ct-rate"
FORMATS = (".nii.gz", ".npz")
MEMORY_LIMIT_BYTES = 2_000_000_000
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
    scan, formats = asked.scan((48, 40, 30)), {}
    # Of one run of ctgpu, and of one run of the old way in each of its processes.
    samples = (2, 1) if asked.quick else (8, 2)
    with ProcessPoolExecutor(usable_cores(), mp_context=SPAWN) as old_pool:
        for volume_format in FORMATS:
            with asked.folder() as at:
                formats[volume_format] = compare(at, scan, volume_format, samples, asked, old_pool)
    return asked.publish(
        {
            "data": f"{scan.about}, called {scan.spacing_mm} mm",
            "shape_hwd": list(scan.voxels.shape),
            "cores": usable_cores(),
            "samples_per_run": samples[0],
            "old_samples_per_process": samples[1],
            "memory_limit_bytes": MEMORY_LIMIT_BYTES,
            "cache": "warm: every file was read before the first run",
            "formats": formats,
        }
    )


def compare(
    folder: Path,
    scan: Scan,
    volume_format: Any,
    samples: tuple[int, int],
    asked: Asked,
    old_pool: ProcessPoolExecutor,
) -> Facts:
    """Run every contender, one after the other, on one format."""
    cores, (our_samples, old_samples) = usable_cores(), samples
    paths = make_source(folder / "source", scan, volume_format, our_samples)
    with serve(folder / "source") as url:
        old_job = (url, paths[:old_samples], scan.spacing_mm)

        def alone() -> float:
            return old_pool.submit(run_old_way, *old_job, folder / "old-0").result()

        def per_core() -> None:
            folders = [folder / f"old-{n}" for n in range(cores)]
            for future in [old_pool.submit(run_old_way, *old_job, place) for place in folders]:
                future.result()

        def ours() -> Facts:
            with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
                source = {"repo_id": REPO_ID, "endpoint": url}
                report = pool.submit(run_ctgpu, folder / "out", source).result()
            shutil.rmtree(folder / "out")
            return report

        runs: dict[str, Callable[[], Any]] = {
            ALONE: alone,
            PER_CORE: partial(seconds_of, per_core),
            "ctgpu": ours,
        }
        kept = rounds(runs, asked.repeats, warm_ups=0 if asked.quick else 1)
    reports = kept["ctgpu"]
    taken = kept | {"ctgpu": [report["wall_s"] for report in reports]}
    made = (old_samples, cores * old_samples, our_samples)
    contenders: dict[str, Facts] = {
        name: {"rate": measured([count / seconds for seconds in taken[name]], "samples/s")}
        for name, count in zip(runs, made, strict=True)
    }
    return {
        "file_bytes": (folder / "source" / paths[0]).stat().st_size,
        "contenders": with_ratio(contenders, "ctgpu_over_this", "ctgpu", "rate"),
        "stages": stage_times(reports),
        "bottleneck": statistics.mode(report["bottleneck"] for report in reports),
        "peak_reserved": measured([r["peak_reserved_bytes"] for r in reports], "bytes"),
        "peak_rss": measured([r["peak_rss_bytes"] for r in reports], "bytes"),
    }


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


def run_old_way(url: str, paths: Sequence[str], spacing_mm: Spacing, folder: Path) -> float:
    """Seconds that one thread takes for `paths`; imports are not counted."""
    import huggingface_hub  # noqa: F401
    import nibabel  # noqa: F401
    import torch
    import webdataset

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(18, np.float32)
    began = time.perf_counter()
    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as sink:
        for path in paths:
            local = old_way.download(url, REPO_ID, path, folder / "download")
            volume = old_way.preprocess(old_way.read(local), spacing_mm)
            key = local.name.partition(".")[0]
            old_way.write(sink, key, volume, labels, "findings\nimpressions")
            local.unlink()
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes, but for macOS


def run_ctgpu(out: Path, source: Facts) -> Facts:
    """One build, and what it cost."""
    began = time.perf_counter()
    report = ctgpu.build(out, **source, device="cpu", memory_limit_bytes=MEMORY_LIMIT_BYTES)
    wall_s = time.perf_counter() - began
    assert report.exit_code == 0
    assert report.pipeline is not None
    return {
        "wall_s": wall_s,
        "stages": [asdict(stage) for stage in report.pipeline.stages],
        "bottleneck": report.pipeline.bottleneck.name,
        "peak_reserved_bytes": report.pipeline.peak_reserved_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
    }
