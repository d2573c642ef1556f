"""How fast does training on raw volumes run, without shards?

Full-size scans lie in a folder, and on a local Hub in a process of its own.  By format of files:

- samples per second and CPU seconds per sample of whole epochs of ``RawDataset``, beside those of
  MONAI's ThreadDataLoader, TorchIO's SubjectsLoader and the old way in the workers of a DataLoader
  on the same files and cores (``peers/raw_loaders.py``), and of ctgpu's own shards;
- the time to the first batch, from nothing;
- how much of its time a simulated consumer of so long a step waits.

Runs are interleaved; files are warm.  Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ctgpu
from benchmarks.harness.asking import Asked, Question, Scan
from benchmarks.harness.measuring import Facts, Run, measured, rated, rounds, timed, with_ratio
from benchmarks.peers.raw_loaders import OPENERS, READ_NPZ
from benchmarks.questions import beside_build
from benchmarks.questions.build import FORMATS, REPO_ID, make_source, serve
from ctgpu.loading import RawDataset, VolumeDataset, make_loader
from ctgpu.machine import default_memory_limit_bytes, usable_cores

OURS, HUB, SHARDS = "ctgpu, raw files", "ctgpu, raw, from a local Hub", "ctgpu, its shards"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure it by format of the files."""
    question = Question("online", __doc__, repeats=5)
    question.add_argument("--step-ms", type=float, default=379.0, help="the simulated step")
    question.add_argument("--samples", type=int, default=8, help="of an epoch")
    question.add_argument(
        "--beside-a-build", action="store_true", help="only a first epoch, while shards appear"
    )
    asked = question.asked(arguments, repeats=1, samples=2, step_ms=20.0)
    scan = asked.scan((48, 40, 30))
    if asked.options.beside_a_build:
        asked.name = "online_beside_build"
        return asked.publish(beside_build.answer(asked, scan))
    return asked.publish(
        {
            "data": f"{scan.about}, called {scan.spacing_mm} mm",
            "samples": asked.options.samples,
            "cores": usable_cores(),
            "consumer": {"step_ms": asked.options.step_ms, "batch_size": 1, "simulated": True},
            "cache": "warm: every file was read before the first run",
            "formats": {name: of_format(asked, scan, name) for name in FORMATS},
        }
    )


def of_format(asked: Asked, scan: Scan, volume_format: str) -> Facts:
    """All contenders on files of one format."""
    samples = asked.options.samples
    with asked.folder() as folder:
        source = folder / "source"
        files = [source / path for path in make_source(source, scan, volume_format, samples)]
        ctgpu.build(folder / "shards", source=source, device="cpu", samples_per_shard=1)
        with serve(source) as url:
            raw = RawDataset(source, device="cpu")
            hub = RawDataset(repo_id=REPO_ID, endpoint=url, device="cpu")
            loaders: dict[str, Iterable[Any]] = {
                OURS: make_loader(raw),
                HUB: make_loader(hub),
                SHARDS: make_loader(VolumeDataset(folder / "shards", verify="off")),
            }
            opened, not_run = peers(files, scan, volume_format)
            loaders |= opened
            # Every batch, none kept.
            epochs: dict[str, Run] = {n: partial(deque, of, maxlen=0) for n, of in loaders.items()}
            contenders = rated(epochs, samples, asked.repeats)
            memory = {"limit_bytes": default_memory_limit_bytes(), "peak_bytes": raw.peak_bytes}
            # From a folder that nothing is known of.
            first = {OURS: lambda: next(iter(make_loader(RawDataset(source, device="cpu"))))}
            both = {name: loaders[name] for name in (OURS, SHARDS)}
            return {
                "memory": memory,
                "contenders": with_ratio(contenders, "ctgpu_over_this", OURS, "rate"),
                "not_run": not_run,
                "first_batch": timed(first, asked.repeats),
                "simulated_consumer": waits(both, asked.options.step_ms / 1e3, asked.repeats),
            }


def peers(
    files: Sequence[Path], scan: Scan, volume_format: str
) -> tuple[dict[str, Iterable[Any]], dict[str, str]]:
    """Those that run here, and why the others do not."""
    opened: dict[str, Iterable[Any]] = {}
    not_run: dict[str, str] = {}
    for name, opener in OPENERS.items():
        if volume_format == ".npz" and name not in READ_NPZ:
            not_run[name] = "it does not read .npz without a spacing"
            continue
        try:
            opened[name] = opener(files, scan.spacing_mm, usable_cores())
        except ImportError as error:
            not_run[name] = f"{type(error).__name__}: {error}"
    return opened, not_run


def waits(loaders: dict[str, Iterable[Any]], step_s: float, repeats: int) -> Facts:
    """The share of its time that a consumer waits which takes so long for each batch."""

    def share(loader: Iterable[Any]) -> float:
        waited_s = []
        since_s = began_s = time.perf_counter()
        for _ in loader:
            waited_s.append(time.perf_counter() - since_s)
            time.sleep(step_s)
            since_s = time.perf_counter()
        first_s, *others_s = waited_s  # for the first batch anyone waits
        return 100 * sum(others_s) / (since_s - began_s - first_s)

    taken = rounds({name: partial(share, of) for name, of in loaders.items()}, repeats)
    return {name: {"waited": measured(shares, "% of time")} for name, shares in taken.items()}
