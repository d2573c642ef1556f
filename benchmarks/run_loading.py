"""How fast do samples come back from shards, against webdataset, DALI and the machine's floor?

Full-size samples of one real scan, built by ``ctgpu.build``; all contenders read the same warm
tars in one process, round by round.  CPU seconds are those of all threads.  Then cold files
against ``dd``, memory over three epochs, and resuming and sharing among ranks on many tiny samples.
Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import mmap
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset

import ctgpu
from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    in_pages,
    load_real_ct,
    median,
    phantom_ct,
    print_table,
    write_result,
)
from ctgpu.errors import DeviceError
from ctgpu.limits import usable_cores
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.dali import pipeline
from ctgpu.spec import Spec
from run_build import make_source

OURS, OURS_VERIFIED = "ctgpu, verify=off", "ctgpu, verify=always (first epoch of first)"
OURS_ONE_THREAD = "ctgpu, verify=off, one thread"
OLD, BYTES, DALI, RAW = "webdataset + old decode", "webdataset, bytes", "DALI, CPU", "raw readinto"

_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))
_STOP_EVERY = 50


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "", repeats=5)
    parser.add_argument("--samples", type=int, default=12, help="samples of the data set")
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a batch")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.repeats = 4, 1
        voxels, spacing_mm, data = phantom_ct((96, 80, 60)), (3.0, 3.0, 6.0), "phantom 96×80×60"
        spec = Spec(shape_hwd=(96, 96, 48), target_spacing_mm=(3.0, 3.0, 6.0))
    else:
        voxels, spacing_mm, spec = load_real_ct(options.data), REAL_CT_SPACING_MM, Spec()
        data = f"{REAL_CT_NAME}, its 112 slices repeated to 300"
    with tempfile.TemporaryDirectory(dir=options.work_dir) as name:
        folder = Path(name)
        shards = build(folder / "shards", voxels, spacing_mm, spec, options.samples)
        tiny_voxels = phantom_ct((32, 32, 16))
        tiny = build(folder / "tiny", tiny_voxels, (4.0, 4.0, 8.0), _TINY, 2 * _STOP_EVERY + 3)
        del voxels
        result = {
            "data": data,
            "sample_bytes": spec.size_bytes,
            "samples": options.samples,
            "batch_size": options.batch_size,
            "cores": usable_cores(),
            "warm": warm(shards, spec, options),
            "cold": cold(shards, spec, options),
            "memory": memory(shards, options.batch_size),
            "ranks": ranks(tiny),
            "resume": resume(tiny),
        }
    print(write_result(options.json, "loading", result))


def build(folder: Path, voxels: Any, spacing_mm: Any, spec: Spec, samples: int) -> Path:
    """A data set of `samples` copies of one scan."""
    source = folder.with_name(folder.name + "-source")
    make_source(source, voxels, spacing_mm, ".nii.gz", samples)
    report = ctgpu.build(
        folder, source=source, spec=spec, samples_per_shard=max(2, samples // 3), device="cpu"
    )
    assert report.exit_code == 0
    shutil.rmtree(source)
    return folder


# ---- warm files ---------------------------------------------------------------------------------


def warm(folder: Path, spec: Spec, options: Any) -> dict[str, Any]:
    """One epoch of every contender, `repeats` times."""
    samples = options.samples
    contenders: dict[str, Callable[[], int]] = {
        RAW: raw_reader(folder),
        OLD: lambda: sum(1 for _ in stock(folder).map(old_decode)),
        BYTES: lambda: sum(1 for _ in stock(folder)),
    }
    missing = None
    try:
        built = pipeline(folder, 1)
        contenders[DALI] = lambda: sum(len(built.run()[0]) for _ in range(samples))
    except DeviceError as error:
        missing = str(error)
        print(missing)
    for name, verify, threads in (
        (OURS, "off", None),
        (OURS_ONE_THREAD, "off", 1),
        (OURS_VERIFIED, "always", None),
    ):
        loader = make_loader(
            VolumeDataset(folder, verify=verify),
            options.batch_size,
            shuffle=True,
            num_threads=threads,
        )
        contenders[name] = lambda loader=loader: sum(len(b["study_id"]) for b in loader)
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, options.repeats):
        for name, run in contenders.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            assert run() == samples
            if turn >= 0:
                wall[name].append((time.perf_counter() - began) / samples)
                cpu[name].append((time.process_time() - began_cpu) / samples)
    facts = {
        name: {
            "samples_per_s": 1 / median(wall[name]),
            "best_samples_per_s": 1 / min(wall[name]),
            "cpu_s_per_sample": median(cpu[name]),
            "gb_per_s": spec.size_bytes / median(wall[name]) / 1e9,
        }
        for name in contenders
    }
    for fact in facts.values():
        fact["ctgpu_over_this"] = facts[OURS]["samples_per_s"] / fact["samples_per_s"]
        fact["ctgpu_cpu_over_this"] = facts[OURS]["cpu_s_per_sample"] / fact["cpu_s_per_sample"]
    print_table(
        f"one epoch of {samples} samples of {spec.size_bytes / 1e6:.1f} MB, warm, medians",
        ["contender", "samples/s", "GB/s", "CPU s/sample", "ctgpu is", "ctgpu's CPU is"],
        [
            [
                name,
                f["samples_per_s"],
                f["gb_per_s"],
                f"{f['cpu_s_per_sample']:.4f}",
                f"{f['ctgpu_over_this']:.2f} ×",
                f"{f['ctgpu_cpu_over_this']:.2f} ×",
            ]
            for name, f in facts.items()
        ],
    )
    return {"contenders": facts, "not_run": missing}


def stock(folder: Path) -> Any:
    """webdataset over the tars, undecoded."""
    urls = [str(shard.path) for shard in VolumeDataset(folder).shards]
    return webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)


def old_decode(sample: dict[str, Any]) -> dict[str, Any]:
    """As the old loader did it: float32 on the host."""
    shape = json.loads(sample["json"])["shape"]
    volume = np.frombuffer(sample["bin"], np.float16).reshape(shape).astype(np.float32)
    return {
        "volume": torch.from_numpy(volume)[None],
        "labels": torch.from_numpy(np.frombuffer(sample["cls"], "<f4").copy()),
        "report": sample["txt"].decode(),
    }


def raw_reader(folder: Path) -> Callable[[], int]:
    """Payloads by plain ``readinto`` of one reused buffer, one thread."""
    dataset = VolumeDataset(folder)
    members = [
        (shard.path, entry.members["bin"].offset)
        for shard in dataset.shards
        for entry in shard.samples
    ]
    out = in_pages((dataset.spec.size_bytes,), np.uint8)

    def read() -> int:
        for path, offset in members:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                assert file.readinto(out.data) == len(out)  # type: ignore[attr-defined]
        return len(members)

    return read


# ---- cold files ---------------------------------------------------------------------------------


def cold(folder: Path, spec: Spec, options: Any) -> dict[str, Any]:
    """The loader on files that are not in the page cache, against ``dd``."""
    tars = [shard.path for shard in VolumeDataset(folder).shards]
    size_bytes = sum(tar.stat().st_size for tar in tars)
    loader = make_loader(VolumeDataset(folder, verify="off"), options.batch_size)

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
    for turn, (name, run) in itertools.product(range(-1, options.repeats), runs.items()):
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
    rates = {name: size_bytes / median(times) / 1e6 for name, times in seconds.items() if times}
    print_table(
        f"cold files ({resident_bytes / size_bytes:.0%} cached), medians",
        ["reader", "MB/s", "ctgpu is"],
        [[name, f"{rate:.0f}", f"{rates[OURS] / rate:.2f} ×"] for name, rate in rates.items()],
    )
    return {
        "mb_per_s": rates,
        "ctgpu_over_dd": rates[OURS] / rates["dd"],
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


# ---- memory, ranks, resuming --------------------------------------------------------------------


def memory(folder: Path, batch_size: int) -> dict[str, Any]:
    """Memory of a process of its own, over three epochs."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        facts = pool.submit(three_epochs, folder, batch_size).result()
    print_table(
        f"memory over 3 epochs, budget for buffers {facts['budget_bytes'] / 1e6:.0f} MB",
        ["after", "buffers MB", "above the process before MB"],
        [
            [f"epoch {n}", f"{e['buffer_bytes'] / 1e6:.0f}", f"{e['above_bytes'] / 1e6:.0f}"]
            for n, e in enumerate(facts["epochs"])
        ],
    )
    return facts


def three_epochs(folder: Path, batch_size: int) -> dict[str, Any]:
    """Resident memory after each of three epochs, and the most within."""
    dataset = VolumeDataset(folder)
    prefetch_bytes = 2 * batch_size * dataset.spec.size_bytes
    loader = make_loader(dataset, batch_size, shuffle=True, prefetch_bytes=prefetch_bytes)
    process = psutil.Process()
    before = process.memory_info().rss
    epochs = []
    for _ in range(3):
        peak = 0
        for _batch in loader:
            peak = max(peak, process.memory_info().rss)
        epochs.append({"buffer_bytes": loader.buffer_bytes, "above_bytes": peak - before})
    # Read ahead, and the two batches that stay valid; in whole huge pages.
    pages = math.ceil(batch_size * dataset.spec.size_bytes / (2 << 20)) * (2 << 20)
    return {"budget_bytes": 4 * pages, "epochs": epochs}


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
    for stop, world_size in itertools.product(range(0, len(whole) + 1, _STOP_EVERY), (1, 2, 4)):
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


if __name__ == "__main__":
    main()
