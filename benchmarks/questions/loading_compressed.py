"""How much faster are compressed samples loaded, where storage is slow and where it is not?

ctgpu's loader on raw and on compressed shards of one real chest at its own spacing, beside files of
blosc2 and of Zstandard, for which there are as many threads as cores; none checks what it reads.
From the page cache, the disk, and storage of a given rate, simulated: each read waits its turn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import ctgpu
from benchmarks.harness.asking import Scan
from benchmarks.harness.measuring import Array, Facts, in_pages, measured, rounds, seconds_of
from benchmarks.harness.storage import evict, throttled
from benchmarks.peers.codecs import Codec, installed
from benchmarks.peers.readers import Reader, check, ours, raw_readinto, tars_of
from benchmarks.questions.build import make_source
from benchmarks.questions.codec import read
from ctgpu.building.calibration import WAYS
from ctgpu.loading import VolumeDataset
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec

#: What reads samples that are stored in one way, and their files.
Stored = tuple[Reader, Sequence[Path]]
RAW = "ctgpu, none"
COLD = "disk, cold"
#: Storage, and to how many bytes a second it is held.
STORAGE = {"page cache, warm": math.inf, COLD: math.inf}
STORAGE |= {f"simulated, {rate:g} GB/s": rate * 1e9 for rate in (0.2, 0.5, 1.0)}


def compare(scan: Scan, folder: Path, spec: Spec, samples: int, repeats: int) -> Facts:
    """So many samples of a scan in every way to store them, each held against the originals."""
    stored, not_run = ways_to_store(scan, folder, spec, samples)
    sizes = {name: sum(f.stat().st_size for f in files) for name, (_, files) in stored.items()}
    cached = [0.0]

    def epoch(storage: str, name: str) -> float:
        reader, files = stored[name]
        if storage == COLD:
            cached.append(sum(map(evict, files)) / sizes[name])
        with throttled("preadv", STORAGE[storage]):
            return samples / seconds_of(lambda: deque(reader.epoch(), maxlen=0))

    runs = {f"{s}, {name}": partial(epoch, s, name) for s in STORAGE for name in stored}
    taken = rounds(runs, repeats, warm_ups=0)
    found: Facts = {}
    for storage in STORAGE:
        rates = {n: measured(taken[f"{storage}, {n}"], "samples/s") for n in stored}
        facts: Facts = {}
        for name, rate in rates.items():
            over_raw = rate["median"] / rates[RAW]["median"]
            gain = over_raw * sizes[name] / sizes[RAW]
            facts[name] = {"rate": rate, "this_over_raw": over_raw, "gain_over_ratio": gain}
        found[storage] = {"contenders": facts}
    for reader, _ in stored.values():
        reader.close()
    return {
        "data": scan.about,
        "samples": samples,
        "raw_over_stored": {name: sizes[RAW] / size for name, size in sizes.items()},
        "most_cached_share": max(cached),
        "not_run": not_run,
        "storage": found,
    }


def ways_to_store(
    scan: Scan, folder: Path, spec: Spec, samples: int
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Each of them, after an epoch that was held against raw shards; and who is not there."""
    make_source(folder / "source", scan, ".nii.gz", samples)
    made: dict[str, Stored] = {}
    for named, contract in (("", spec), (", 2^-10", replace(spec, precision="2^-10"))):
        how: Facts = {"source": folder / "source", "spec": contract, "samples_per_shard": 1}
        for way in WAYS:
            out = folder / f"{way}{named}"
            assert ctgpu.build(out, **how, compress=way, device="cpu").exit_code == 0
            dataset = VolumeDataset(out)
            reader = ours(dataset)
            check(out.name, reader, VolumeDataset(folder / f"none{named}"))
            made[f"ctgpu, {out.name}"] = reader, tars_of(dataset)
    opened, not_run = installed()
    raw = VolumeDataset(folder / "none")
    for name, codec in opened.items():
        made[name] = reader, _ = in_files(raw, codec, folder / name)
        check(name, reader, raw)
    return made, not_run


def in_files(raw: VolumeDataset, codec: Codec, folder: Path) -> Stored:
    """A file for each volume, all of one scan, and as many threads as cores that decode them."""
    folder.mkdir()
    member = codec.encode(next(iter(raw_readinto(raw).epoch())).view(np.float16))
    files = [folder / str(number) for number in range(len(raw))]
    for file in files:
        file.write_bytes(member)
    pool, sizes = ThreadPoolExecutor(usable_cores()), (len(member), raw.spec.size_bytes)
    rooms = [[in_pages((size,), np.uint8) for size in sizes] for _ in files]

    def load(file: Path, room: Sequence[Array]) -> Array:
        stored, out = room
        read(file, stored)
        codec.decode(stored, out)
        return out

    return Reader(lambda: pool.map(load, files, rooms), close=pool.shutdown), files
