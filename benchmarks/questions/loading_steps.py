"""Where the time of one sample goes: the old guide's tables, the old way and ctgpu, side by side.

Every round runs the old way and ctgpu, from raw and from preprocessed tars, and then both with a
consumer attached; so every ratio is one of neighbours in the same run.  Both ways may use all
usable cores.  The tars are in the page cache.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.measuring import Facts, cpu_seconds, in_pages, measured, rounds, seconds_of
from benchmarks.peers import old_way
from benchmarks.peers.readers import stock, tars_of
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job, open_engine
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.machine import usable_cores
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.spec import Spec
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import Spacing

OLD, OURS = "old way", "ctgpu"
READ_NPZ, DECOMPRESS = "read npz from tar", "decompress"
FUSED_STEPS = ("rescale", "clip", "resize", "normalise", "crop/pad")
RESCALE, CLIP, RESIZE, NORMALISE, CROP = FUSED_STEPS
FUSED = f"{RESCALE} … {CROP}"
READ, PERMUTE = "read preprocessed", "permute + unsqueeze"
GPU, TOTAL = "GPU operations", "total"
LOADING, CPU = "all before the GPU", "cpu_per_sample"

#: The old guide's figures, in milliseconds; it names no machine and no data.
GUIDE_MS: dict[str, dict[str, float]] = {
    "before": {
        **{READ_NPZ: 100, DECOMPRESS: 50},
        **dict(zip(FUSED_STEPS, (250, 127, 262, 135, 50), strict=True)),
        **{GPU: 379, TOTAL: 1350},
    },
    "after": {READ: 30, PERMUTE: 0.02, GPU: 379, TOTAL: 410},
}
#: What its summary claims.
GUIDE_CLAIMS = {
    "data loading time": "45 to 90 ×",
    "GPU utilisation": "32 to 36 ×",
    "step time": "10 ×",
    "CPU threads needed": "-73 %",
}

#: Whether the consumer is a wait as long as the guide's "GPU operations" of one step.
SIMULATED = not torch.cuda.is_available()
WAIT_S = GUIDE_MS["after"][GPU] / 1e3
CONSUMER = "training step of a small 3-D CNN, bfloat16 autocast"
CONSUMED, ALL, STEP_TIME, BUSY = GPU, TOTAL, "step_time", "consumer_busy"
if SIMULATED:
    CONSUMER = f"simulated: a fixed wait of {WAIT_S * 1e3:.0f} ms"
    CONSUMED, ALL = "fixed wait (simulated)", f"{TOTAL}, simulated wait included"
    STEP_TIME, BUSY = f"simulated_{STEP_TIME}", f"simulated_{BUSY}"

_CLASSES = 18
_LABELS = torch.zeros(1, _CLASSES)
# One unit of float16 at 1, two below it.
_TOLERANCE = 2.0**-10

#: (B, 1, D, H, W) volumes and (B, classes) labels.
Batch = tuple[torch.Tensor, torch.Tensor]
#: The name of each step when it is done, or None for what is not timed; and batches.
Steps = Generator[str | Batch | None]
Way = Callable[[], Steps]
#: Takes a batch; what it returns waits until that is done with, and says for how long it was busy.
Consumer = Callable[[torch.Tensor, torch.Tensor], Callable[[], float]]


def compare_steps(raw: Path, dataset: VolumeDataset, repeats: int) -> Facts:
    """The tables ``before``, ``after`` and ``attached`` of `repeats` rounds, and their ``summary``.

    `raw` is a tar of raw samples, ``npz`` and ``json``, as users of the old scripts have it, and
    holds two.  Of preprocessed samples a run of the old way reads four and one of ctgpu all.  With
    the consumer attached the old way makes two steps, from raw samples, and ctgpu eight.
    """
    consume: Consumer = wait if SIMULATED else training_step()
    old, fused = partial(old_raw, raw, dataset.spec), ours_raw(raw, dataset.spec)
    tars, count = tars_of(dataset), len(dataset)
    read, ours = partial(old_preprocessed, tars), ours_preprocessed(tars)
    check_raw(old, fused)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        f"before/{OLD}": partial(run_pass, old, 1, consume),
        f"before/{OURS}": partial(run_pass, fused, 1, consume),
        f"after/{OLD}": partial(run_pass, read, min(4, count), consume),
        f"after/{OURS}": partial(run_pass, ours, count, consume),
        f"attached/{OLD}": partial(run_attached, old, 2, consume),
        f"attached/{OURS}": partial(run_attached, ours, min(8, count), consume),
    }
    taken = rounds(runs, repeats)
    lacks = {"simulated": [CONSUMED, ALL], "not_measured": [GPU]}
    tables: Facts = {}
    for name, guide_ms in GUIDE_MS.items():
        ways = contenders(taken, name, LOADING, "ctgpu_loading_over_this")
        tables[name] = {"old_guide_ms": guide_ms, "contenders": ways}
        tables[name] |= {what: steps if SIMULATED else [] for what, steps in lacks.items()}
    attached = contenders(taken, "attached", STEP_TIME, "ctgpu_over_this")
    tables["attached"] = {"contenders": attached, "simulated": SIMULATED}
    return tables | {"summary": summarise(*(of["contenders"] for of in tables.values()))}


# ---- the four ways ------------------------------------------------------------------------------


def old_raw(tar: Path, spec: Spec) -> Steps:
    """The old way from raw tars: one step after the other, float32 to the end."""
    for sample in stock([tar]):
        yield READ_NPZ
        spacing_mm, (slope, intercept) = stated(json.loads(sample["json"]))
        volume = old_way.decompress(io.BytesIO(sample["npz"]))
        yield DECOMPRESS
        volume = old_way.rescale(volume, slope, intercept)
        yield RESCALE
        volume = old_way.clip(volume)
        yield CLIP
        volume = old_way.resize(volume, spacing_mm, spec.target_spacing_mm)
        yield RESIZE
        volume = old_way.normalise(volume)
        yield NORMALISE
        volume = old_way.crop_and_pad(volume, spec.shape_hwd)
        yield CROP
        yield as_batch(torch.from_numpy(volume)), _LABELS


def ours_raw(tar: Path, spec: Spec) -> Way:
    """ctgpu from the same raw tars, on the CPU: inflate, then one pass for all that follows.

    Its buffers are used again, as in a build.  The pass includes the check that the voxels are HU.
    """
    engine, pool = open_engine("cpu"), BufferPool()
    out = in_pages(spec.stored_shape, np.float16)

    def way() -> Steps:
        for sample in samples_of_tar(tar):
            buffer = pool.acquire(sample.members["npz"].size_bytes)
            sample.read_into("npz", buffer.bytes.data)
            yield READ_NPZ
            spacing_mm, pair = stated(sample.facts())
            raw = decode("volume.npz", buffer, pool)
            yield DECOMPRESS
            facts: Facts = {"spacing_mm": spacing_mm, "spacing_source": "csv", "csv_pair": pair}
            made = prepare_volume(raw, spec=spec, intensity="rescale", **facts)
            job = Job(made.raw.voxels, made.rescale, made.plan, out)
            engine.run([job], threads=usable_cores())
            raw.release()
            yield FUSED
            yield as_batch(torch.from_numpy(out)), _LABELS

    return way


def old_preprocessed(tars: Sequence[Path]) -> Steps:
    """The old loader on preprocessed tars: webdataset, float32 on the host."""
    for sample in stock(tars).map(old_way.decode_preprocessed):
        yield READ
        volume = as_batch(sample["volume"][0])
        yield PERMUTE
        yield volume, sample["labels"][None]


def ours_preprocessed(tars: Sequence[Path]) -> Way:
    """ctgpu's loader on the same tars, reading ahead; volumes were verified in an earlier epoch.

    The loader hands out permuted volumes.  On the host that is a view, so it is undone, untimed,
    and timed by itself; on a GPU it belongs to the read.
    """
    device = "cpu" if SIMULATED else "cuda"
    dataset = VolumeDataset(tars, verify="off")
    loader = make_loader(dataset, shuffle=True, device=device, copy=False)

    def way() -> Steps:
        with closing(iter(loader)) as batches:  # type: ignore[type-var]
            yield None
            for batch in batches:
                yield READ
                volume = batch["volume"]
                if SIMULATED:
                    stored = volume[0, 0].permute(1, 2, 0)
                    yield None
                    volume = as_batch(stored)
                    yield PERMUTE
                yield volume, batch["labels"]

    return way


def stated(facts: Mapping[str, Any]) -> tuple[Spacing, tuple[float, float]]:
    """Spacing, and slope and intercept, that a raw sample's JSON states."""
    h, w = facts["XYSpacing"]
    return (h, w, facts["ZSpacing"]), (facts["RescaleSlope"], facts["RescaleIntercept"])


def as_batch(volume_hwd: torch.Tensor) -> torch.Tensor:
    """(H, W, D) as (1, 1, D, H, W): a view."""
    return volume_hwd.permute(2, 0, 1).unsqueeze(0).unsqueeze(0)


def check_raw(old: Way, ours: Way) -> None:
    """Refuse to compare ways that do not give the same volume."""
    (theirs, _), (made, _) = (next(batches_of(way, {})) for way in (old, ours))
    worst = float((theirs.half().float() - made.float()).abs().max())
    if not worst <= _TOLERANCE:
        raise SystemExit(f"the old way and ctgpu differ by {worst:g}; wanted {_TOLERANCE:g}")


# ---- the consumer, and running them -------------------------------------------------------------


def wait(volume: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    """Computes nothing, and takes as long as the old guide's GPU operations did."""
    busy_s = seconds_of(partial(time.sleep, WAIT_S))
    return lambda: busy_s


def training_step() -> Consumer:
    """A step of a small 3-D CNN, bfloat16 autocast, on a GPU; busy is what two events say of it.

    The upload of a batch that comes from the host is not in it.
    """
    nn = torch.nn
    model = nn.Sequential(
        *(nn.Conv3d(1, 32, kernel_size=4, stride=4), nn.GELU()),
        *(nn.Conv3d(32, 64, kernel_size=3, stride=2, padding=1), nn.GELU()),
        *(nn.Conv3d(64, 128, kernel_size=3, stride=2, padding=1), nn.GELU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, _CLASSES)),
    ).to("cuda")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(volume: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
        volume = volume.to("cuda", non_blocking=True)
        # A study without a label row has NaN.
        labels = labels.to("cuda", non_blocking=True).nan_to_num()
        event: Any = torch.cuda.Event  # neither this nor backward has types
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(volume)
        loss: Any = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        end.record()

        def busy_s() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return busy_s

    return step


def batches_of(way: Way, seconds: dict[str, float]) -> Generator[Batch]:
    """The batches of a way; `seconds` become those of its steps, summed over all samples."""
    with closing(way()) as steps:
        since = time.perf_counter()
        for step in steps:
            now = time.perf_counter()
            if isinstance(step, str):
                seconds[step] = seconds.get(step, 0.0) + now - since
            elif step is not None:
                yield step
                now = time.perf_counter()
            since = now


def run_pass(way: Way, count: int, consume: Consumer) -> dict[str, float]:
    """Seconds of each step for one sample, by `count` of them, and of the last one's consumer."""
    seconds: dict[str, float] = {}
    began_cpu = cpu_seconds()
    with closing(batches_of(way, seconds)) as batches:
        for _ in range(count):
            batch = next(batches)
        cpu_s = cpu_seconds() - began_cpu
        consumed_s = seconds_of(lambda: consume(*batch)())
    taken = {step: s / count for step, s in seconds.items()}
    loading_s = sum(taken.values())
    if RESCALE in taken:
        taken[FUSED] = sum(taken[step] for step in FUSED_STEPS)
    whole = {LOADING: loading_s, CONSUMED: consumed_s, ALL: loading_s + consumed_s}
    return taken | whole | {CPU: cpu_s / count}


def run_attached(way: Way, count: int, consume: Consumer) -> dict[str, float]:
    """Seconds of a step, and the share of them that the consumer was busy, over `count` steps."""
    began = time.perf_counter()
    with closing(batches_of(way, {})) as batches:
        waits = [consume(*batch) for batch in islice(batches, count)]
        busy_s = sum(wait_for() for wait_for in waits)
        wall_s = time.perf_counter() - began
    return {STEP_TIME: wall_s / count, BUSY: busy_s / wall_s}


# ---- the tables ---------------------------------------------------------------------------------


def contenders(
    taken: Mapping[str, Sequence[Mapping[str, float]]], table: str, figure: str, key: str
) -> dict[str, Facts]:
    """Both ways in one of the tables, with how many times faster ctgpu is by `figure`."""
    facts: dict[str, Facts] = {}
    for way in (OLD, OURS):
        runs = taken[f"{table}/{way}"]
        # Of the consumer's time, seconds in a second: more is better.
        units = {name: "s/s" if name == BUSY else "s" for name in runs[0]}
        facts[way] = {n: measured([run[n] for run in runs], unit) for n, unit in units.items()}
    for of in facts.values():
        of[key] = of[figure]["median"] / facts[OURS][figure]["median"]
    return facts


def summarise(before: Facts, after: Facts, attached: Facts) -> Facts:
    """The guide's summary: the old way from raw tars, ctgpu from shards.

    CPU threads are those that keep up with the consumer: CPU seconds by its seconds of a sample.
    """
    ways = {OLD: before[OLD], OURS: after[OURS]}

    def row(ways: Facts, figure: str, unit: str = "s") -> Facts:
        old, ours = (ways[way][figure]["median"] for way in (OLD, OURS))
        return {"unit": unit, OLD: old, OURS: ours, "ratio": old / ours}

    consumer_s, cpu = after[OURS][CONSUMED]["median"], row(ways, CPU)
    threads = {way: math.ceil(cpu[way] / consumer_s) for way in ways}
    change = threads[OURS] / threads[OLD] - 1
    used = row(attached, BUSY, "s/s")
    used["ratio"] = 1 / used["ratio"]
    of_consumer = {"simulated": SIMULATED}
    needed = {"unit": "threads", **threads, "change": change, "consumer_s": consumer_s}
    rows: Facts = {
        "data loading time": row(ways, LOADING),
        "GPU utilisation": dict.fromkeys(ways, "not measured") if SIMULATED else used,
        "step time": row(attached, STEP_TIME) | of_consumer,
        "CPU threads needed": needed | of_consumer,
    }
    rows = {name: of | {"old_guide": GUIDE_CLAIMS[name]} for name, of in rows.items()}
    if SIMULATED:
        rows["share of time that the consumer was busy"] = used | of_consumer
    return rows
