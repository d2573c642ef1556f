"""Where the time of one sample goes: the old guide's tables, the old way and ctgpu, side by side.

Every round runs the old way and ctgpu, from raw and from preprocessed tars, and then both with a
consumer attached; so every ratio is one of neighbours in the same run.  Both ways may use all
usable cores.  The tars are in the page cache.  The consumer is a training step on the GPU, which
has not run on a device yet, or a fixed wait where there is none.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.harness.measuring import Facts, cpu_seconds, in_pages, measured, rounds
from benchmarks.peers import old_way
from benchmarks.peers.readers import Data, stock
from ctgpu.buffers import BufferPool
from ctgpu.decode import decode
from ctgpu.engines import Job, open_engine
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.machine import usable_cores
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import Spacing

READ_NPZ, DECOMPRESS = "read npz from tar", "decompress"
RESCALE, CLIP, RESIZE, NORMALISE, CROP = "rescale", "clip", "resize", "normalise", "crop/pad"
FUSED = f"{RESCALE} … {CROP}"
READ, PERMUTE = "read preprocessed", "permute + unsqueeze"
GPU, WAIT = "GPU operations", "fixed wait (simulated)"
LOADING, TOTAL, CPU = "all before the GPU", "total", "cpu_per_sample"
TOTAL_WAITED = f"{TOTAL}, simulated wait included"

#: The old guide's figures, in milliseconds; it names no machine and no data.
GUIDE_MS: dict[str, dict[str, float]] = {
    "before": {
        READ_NPZ: 100,
        DECOMPRESS: 50,
        RESCALE: 250,
        CLIP: 127,
        RESIZE: 262,
        NORMALISE: 135,
        CROP: 50,
        GPU: 379,
        TOTAL: 1350,
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
#: The guide's "GPU operations" of one step.
WAIT_S = GUIDE_MS["after"][GPU] / 1e3

NOT_MEASURED = "not measured"
OLD, OURS = "old way", "ctgpu"
_FUSED_STEPS = (RESCALE, CLIP, RESIZE, NORMALISE, CROP)
_CLASSES = 18
_LABELS = torch.zeros(1, _CLASSES)
# One unit of float16 at 1, two below it.
_TOLERANCE = 2.0**-10


class Laps:
    """Wall-clock seconds of named steps, summed over the samples of a pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last lap."""
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        """What has passed since the last lap belongs to `step`."""
        now = time.perf_counter()
        self.seconds[step] += now - self._since
        self._since = now


#: (B, 1, D, H, W) volumes and (B, classes) labels.
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
#: Gives batches, and notes where the time went.
Way = Callable[[Laps], Batches]


def compare_steps(
    data: Data, consumer: Consumer, *, repeats: int, old_samples: int, attached_steps: int
) -> Facts:
    """Measure the per-step tables and the summary.

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
    old, ours = partial(old_raw, data), OursPreprocessed(data)
    ours_raw = OursRaw(data)
    check_raw(old, ours_raw)
    passes: dict[str, Callable[[], Run]] = {
        f"before/{OLD}": partial(run_pass, old, 1, consumer),
        f"before/{OURS}": partial(run_pass, ours_raw, 1, consumer),
        f"after/{OLD}": partial(run_pass, partial(old_preprocessed, data), old_samples, consumer),
        f"after/{OURS}": partial(run_pass, ours, data.samples, consumer),
    }
    attached: dict[str, Callable[[], tuple[float, float]]] = {
        f"attached/{OLD}": partial(run_attached, old, 2, consumer),
        f"attached/{OURS}": partial(run_attached, ours, attached_steps, consumer),
    }
    runs: dict[str, list[Any]] = rounds(passes | attached, repeats)
    simulated = consumer.simulated
    result: Facts = {
        name: step_table(
            {way: runs[f"{name}/{way}"] for way in (OLD, OURS)}, guide_ms, simulated=simulated
        )
        for name, guide_ms in GUIDE_MS.items()
    }
    result["attached"] = attached_table(
        {way: runs[f"attached/{way}"] for way in (OLD, OURS)}, simulated=simulated
    )
    result["summary"] = summarise(result, simulated=simulated)
    return result


# ---- the four ways ------------------------------------------------------------------------------


def old_raw(data: Data, laps: Laps) -> Batches:
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

    def __call__(self, laps: Laps) -> Batches:
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


def old_preprocessed(data: Data, laps: Laps) -> Batches:
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
        dataset = VolumeDataset(data.shards, verify="off")
        self._loader = make_loader(dataset, shuffle=True, device=self._device, copy=False)

    def __call__(self, laps: Laps) -> Batches:
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


# ---- the consumer, and running them -------------------------------------------------------------


class Consumer(Protocol):
    """Takes one batch after the other, and knows how long it was busy."""

    name: str
    simulated: bool

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a batch: (B, 1, D, H, W), host or GPU, and (B, classes)."""

    def drain(self) -> float:
        """Wait until all batches are done with; busy seconds since the last call."""


class SimulatedStep:
    """Waits as long as the old guide's GPU operations took, and computes nothing."""

    name = f"simulated: a fixed wait of {WAIT_S * 1e3:.0f} ms"
    simulated = True

    def __init__(self) -> None:
        self._busy_s = 0.0

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        began = time.perf_counter()
        time.sleep(WAIT_S)
        self._busy_s += time.perf_counter() - began

    def drain(self) -> float:
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s


class TrainingStep:
    """Forward, backward and optimiser step of a small 3-D CNN, bfloat16 autocast, on a GPU.

    Busy is what lies between two CUDA events around the step; the upload of a batch that comes
    from the host is not in it.
    """

    name = "training step of a small 3-D CNN, bfloat16 autocast"
    simulated = False

    def __init__(self, device: str = "cuda") -> None:
        nn = torch.nn
        self._device = device
        self._model = nn.Sequential(
            *(nn.Conv3d(1, 32, kernel_size=4, stride=4), nn.GELU()),
            *(nn.Conv3d(32, 64, kernel_size=3, stride=2, padding=1), nn.GELU()),
            *(nn.Conv3d(64, 128, kernel_size=3, stride=2, padding=1), nn.GELU()),
            *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, _CLASSES)),
        ).to(device)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        volume = volume.to(self._device, non_blocking=True)
        # A study without a label row has NaN.
        labels = labels.to(self._device, non_blocking=True).nan_to_num()
        event: Any = torch.cuda.Event  # neither this nor backward has types
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        with torch.autocast(self._device, torch.bfloat16):
            logits = self._model(volume)
        loss: Any = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        end.record()
        self._events.append((begin, end))

    def drain(self) -> float:
        torch.cuda.synchronize()
        busy_ms: float = sum(begin.elapsed_time(end) for begin, end in self._events)
        self._events.clear()
        return busy_ms / 1e3


def make_consumer() -> Consumer:
    """The training step where there is a GPU, else the wait."""
    return TrainingStep() if torch.cuda.is_available() else SimulatedStep()


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
) -> Facts:
    """One of the guide's tables, with what was measured beside it."""
    consumed, total = (WAIT, TOTAL_WAITED) if simulated else (GPU, TOTAL)
    contenders: dict[str, Facts] = {}
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
    ours_s = contenders[OURS][LOADING]["median"]
    for facts in contenders.values():
        facts["ctgpu_loading_over_this"] = facts[LOADING]["median"] / ours_s
    return {
        "old_guide_ms": dict(guide_ms),
        "contenders": contenders,
        "simulated": [WAIT, TOTAL_WAITED] if simulated else [],
        "not_measured": [GPU] if simulated else [],
    }


def attached_table(runs: Mapping[str, Sequence[tuple[float, float]]], *, simulated: bool) -> Facts:
    """A training step with the loader before it: how long it takes, how busy the consumer is."""
    step_time, consumer_busy = attached_names(simulated=simulated)
    contenders: dict[str, Facts] = {
        way: {
            step_time: measured([step_s for step_s, _ in of_way], "s"),
            # Seconds in a second: more is better.
            consumer_busy: measured([busy for _, busy in of_way], "s/s"),
        }
        for way, of_way in runs.items()
    }
    ours_s = contenders[OURS][step_time]["median"]
    for facts in contenders.values():
        facts["ctgpu_over_this"] = facts[step_time]["median"] / ours_s
    return {"contenders": contenders, "simulated": simulated}


def attached_names(*, simulated: bool) -> tuple[str, str]:
    """What a step's time and the consumer's busy share are called."""
    prefix = "simulated_" if simulated else ""
    return f"{prefix}step_time", f"{prefix}consumer_busy"


def summarise(tables: Mapping[str, Any], *, simulated: bool) -> dict[str, Facts]:
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
    utilisation = {"unit": "s/s", **busy, "ratio": busy[OURS] / busy[OLD]}
    of_consumer = {"simulated": simulated}
    rows: dict[str, Facts] = {
        "data loading time": {"unit": "s", **loading, "ratio": loading[OLD] / loading[OURS]},
        "GPU utilisation": dict.fromkeys((OLD, OURS), NOT_MEASURED) if simulated else utilisation,
        "step time": {"unit": "s", **steps, "ratio": steps[OLD] / steps[OURS], **of_consumer},
        "CPU threads needed": {
            "unit": "threads",
            **threads,
            "change": threads[OURS] / threads[OLD] - 1,
            "consumer_s": consumer_s,
            **of_consumer,
        },
    }
    rows = {quantity: row | {"old_guide": GUIDE_CLAIMS[quantity]} for quantity, row in rows.items()}
    if simulated:
        rows["share of time that the consumer was busy"] = utilisation | of_consumer
    return rows
