"""What does loading cost, step by step and per second, in the old way, with ctgpu and with others?

Four questions, each on full-size samples of one real scan:

- where the time of one sample goes, and what that means for a training step: the old guide's
  tables beside the old way and ctgpu as measured here (``loading_steps.py``).  Without a GPU the
  consumer is a fixed wait, labelled as simulated; with one it is a training step, which has not
  run on a device yet;
- how many samples per second webdataset, DALI, litdata, plain ``readinto`` and ctgpu deliver from
  warm tars, and how that grows with threads (``peers/readers.py``);
- how fast cold files are read, against ``dd``;
- whether memory stays within its budget, and ranks and resuming are exact.

Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import math
import mmap
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import webdataset
import xxhash

import ctgpu
from benchmarks.harness.asking import Question, Scan, phantom_ct
from benchmarks.harness.measuring import (
    Facts,
    cpu_seconds,
    measured,
    rounds,
    seconds_of,
    with_ratio,
)
from benchmarks.peers import readers
from benchmarks.peers.readers import Data, Opener, Reader, ours
from benchmarks.questions.build import make_source
from benchmarks.questions.loading_steps import compare_steps, make_consumer
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec

OURS = "ctgpu, verify=off"
READERS: dict[str, Opener] = {
    "raw readinto": readers.raw_readinto,
    "webdataset + old decode": readers.webdataset_decoded,
    "webdataset, bytes": readers.webdataset_bytes,
    "DALI, CPU": readers.dali,
    "litdata, copied out of its mapping": readers.litdata,
    OURS: ours,
    "ctgpu, verify=off, copy=True (the default)": partial(ours, copy=True),
    "ctgpu, verify=off, one thread": partial(ours, threads=1),
    "ctgpu, verify=always (first epoch of first)": partial(ours, verify="always"),
}
#: Contenders that no environment of ctgpu can hold, and why.
EXCLUDED = {
    "MosaicML streaming": "0.13 wants numpy < 2.2 and transformers < 5, which rules out the "
    "huggingface-hub that ctgpu needs"
}
#: The pair that raw voxels are stored with; both ways apply it.
RESCALE_PAIR = (1.0, -1024.0)
#: Steps between the stops of :func:`resume`.
STOP_EVERY = 50
# Worker processes of webdataset share the shards among them.
_MOST_SHARDS = 16
_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all of it."""
    question = Question("loading", __doc__, repeats=5)
    question.add_argument("--samples", type=int, default=16, help="samples of the data set")
    asked = question.asked(arguments, samples=4, repeats=1)
    scan, samples, repeats = asked.scan(), asked.options.samples, asked.repeats
    thread_counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    spec, about = Spec(), f", called {scan.spacing_mm} mm"
    if asked.quick:
        spec = Spec(shape_hwd=(96, 96, 48), target_spacing_mm=(3.0, 3.0, 6.0))
        thread_counts, about = (1, 2), ""
    torch.set_num_threads(usable_cores())
    consumer = make_consumer()
    with asked.folder() as folder:
        data = Data(
            raw=write_raw(folder / "raw-000000.tar", scan, samples=2),
            shards=build(folder / "shards", scan, spec, samples),
            litdata=folder / "litdata",
        )
        tiny_scan = Scan(phantom_ct((32, 32, 16)), (4.0, 4.0, 8.0), "")
        tiny = build(folder / "tiny", tiny_scan, _TINY, 2 * STOP_EVERY + 3)
        warm = race(READERS, data, repeats, reference=OURS)
        warm["not_run"] |= EXCLUDED
        facts = {
            "data": scan.about + about,
            "sample_bytes": spec.size_bytes,
            "samples": samples,
            "cores": usable_cores(),
            "torch_threads": torch.get_num_threads(),
            "consumer": {"name": consumer.name, "simulated": consumer.simulated},
            "cache": "warm: every file was read before the first run; `cold` says where not",
            "steps": compare_steps(
                data,
                consumer,
                repeats=repeats,
                old_samples=min(4, samples),
                attached_steps=min(8, samples),
            ),
            "warm": warm,
            "threads": {
                str(n): race_of_threads(data, n, max(1, repeats // 2)) for n in thread_counts
            },
            "cold": cold(data, repeats),
            "memory": memory(data.shards),
            "ranks": ranks(tiny),
            "resume": resume(tiny),
        }
    return asked.publish(facts)


# ---- what is read -------------------------------------------------------------------------------


def build(folder: Path, scan: Scan, spec: Spec, samples: int) -> Path:
    """A data set of `samples` copies of one scan."""
    source = folder.with_name(folder.name + "-source")
    make_source(source, scan, ".nii.gz", samples)
    report = ctgpu.build(
        folder,
        source=source,
        spec=spec,
        samples_per_shard=max(1, samples // _MOST_SHARDS),
        device="cpu",
    )
    assert report.exit_code == 0
    shutil.rmtree(source)
    return folder


def write_raw(tar: Path, scan: Scan, samples: int) -> Path:
    """A raw WebDataset of `samples` copies of one scan, stored as v1 volumes are: not in HU."""
    slope, intercept = RESCALE_PAIR
    npz = io.BytesIO()
    np.savez_compressed(npz, ((scan.voxels - intercept) / slope).astype(np.int16))
    facts = {
        "volume_shape": list(scan.voxels.shape),
        "volume_dtype": "int16",
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "XYSpacing": list(scan.spacing_mm[:2]),
        "ZSpacing": scan.spacing_mm[2],
    }
    with webdataset.TarWriter(str(tar)) as sink:
        for number in range(samples):
            key = f"valid_{number + 1}_a_1"
            stated = json.dumps({"study_id": key, **facts}).encode()
            sink.write({"__key__": key, "npz": npz.getvalue(), "json": stated})
    return tar


# ---- readers ------------------------------------------------------------------------------------


def race(openers: Mapping[str, Opener], data: Data, repeats: int, *, reference: str) -> Facts:
    """One epoch of every reader, round by round; a warm-up one checks what each delivers."""
    opened: dict[str, Reader] = {}
    not_run: dict[str, str] = {}
    for name, opener in openers.items():
        try:
            opened[name] = opener(data)
            check(name, opened[name], data)
        except Exception as error:
            # What another reader fails of is a finding; ctgpu has to run.
            if name.startswith("ctgpu"):
                raise
            opened.pop(name, None)
            reason = str(error).replace(f"{data.shards.parent}/", "")
            not_run[name] = f"{type(error).__name__}: {reason}"

    def epoch(reader: Reader) -> tuple[float, float]:
        began, began_cpu = time.perf_counter(), cpu_seconds()
        count = sum(1 for _ in reader.epoch())
        return (time.perf_counter() - began) / count, (cpu_seconds() - began_cpu) / count

    runs = {name: partial(epoch, reader) for name, reader in opened.items()}
    taken = rounds(runs, repeats, warm_ups=0)
    for reader in opened.values():
        reader.close()
    facts: dict[str, Facts] = {
        name: {
            "rate": measured([1 / wall for wall, _ in of], "samples/s"),
            "cpu_per_sample": measured([cpu for _, cpu in of], "s"),
        }
        for name, of in taken.items()
    }
    with_ratio(facts, "ctgpu_over_this", reference, "rate")
    with_ratio(facts, "ctgpu_cpu_over_this", reference, "cpu_per_sample")
    return {"contenders": facts, "not_run": not_run}


def race_of_threads(data: Data, count: int, repeats: int) -> Facts:
    """The same with so many threads, or worker processes where a reader has those."""
    openers: dict[str, Opener] = {
        "ctgpu, threads": partial(ours, threads=count),
        "webdataset, workers": partial(readers.webdataset_workers, workers=count),
        "litdata, workers": partial(readers.litdata_workers, workers=count),
        "DALI, threads": partial(readers.dali, threads=count),
    }
    return race(openers, data, repeats, reference="ctgpu, threads")


def check(name: str, reader: Reader, data: Data) -> None:
    """Run one epoch and hold every volume against the records."""
    found = sorted(
        xxhash.xxh3_128_hexdigest(np.ascontiguousarray(reader.payload(delivery)).data)
        for delivery in reader.epoch()
    )
    if found != data.checksums:
        raise SystemExit(f"{name} does not deliver what is in the shards")


# ---- cold files ---------------------------------------------------------------------------------


def cold(data: Data, repeats: int) -> Facts:
    """The loader on files that are not in the page cache, against ``dd``."""
    tars = data.tars
    size_bytes = sum(tar.stat().st_size for tar in tars)
    loader = make_loader(VolumeDataset(data.shards, verify="off"), copy=False)
    resident_bytes = [0]

    def dd(*flags: str) -> None:
        for tar in tars:
            subprocess.run(
                ["dd", f"if={tar}", "of=/dev/null", "bs=16M", *flags],
                check=True,
                stderr=subprocess.DEVNULL,
            )

    def seconds(run: Callable[[], object]) -> float | None:
        evict(tars)
        resident_bytes.append(sum(map(cached_bytes, tars)))
        try:
            return seconds_of(run)
        except subprocess.CalledProcessError:
            return None

    runs: dict[str, Callable[[], object]] = {
        "dd": dd,
        "dd, O_DIRECT": partial(dd, "iflag=direct"),
        OURS: lambda: sum(len(batch["study_id"]) for batch in loader),
    }
    taken = rounds({name: partial(seconds, run) for name, run in runs.items()}, repeats)
    facts: dict[str, Facts] = {
        name: {"rate": measured([size_bytes / s / 1e6 for s in of if s], "MB/s")}
        for name, of in taken.items()
        if None not in of
    }
    return {
        "contenders": with_ratio(facts, "ctgpu_over_this", OURS, "rate"),
        "not_run": {name: "the file system refuses it" for name in runs if name not in facts},
        "eviction": "posix_fadvise(DONTNEED) on every tar before each run",
        "most_cached_share": max(resident_bytes) / size_bytes,
    }


def evict(tars: Iterable[Path]) -> None:
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


def memory(folder: Path) -> Facts:
    """Memory of a process of its own, over three epochs."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(three_epochs, folder).result()


def three_epochs(folder: Path) -> Facts:
    """Resident memory after each of three epochs, and the most within."""
    dataset = VolumeDataset(folder)
    prefetch_bytes = 2 * dataset.spec.size_bytes
    loader = make_loader(dataset, shuffle=True, prefetch_bytes=prefetch_bytes, copy=False)
    process = psutil.Process()
    before = process.memory_info().rss
    buffers, above = [], []
    for _ in range(3):
        above.append(max(process.memory_info().rss for _batch in loader) - before)
        buffers.append(loader.buffer_bytes)
    # Read ahead, and the two batches that stay valid; in whole huge pages.
    pages = math.ceil(dataset.spec.size_bytes / (2 << 20)) * (2 << 20)
    return {
        "budget_bytes": 4 * pages,
        "buffers": measured(buffers, "bytes"),
        "above_process": measured(above, "bytes"),
    }


def ranks(folder: Path) -> Facts:
    """Steps and samples of 1, 2 and 4 ranks."""
    facts = {}
    for world_size in (1, 2, 4):
        options = {"shuffle": True, "drop_last": True, "world_size": world_size}
        loaders = [make_loader(folder, 2, rank=n, **options) for n in range(world_size)]  # type: ignore[arg-type]
        seen = [[batch["study_id"] for batch in loader] for loader in loaders]
        everything = list(itertools.chain.from_iterable(itertools.chain.from_iterable(seen)))
        facts[str(world_size)] = {
            "steps_per_rank": [len(steps) for steps in seen],
            "samples": len(everything),
            "disjoint": len(set(everything)) == len(everything),
        }
    return facts


def resume(folder: Path) -> Facts:
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
