"""Cold files against ``dd``, memory over three epochs, sharing among ranks, and exact resuming."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from common import measured, print_table
from ctgpu.loading import VolumeDataset, make_loader
from loading_contenders import OURS
from loading_data import Data

#: Steps between the stops of :func:`resume`.
STOP_EVERY = 50


def cold(data: Data, repeats: int) -> dict[str, Any]:
    """The loader on files that are not in the page cache, against ``dd``."""
    tars = data.tars
    size_bytes = sum(tar.stat().st_size for tar in tars)
    loader = make_loader(VolumeDataset(data.shards, verify="off"), copy=False)

    def dd(*flags: str) -> None:
        for tar in tars:
            subprocess.run(
                ["dd", f"if={tar}", "of=/dev/null", "bs=16M", *flags],
                check=True,
                stderr=subprocess.DEVNULL,
            )

    runs: dict[str, Callable[[], object]] = {
        "dd": dd,
        "dd, O_DIRECT": lambda: dd("iflag=direct"),
        OURS: lambda: sum(len(batch["study_id"]) for batch in loader),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    not_run = {}
    resident_bytes = 0
    for turn, (name, run) in itertools.product(range(-1, repeats), runs.items()):
        evict(tars)
        resident_bytes = max(resident_bytes, sum(map(cached_bytes, tars)))
        began = time.perf_counter()
        try:
            run()
        except subprocess.CalledProcessError:
            not_run[name] = "the file system refuses it"
            continue
        if turn >= 0:
            seconds[name].append(time.perf_counter() - began)
    rates = {
        name: measured([size_bytes / run_s / 1e6 for run_s in runs_s], "MB/s")
        for name, runs_s in seconds.items()
        if runs_s
    }
    contenders = {
        name: {"rate": rate, "ctgpu_over_this": rates[OURS]["median"] / rate["median"]}
        for name, rate in rates.items()
    }
    print_table(
        f"cold files ({resident_bytes / size_bytes:.0%} cached), medians",
        ["reader", "MB/s", "ctgpu is"],
        [
            [name, f"{facts['rate']['median']:.0f}", f"{facts['ctgpu_over_this']:.2f} ×"]
            for name, facts in contenders.items()
        ],
    )
    return {
        "contenders": contenders,
        "not_run": not_run,
        "eviction": "posix_fadvise(DONTNEED) on every tar before each run",
        "most_cached_share": resident_bytes / size_bytes,
    }


def evict(tars: list[Path]) -> None:
    """Drop the tars from the page cache."""
    for tar in tars:
        with tar.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        resident = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        address = ctypes.c_ubyte.from_buffer(pages)
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(len(pages)), resident
        )
        del address
        if status:
            raise OSError(ctypes.get_errno(), "mincore")
        return mmap.PAGESIZE * sum(byte & 1 for byte in resident)


def memory(folder: Path) -> dict[str, Any]:
    """Memory of a process of its own, over three epochs."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        facts = pool.submit(three_epochs, folder).result()
    print_table(
        f"memory over 3 epochs, budget for buffers {facts['budget_bytes'] / 1e6:.0f} MB",
        ["after", "buffers MB", "above the process before MB"],
        [
            [f"epoch {n}", f"{buffers / 1e6:.0f}", f"{above / 1e6:.0f}"]
            for n, (buffers, above) in enumerate(
                zip(facts["buffers"]["runs"], facts["above_process"]["runs"], strict=True)
            )
        ],
    )
    return facts


def three_epochs(folder: Path) -> dict[str, Any]:
    """Resident memory after each of three epochs, and the most within."""
    dataset = VolumeDataset(folder)
    prefetch_bytes = 2 * dataset.spec.size_bytes
    loader = make_loader(dataset, shuffle=True, prefetch_bytes=prefetch_bytes, copy=False)
    process = psutil.Process()
    before = process.memory_info().rss
    buffers, above = [], []
    for _ in range(3):
        peak = 0
        for _batch in loader:
            peak = max(peak, process.memory_info().rss)
        buffers.append(loader.buffer_bytes)
        above.append(peak - before)
    # Read ahead, and the two batches that stay valid; in whole huge pages.
    pages = math.ceil(dataset.spec.size_bytes / (2 << 20)) * (2 << 20)
    return {
        "budget_bytes": 4 * pages,
        "buffers": measured(buffers, "bytes"),
        "above_process": measured(above, "bytes"),
    }


def ranks(folder: Path) -> dict[str, Any]:
    """Steps and samples of 1, 2 and 4 ranks."""
    facts = {}
    for world_size in (1, 2, 4):
        seen = [
            [
                batch["study_id"]
                for batch in make_loader(
                    folder, 2, shuffle=True, drop_last=True, rank=rank, world_size=world_size
                )
            ]
            for rank in range(world_size)
        ]
        everything = list(itertools.chain.from_iterable(itertools.chain.from_iterable(seen)))
        facts[str(world_size)] = {
            "steps_per_rank": [len(steps) for steps in seen],
            "samples": len(everything),
            "disjoint": len(set(everything)) == len(everything),
        }
    print_table(
        "ranks, with drop_last",
        ["ranks", "steps per rank", "samples", "disjoint"],
        [[n, f["steps_per_rank"], f["samples"], f["disjoint"]] for n, f in facts.items()],
    )
    return facts


def resume(folder: Path) -> dict[str, Any]:
    """Whether what follows a stop is what an unbroken epoch gives, on 1, 2 and 4 ranks."""
    whole = [s for batch in make_loader(folder, shuffle=True) for s in batch["study_id"]]
    checks = {}
    for stop, world_size in itertools.product(range(0, len(whole) + 1, STOP_EVERY), (1, 2, 4)):
        first = make_loader(folder, shuffle=True)
        with contextlib.closing(iter(first)) as batches:  # type: ignore[type-var]
            for _ in range(stop):
                next(batches)
            state = first.state_dict()
        rest = []
        for rank in range(world_size):
            other = make_loader(folder, shuffle=True, rank=rank, world_size=world_size)
            other.load_state_dict(state)
            rest.append([batch["study_id"][0] for batch in other])
        together = [s for step in zip(*rest, strict=True) for s in step]
        left = whole[stop:]
        checks[f"step {stop}, {world_size} ranks"] = together[: len(left)] == left
    print(f"resume: {sum(checks.values())} of {len(checks)} exact")
    return {"steps": len(whole), "exact": all(checks.values()), "checks": checks}
