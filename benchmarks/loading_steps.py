"""Where the time of one sample goes: the old guide's tables, the old way and ctgpu, side by side.

Every round runs the old way and ctgpu, from raw and from preprocessed tars, and then both with a
consumer attached; so every ratio is one of neighbours in the same run.  Both ways may use all
usable cores.  The tars are in the page cache.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

import old_way
from common import in_pages, measured, print_table
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job, open_engine
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.machine import usable_cores
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import Spacing
from loading_clock import Laps, cpu_seconds
from loading_consumer import Consumer
from loading_data import Data, stock

READ_NPZ, DECOMPRESS = "read npz from tar", "decompress"
RESCALE, CLIP, RESIZE, NORMALISE, CROP = "rescale", "clip", "resize", "normalise", "crop/pad"
FUSED = f"{RESCALE} … {CROP}"
READ, PERMUTE = "read preprocessed", "permute + unsqueeze"
GPU, WAIT = "GPU operations", "fixed wait (simulated)"
LOADING, TOTAL, CPU = "all before the GPU", "total", "cpu_per_sample"
TOTAL_WAITED = f"{TOTAL}, simulated wait included"

#: The old guide's figures, in milliseconds; it names no machine and no data.
GUIDE_BEFORE_MS = {
    READ_NPZ: 100,
    DECOMPRESS: 50,
    RESCALE: 250,
    CLIP: 127,
    RESIZE: 262,
    NORMALISE: 135,
    CROP: 50,
    GPU: 379,
    TOTAL: 1350,
}
GUIDE_AFTER_MS = {READ: 30, PERMUTE: 0.02, GPU: 379, TOTAL: 410}
#: What its summary claims.
GUIDE_CLAIMS = {
    "data loading time": "45 to 90 ×",
    "GPU utilisation": "32 to 36 ×",
    "step time": "10 ×",
    "CPU threads needed": "-73 %",
}

NOT_MEASURED = "not measured"
OLD, OURS = "old way", "ctgpu"
_FUSED_STEPS = (RESCALE, CLIP, RESIZE, NORMALISE, CROP)
_LABELS = torch.zeros(1, 18)
# One unit of float16 at 1, two below it.
_TOLERANCE = 2.0**-10

#: Gives (B, 1, D, H, W) volumes and (B, classes) labels, and notes where the time went.
Way = Callable[[Laps], Iterator[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class Run:
    """One pass of one way: seconds of each step for one sample, and CPU seconds of them all."""

    steps: dict[str, float]
    consumer_s: float
    cpu_s: float

    @property
    def loading_s(self) -> float:
        """All steps before the consumer."""
        return sum(self.steps.values())


def compare_steps(
    data: Data, consumer: Consumer, *, repeats: int, old_samples: int, attached_steps: int
) -> dict[str, Any]:
    """Measure the per-step tables and the summary, and print them.

    Parameters
    ----------
    data : Data
        Of this scan.
    consumer : Consumer
        What takes the batches.
    repeats : int
        Rounds; one more before them warms up.
    old_samples : int
        Preprocessed samples of one run of the old way; ctgpu reads all.
    attached_steps : int
        Steps of one run of ctgpu with the consumer attached; the old way makes two.

    Returns
    -------
    dict
        ``before``, ``after``, ``attached`` and ``summary``, JSON-ready.
    """
    ours_raw, ours_preprocessed = OursRaw(data), OursPreprocessed(data)
    old_way_raw, old_way_preprocessed = partial(old_raw, data), partial(old_preprocessed, data)
    check_raw(old_way_raw, ours_raw)
    passes: dict[tuple[str, str], tuple[Way, int]] = {
        ("before", OLD): (old_way_raw, 1),
        ("before", OURS): (ours_raw, 1),
        ("after", OLD): (old_way_preprocessed, old_samples),
        ("after", OURS): (ours_preprocessed, data.samples),
    }
    attached = {OLD: (old_way_raw, 2), OURS: (ours_preprocessed, attached_steps)}
    runs: dict[tuple[str, str], list[Run]] = {name: [] for name in passes}
    attached_runs: dict[str, list[tuple[float, float]]] = {name: [] for name in attached}
    for turn in range(-1, repeats):
        for name, (way, count) in passes.items():
            run = run_pass(way, count, consumer)
            if turn >= 0:
                runs[name].append(run)
        for way_name, (way, count) in attached.items():
            step = run_attached(way, count, consumer)
            if turn >= 0:
                attached_runs[way_name].append(step)
    result: dict[str, Any] = {
        name: step_table(
            {way: runs[name, way] for way in (OLD, OURS)}, guide_ms, simulated=consumer.simulated
        )
        for name, guide_ms in (("before", GUIDE_BEFORE_MS), ("after", GUIDE_AFTER_MS))
    }
    result["attached"] = attached_table(attached_runs, simulated=consumer.simulated)
    result["summary"] = summarise(result, simulated=consumer.simulated)
    for name in ("before", "after"):
        show_steps(name, result[name])
    show_summary(result["summary"])
    return result


# ---- the four ways ------------------------------------------------------------------------------


def old_raw(data: Data, laps: Laps) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The old way from raw tars: one step after the other, float32 to the end."""
    laps.restart()
    for sample in stock([data.raw]):
        laps.lap(READ_NPZ)
        spacing_mm, (slope, intercept) = stated(json.loads(sample["json"]))
        volume = old_way.decompress(io.BytesIO(sample["npz"]))
        laps.lap(DECOMPRESS)
        volume = old_way.rescale(volume, slope, intercept)
        laps.lap(RESCALE)
        volume = old_way.clip(volume)
        laps.lap(CLIP)
        volume = old_way.resize(volume, spacing_mm, data.spec.target_spacing_mm)
        laps.lap(RESIZE)
        volume = old_way.normalise(volume)
        laps.lap(NORMALISE)
        volume = old_way.crop_and_pad(volume, data.spec.shape_hwd)
        laps.lap(CROP)
        yield as_batch(torch.from_numpy(volume)), _LABELS
        laps.restart()


class OursRaw:
    """ctgpu from the same raw tars, on the CPU: inflate, then one pass for all that follows.

    Its buffers are used again, as in a build.  The pass includes the check that the voxels are HU.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._engine = open_engine("cpu")
        self._pool = BufferPool()
        self._out = in_pages(data.spec.stored_shape, np.float16)

    def __call__(self, laps: Laps) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        laps.restart()
        for sample in samples_of_tar(self._data.raw):
            buffer = self._pool.acquire(sample.members["npz"].size_bytes)
            sample.read_into("npz", buffer.bytes.data)
            laps.lap(READ_NPZ)
            spacing_mm, pair = stated(sample.facts())
            raw = decode("volume.npz", buffer, self._pool)
            laps.lap(DECOMPRESS)
            prepared = prepare_volume(
                raw,
                spec=self._data.spec,
                spacing_mm=spacing_mm,
                spacing_source="csv",
                intensity="rescale",
                csv_pair=pair,
            )
            job = Job(prepared.raw.voxels, prepared.rescale, prepared.plan, self._out)
            self._engine.run([job], threads=usable_cores())
            raw.release()
            laps.lap(FUSED)
            yield as_batch(torch.from_numpy(self._out)), _LABELS
            laps.restart()


def old_preprocessed(data: Data, laps: Laps) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The old loader on preprocessed tars: webdataset, float32 on the host."""
    laps.restart()
    for sample in stock(data.tars).map(old_way.decode_preprocessed):
        laps.lap(READ)
        volume = as_batch(sample["volume"][0])
        laps.lap(PERMUTE)
        yield volume, sample["labels"][None]
        laps.restart()


class OursPreprocessed:
    """ctgpu's loader on the same tars, reading ahead; volumes were verified in an earlier epoch.

    The loader hands out permuted volumes.  On the host that is a view, so it is undone, untimed,
    and timed by itself; on a GPU it belongs to the read.
    """

    def __init__(self, data: Data) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loader = make_loader(
            VolumeDataset(data.shards, verify="off"),
            shuffle=True,
            device=self._device,
            copy=False,
        )

    def __call__(self, laps: Laps) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        with contextlib.closing(iter(self._loader)) as batches:  # type: ignore[type-var]
            laps.restart()
            for batch in batches:
                laps.lap(READ)
                volume = batch["volume"]
                if self._device == "cpu":
                    stored = volume[0, 0].permute(1, 2, 0)
                    laps.restart()
                    volume = as_batch(stored)
                    laps.lap(PERMUTE)
                yield volume, batch["labels"]
                laps.restart()


def stated(facts: Mapping[str, Any]) -> tuple[Spacing, tuple[float, float]]:
    """Spacing, and slope and intercept, that a raw sample's JSON states."""
    h, w = facts["XYSpacing"]
    return (h, w, facts["ZSpacing"]), (facts["RescaleSlope"], facts["RescaleIntercept"])


def as_batch(volume_hwd: torch.Tensor) -> torch.Tensor:
    """(H, W, D) as (1, 1, D, H, W): a view."""
    return volume_hwd.permute(2, 0, 1).unsqueeze(0).unsqueeze(0)


def check_raw(old: Way, ours: Way) -> None:
    """Refuse to compare ways that do not give the same volume."""
    (theirs, _), (made, _) = next(old(Laps())), next(ours(Laps()))
    worst = float((theirs.half().float() - made.float()).abs().max())
    if not worst <= _TOLERANCE:
        raise SystemExit(f"the old way and ctgpu differ by {worst:g}; wanted {_TOLERANCE:g}")


# ---- running them -------------------------------------------------------------------------------


def run_pass(way: Way, count: int, consumer: Consumer) -> Run:
    """`count` samples one after the other, and the last of them through the consumer."""
    laps, began_cpu = Laps(), cpu_seconds()
    with contextlib.closing(way(laps)) as batches:  # type: ignore[type-var]
        for _ in range(count):
            volume, labels = next(batches)
        cpu_s = (cpu_seconds() - began_cpu) / count
        began = time.perf_counter()
        consumer(volume, labels)
        consumer.drain()
        consumer_s = time.perf_counter() - began
    return Run({step: s / count for step, s in laps.seconds.items()}, consumer_s, cpu_s)


def run_attached(way: Way, count: int, consumer: Consumer) -> tuple[float, float]:
    """Seconds of a step, and the share of them that the consumer was busy, over `count` steps."""
    began = time.perf_counter()
    with contextlib.closing(way(Laps())) as batches:  # type: ignore[type-var]
        for volume, labels in islice(batches, count):
            consumer(volume, labels)
        busy_s = consumer.drain()
        wall_s = time.perf_counter() - began
    return wall_s / count, busy_s / wall_s


# ---- the tables ---------------------------------------------------------------------------------


def step_table(
    runs: Mapping[str, Sequence[Run]], guide_ms: Mapping[str, float], *, simulated: bool
) -> dict[str, Any]:
    """One of the guide's tables, with what was measured beside it."""
    consumed, total = (WAIT, TOTAL_WAITED) if simulated else (GPU, TOTAL)
    contenders: dict[str, dict[str, Any]] = {}
    for way, of_way in runs.items():
        quantities = {step: [run.steps[step] for run in of_way] for step in of_way[0].steps}
        if RESCALE in quantities:
            quantities[FUSED] = [sum(run.steps[step] for step in _FUSED_STEPS) for run in of_way]
        quantities |= {
            LOADING: [run.loading_s for run in of_way],
            consumed: [run.consumer_s for run in of_way],
            total: [run.loading_s + run.consumer_s for run in of_way],
            CPU: [run.cpu_s for run in of_way],
        }
        contenders[way] = {name: measured(values, "s") for name, values in quantities.items()}
    for facts in contenders.values():
        facts["ctgpu_loading_over_this"] = (
            facts[LOADING]["median"] / contenders[OURS][LOADING]["median"]
        )
    return {
        "old_guide_ms": dict(guide_ms),
        "contenders": contenders,
        "simulated": [WAIT, TOTAL_WAITED] if simulated else [],
        "not_measured": [GPU] if simulated else [],
    }


def attached_table(
    runs: Mapping[str, Sequence[tuple[float, float]]], *, simulated: bool
) -> dict[str, Any]:
    """A training step with the loader before it: how long it takes, how busy the consumer is."""
    step_time, consumer_busy = attached_names(simulated=simulated)
    contenders: dict[str, dict[str, Any]] = {
        way: {
            step_time: measured([step_s for step_s, _ in of_way], "s"),
            # Seconds in a second: more is better.
            consumer_busy: measured([busy for _, busy in of_way], "s/s"),
        }
        for way, of_way in runs.items()
    }
    for facts in contenders.values():
        facts["ctgpu_over_this"] = (
            facts[step_time]["median"] / contenders[OURS][step_time]["median"]
        )
    return {"contenders": contenders, "simulated": simulated}


def attached_names(*, simulated: bool) -> tuple[str, str]:
    """What a step's time and the consumer's busy share are called."""
    prefix = "simulated_" if simulated else ""
    return f"{prefix}step_time", f"{prefix}consumer_busy"


def summarise(tables: Mapping[str, Any], *, simulated: bool) -> dict[str, dict[str, Any]]:
    """The guide's summary: the old way from raw tars, ctgpu from shards.

    CPU threads are those that keep up with the consumer: CPU seconds of a sample, by the seconds
    that the consumer takes for it.
    """
    ways = {OLD: tables["before"]["contenders"][OLD], OURS: tables["after"]["contenders"][OURS]}
    attached = tables["attached"]["contenders"]
    step_time, consumer_busy = attached_names(simulated=simulated)
    loading = {way: facts[LOADING]["median"] for way, facts in ways.items()}
    busy = {way: facts[consumer_busy]["median"] for way, facts in attached.items()}
    steps = {way: facts[step_time]["median"] for way, facts in attached.items()}
    consumer_s = ways[OURS][WAIT if simulated else GPU]["median"]
    threads = {way: math.ceil(facts[CPU]["median"] / consumer_s) for way, facts in ways.items()}
    utilisation = busy | {"ratio": busy[OURS] / busy[OLD]}
    rows: dict[str, dict[str, Any]] = {
        "data loading time": {"unit": "s", **loading, "ratio": loading[OLD] / loading[OURS]},
        "GPU utilisation": {"unit": "s/s", **utilisation}
        if not simulated
        else dict.fromkeys((OLD, OURS), NOT_MEASURED),
        "step time": {
            "unit": "s",
            **steps,
            "ratio": steps[OLD] / steps[OURS],
            "simulated": simulated,
        },
        "CPU threads needed": {
            "unit": "threads",
            **threads,
            "change": threads[OURS] / threads[OLD] - 1,
            "consumer_s": consumer_s,
            "simulated": simulated,
        },
    }
    for quantity, row in rows.items():
        row["old_guide"] = GUIDE_CLAIMS[quantity]
    if simulated:
        rows["share of time that the consumer was busy"] = {
            "unit": "s/s",
            **utilisation,
            "simulated": True,
        }
    return rows


def show_steps(name: str, table: Mapping[str, Any]) -> None:
    """Print one per-step table."""
    guide_ms, contenders = table["old_guide_ms"], table["contenders"]
    old, ours = contenders[OLD], contenders[OURS]
    shown_ms = guide_ms | {TOTAL_WAITED: guide_ms[TOTAL]}
    # The guide's order, with what it does not have before its GPU operations.
    own = [step for step in guide_ms if step not in (GPU, TOTAL)]
    extra = [step for step in (FUSED,) if step in old]
    last = [GPU, WAIT, TOTAL_WAITED] if WAIT in old else [GPU, TOTAL]

    def cell(facts: Mapping[str, Any], step: str) -> str:
        if step in facts:
            return f"{facts[step]['median'] * 1e3:.3g}"
        return NOT_MEASURED if step == GPU else "fused" if FUSED in facts else "in the read"

    print_table(
        f"{name}: one sample, warm, ms, medians",
        ["step", "old guide", "old way here", "ctgpu here"],
        [
            [
                step,
                f"{shown_ms[step]:g}" if step in shown_ms else "",
                cell(old, step),
                cell(ours, step),
            ]
            for step in (*own, *extra, LOADING, *last)
        ],
    )
    print(f"{LOADING}, ctgpu is {old['ctgpu_loading_over_this']:.3g} × as fast as the old way")


def show_summary(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the summary."""
    print_table(
        "summary: the old way from raw tars, ctgpu from shards, medians",
        ["quantity", "old guide claims", "old way here", "ctgpu here", "measured"],
        [
            [
                quantity + (" (simulated consumer)" if row.get("simulated") else ""),
                row.get("old_guide", ""),
                *(_shown(row[way], row.get("unit")) for way in (OLD, OURS)),
                f"{row['change']:+.0%}"
                if "change" in row
                else f"{row['ratio']:.3g} ×"
                if "ratio" in row
                else NOT_MEASURED,
            ]
            for quantity, row in rows.items()
        ],
    )
    before_ms, after_ms = GUIDE_BEFORE_MS[TOTAL], GUIDE_AFTER_MS[TOTAL]
    print(
        f"the guide's own totals, {before_ms:g} and {after_ms:g} ms, give "
        f"{before_ms / after_ms:.1f} × for the step time"
    )


def _shown(value: Any, unit: str | None) -> str:
    if unit is None:
        return str(value)
    if unit == "s/s":
        return f"{value:.1%}"
    return str(value) if unit == "threads" else f"{value:.3g} {unit}"
