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
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ctgpu
import old_way
from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    in_words,
    load_real_ct,
    measured,
    peak_rss_bytes,
    phantom_ct,
    print_table,
)
from ctgpu.machine import usable_cores
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate, write_tables
from publishing import publish

REPO_ID = "local/ct-rate"
FORMATS = (".nii.gz", ".npz")


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--samples", type=int, default=8, help="samples of one ctgpu run")
    parser.add_argument(
        "--old-samples", type=int, default=2, help="samples of one run of the old way, per process"
    )
    parser.add_argument("--memory-limit-gb", type=float, default=2.0, help="ctgpu's byte budget")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.old_samples, arguments.repeats = 2, 1, 1
        voxels, spacing_mm, data = phantom_ct((96, 80, 60)), (3.0, 3.0, 6.0), "phantom 96×80×60"
    else:
        voxels, spacing_mm = load_real_ct(arguments.data), REAL_CT_SPACING_MM
        data = f"{REAL_CT_NAME}, its 112 slices repeated to 300, called {spacing_mm} mm"
    formats = {}
    for volume_format in FORMATS:
        with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
            formats[volume_format] = compare(
                Path(folder), voxels, spacing_mm, volume_format, arguments
            )
        show(volume_format, formats[volume_format])
    publish(
        arguments,
        "build",
        {
            "data": data,
            "shape_hwd": list(voxels.shape),
            "cores": usable_cores(),
            "samples_per_run": arguments.samples,
            "old_samples_per_process": arguments.old_samples,
            "memory_limit_bytes": int(arguments.memory_limit_gb * 1e9),
            "cache": "warm: every file was read before the first run",
            "formats": formats,
        },
    )


def compare(
    folder: Path,
    voxels: npt.NDArray[Any],
    spacing_mm: tuple[float, float, float],
    volume_format: Any,
    arguments: Any,
) -> dict[str, Any]:
    """Run every contender `repeats` times, one after the other, on one format."""
    cores = usable_cores()
    paths = make_source(folder / "source", voxels, spacing_mm, volume_format, arguments.samples)
    limit_bytes = int(arguments.memory_limit_gb * 1e9)
    runs: dict[str, list[float]] = {"old, one thread": [], "old, one process per core": []}
    runs["ctgpu"] = []
    reports = []
    spawn = multiprocessing.get_context("spawn")
    with (
        serve(folder / "source") as url,
        ProcessPoolExecutor(cores, mp_context=spawn) as old_pool,
    ):
        job = (url, paths[: arguments.old_samples], spacing_mm)
        for turn in range(-1, arguments.repeats):
            alone = old_pool.submit(run_old_way, *job, folder / "old-0").result()
            began = time.perf_counter()
            for future in [
                old_pool.submit(run_old_way, *job, folder / f"old-{n}") for n in range(cores)
            ]:
                future.result()
            together = time.perf_counter() - began
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                report = pool.submit(run_ctgpu, url, folder / "out", limit_bytes).result()
            shutil.rmtree(folder / "out")
            if turn < 0:
                continue
            runs["old, one thread"].append(arguments.old_samples / alone)
            runs["old, one process per core"].append(cores * arguments.old_samples / together)
            runs["ctgpu"].append(arguments.samples / report["wall_s"])
            reports.append(report)
    rates = {name: measured(values, "samples/s") for name, values in runs.items()}
    return {
        "file_bytes": (folder / "source" / paths[0]).stat().st_size,
        "contenders": {
            name: {"rate": rate, "ctgpu_over_this": rates["ctgpu"]["median"] / rate["median"]}
            for name, rate in rates.items()
        },
        "stages": stage_times(reports),
        "bottleneck": statistics.mode(report["bottleneck"] for report in reports),
        "peak_reserved": measured([r["peak_reserved_bytes"] for r in reports], "bytes"),
        "peak_rss": measured([r["peak_rss_bytes"] for r in reports], "bytes"),
    }


def stage_times(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each stage's work, summed over its threads, and how long one of its threads was there.

    What a thread waits is the difference.  It is not kept as a quantity of its own: a stage that
    gets faster waits longer.
    """
    stages: dict[str, Any] = {}
    for number, stage in enumerate(reports[0]["stages"]):
        runs = [report["stages"][number] for report in reports]
        threads = stage["threads"]
        busy = measured([run["busy_s"] for run in runs], "s")
        span = measured([(run["busy_s"] + run["waiting_s"]) / threads for run in runs], "s")
        stages[stage["name"]] = {
            "threads": threads,
            "busy": busy,
            "span": span,
            "busy_share": busy["median"] / (threads * span["median"]),
        }
    return stages


def make_source(
    root: Path,
    voxels: npt.NDArray[Any],
    spacing_mm: tuple[float, float, float],
    volume_format: Any,
    samples: int,
) -> list[str]:
    """Lay the scan out as CT-RATE under several names, and return their paths in the data set."""
    names = [f"valid_{n}_a_1" for n in range(1, samples + 1)]
    first = lay_out_ct_rate(
        root, {names[0]: Volume(voxels, spacing_mm)}, format=volume_format, tables=()
    )[names[0]]
    if volume_format == ".nii.gz":
        # The level that most tools write.
        first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 6, mtime=0))
    else:
        np.savez_compressed(first, voxels)
    paths = [first]
    for name in names[1:]:
        other = root / "dataset/valid_fixed" / name.rsplit("_", 2)[0] / name.rsplit("_", 1)[0]
        other.mkdir(parents=True)
        os.link(first, other / (name + volume_format))
        paths.append(other / (name + volume_format))
    write_tables(root, {name: Volume(voxels, spacing_mm) for name in names})
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


def run_old_way(
    url: str, paths: Sequence[str], spacing_mm: tuple[float, float, float], folder: Path
) -> float:
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


def run_ctgpu(url: str, out: Path, limit_bytes: int) -> dict[str, Any]:
    """One build from the Hub, and what it cost."""
    began = time.perf_counter()
    report = ctgpu.build(
        out, repo_id=REPO_ID, endpoint=url, device="cpu", memory_limit_bytes=limit_bytes
    )
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


def show(volume_format: str, result: Mapping[str, Any]) -> None:
    """Print the comparison and the stage table."""
    print_table(
        f"{volume_format}: samples per second, medians",
        ["contender", "samples/s", "ctgpu is"],
        [
            [name, facts["rate"]["median"], f"{facts['ctgpu_over_this']:.1f} ×"]
            for name, facts in result["contenders"].items()
        ],
    )
    print_table(
        f"{volume_format}: where ctgpu's time went (bottleneck: {result['bottleneck']}; peak "
        f"memory {in_words(result['peak_rss']['median'], 'bytes')})",
        ["stage", "threads", "busy s, all threads", "s from start to end", "busy share"],
        [
            [
                name,
                stage["threads"],
                stage["busy"]["median"],
                stage["span"]["median"],
                f"{stage['busy_share']:.0%}",
            ]
            for name, stage in result["stages"].items()
        ],
    )


if __name__ == "__main__":
    main()
