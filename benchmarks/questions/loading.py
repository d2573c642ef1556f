"""What does loading cost, step by step and per second, in the old way, with ctgpu and with others?

Four questions, each on full-size samples of one real scan:

- where the time of one sample goes, and what that means for a training step: the old guide's
  tables beside the old way and ctgpu as measured here (``loading_steps.py``).  Without a GPU the
  consumer is a fixed wait, labelled as simulated; with one it is a training step, which has not
  run on a device yet;
- how many samples per second webdataset, DALI, litdata, plain ``readinto`` and ctgpu deliver from
  warm tars, and how that grows with threads (``peers/readers.py``);
- how fast cold files are read, against ``dd``;
- what compressed shards gain, and where (``loading_compressed.py``).

Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME, Question, Scan, load_scan
from benchmarks.harness.measuring import Facts, measured, rated, rounds, seconds_of, with_ratio
from benchmarks.harness.storage import evict
from benchmarks.peers import readers
from benchmarks.peers.readers import Opener, Reader, check, ours, tars_of
from benchmarks.questions.build import make_source
from benchmarks.questions.loading_compressed import compare
from benchmarks.questions.loading_steps import CONSUMER, SIMULATED, compare_steps
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all of it."""
    asked = Question("loading", __doc__, repeats=5).asked(arguments, repeats=1)
    scan, repeats, samples, thread_counts = asked.scan(), asked.repeats, 16, [1, 2, 4, 8, 16]
    chest = scan if asked.quick else load_scan(asked.options.data, REAL_CT_NAME)
    few = max(1, repeats // 2)
    spec = Spec()
    if asked.quick:
        spec = Spec(shape_hwd=(96, 96, 48), target_spacing_mm=(3.0, 3.0, 6.0))
        samples, thread_counts = 4, [1, 2]
    torch.set_num_threads(usable_cores())
    with asked.folder() as folder:
        raw = folder / "raw-000000.tar"
        write_raw(raw, scan, samples=2)
        make_source(folder / "source", scan, ".nii.gz", samples)
        how: Facts = {"spec": spec, "samples_per_shard": 1, "device": "cpu"}
        report = ctgpu.build(folder / "shards", source=folder / "source", **how)
        assert report.exit_code == 0
        dataset = VolumeDataset(folder / "shards")
        warm = race(READERS, dataset, repeats)
        warm["not_run"] |= EXCLUDED
        facts = {
            "data": f"{scan.about}, called {scan.spacing_mm} mm",
            "sample_bytes": spec.size_bytes,
            "samples": samples,
            "cores": usable_cores(),
            "consumer": {"name": CONSUMER, "simulated": SIMULATED},
            "cache": "warm: every file was read before the first run; `cold` says where not",
            "steps": compare_steps(raw, dataset, repeats),
            "warm": warm,
            "threads": {str(n): race(with_threads(n), dataset, few) for n in thread_counts},
            "cold": cold(dataset, repeats),
            "compressed": compare(chest, folder / "compressed", spec, samples // 2, few),
        }
    return asked.publish(facts)


def write_raw(tar: Path, scan: Scan, samples: int) -> None:
    """A raw WebDataset of `samples` copies of one scan, stored as v1 volumes are: not in HU."""
    slope, intercept = 1.0, -1024.0
    npz = io.BytesIO()
    np.savez_compressed(npz, ((scan.voxels - intercept) / slope).astype(np.int16))
    facts = {
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


# ---- readers ------------------------------------------------------------------------------------


def with_threads(count: int) -> dict[str, Opener]:
    """Readers with so many threads, or worker processes where they have those."""
    return {
        "ctgpu, threads": partial(ours, threads=count),
        "webdataset, workers": partial(readers.webdataset_workers, workers=count),
        "litdata, workers": partial(readers.litdata_workers, workers=count),
        "DALI, threads": partial(readers.dali, threads=count),
    }


def race(openers: Mapping[str, Opener], dataset: VolumeDataset, repeats: int) -> Facts:
    """One epoch of every reader, round by round; a warm-up one checks what each delivers.

    Ratios are those to ctgpu's first.
    """
    opened: dict[str, Reader] = {}
    not_run: dict[str, str] = {}
    for name, opener in openers.items():
        try:
            reader = opener(dataset)
            check(name, reader, dataset)
        except Exception as error:
            # What another reader fails of is a finding; ctgpu has to run.
            if name.startswith("ctgpu"):
                raise
            reason = str(error).replace(f"{tars_of(dataset)[0].parents[1]}/", "")
            not_run[name] = f"{type(error).__name__}: {reason}"
        else:
            opened[name] = reader

    def epoch(reader: Reader) -> None:
        for _ in reader.epoch():
            pass

    runs = {name: partial(epoch, reader) for name, reader in opened.items()}
    facts = rated(runs, len(dataset), repeats, warm_ups=0)
    for reader in opened.values():
        reader.close()
    first = next(name for name in facts if name.startswith("ctgpu"))
    with_ratio(facts, "ctgpu_over_this", first, "rate")
    return {"contenders": facts, "not_run": not_run}


# ---- cold files --------------------------------------------------------------------------------


def cold(dataset: VolumeDataset, repeats: int) -> Facts:
    """The loader on files that are not in the page cache, against ``dd``."""
    tars = tars_of(dataset)
    size_bytes = sum(tar.stat().st_size for tar in tars)
    loader = make_loader(VolumeDataset(tars, verify="off"), copy=False)
    resident_bytes = [0]

    def dd(*flags: str) -> None:
        for tar in tars:
            command = ["dd", f"if={tar}", "of=/dev/null", "bs=16M", *flags]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def seconds(run: Callable[[], object]) -> float | None:
        resident_bytes.append(sum(map(evict, tars)))
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
