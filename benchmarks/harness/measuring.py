"""Repeats, medians and ratios: measured quantities, as every result holds them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

from ctgpu.buffers import allocate_pages

Array = npt.NDArray[Any]
Run = Callable[[], object]
#: Named figures, of which some are measured quantities: what a result is made of.
Facts = dict[str, Any]
T = TypeVar("T")

# Names and sizes of what a unit is shown in, small to large.
_SIZES = {
    "s": (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)),
    "bytes": (("bytes", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)),
}

median = statistics.median


# ---- running ------------------------------------------------------------------------------------


def rounds(
    runs: Mapping[str, Callable[[], T]], repeats: int, *, warm_ups: int = 1
) -> dict[str, list[T]]:
    """What every run returns in `repeats` rounds, and before these `warm_ups` that are not kept.

    They take turns, which spreads the machine's slow moments over all contenders.
    """
    kept: dict[str, list[T]] = {name: [] for name in runs}
    for turn in range(-warm_ups, repeats):
        for name, run in runs.items():
            value = run()
            if turn >= 0:
                kept[name].append(value)
    return kept


def seconds_of(run: Run) -> float:
    """Wall-clock seconds of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def timed(runs: Mapping[str, Run], repeats: int, *, warm_ups: int = 1) -> dict[str, Facts]:
    """The time of each, by :func:`rounds`, undisturbed by the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        seconds = {name: partial(seconds_of, run) for name, run in runs.items()}
        return times_of(rounds(seconds, repeats, warm_ups=warm_ups))
    finally:
        gc.enable()


def times_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, Facts]:
    """``{"time": …}`` of runs that were clocked already, as contenders have it."""
    return {name: {"time": measured(runs, "s")} for name, runs in seconds.items()}


def rated(
    runs: Mapping[str, Run], samples: int, repeats: int, *, warm_ups: int = 1
) -> dict[str, Facts]:
    """``{"rate": …, "cpu_per_sample": …}`` of each, by :func:`rounds`; a run makes `samples`."""

    def each(run: Run) -> tuple[float, float]:
        began_cpu = cpu_seconds()
        wall_s = seconds_of(run)
        return samples / wall_s, (cpu_seconds() - began_cpu) / samples

    clocked = {name: partial(each, run) for name, run in runs.items()}
    facts = {}
    for name, taken in rounds(clocked, repeats, warm_ups=warm_ups).items():
        rates, cpu_s = zip(*taken, strict=True)
        facts[name] = {"rate": measured(rates, "samples/s"), "cpu_per_sample": measured(cpu_s, "s")}
    return facts


def cpu_seconds() -> float:
    """CPU time so far of all threads of this process and of its living children."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def in_pages(shape: tuple[int, ...], dtype: npt.DTypeLike, *, order: Any = "C") -> Array:
    """An array in the memory that the pipeline uses: page-aligned, huge pages where granted."""
    kind = np.dtype(dtype)
    memory = allocate_pages(int(np.prod(shape)) * kind.itemsize)
    memory.fill(0)
    return np.ndarray(shape, kind, buffer=memory.data, order=order)


# ---- quantities ---------------------------------------------------------------------------------


def measured(runs: Sequence[float], unit: str) -> Facts:
    """One measured quantity, as every result holds it: ``compare`` and the pictures look for these.

    Of `runs` there is the value of each, in the order of the rounds.  Of units such as ``"s"`` and
    ``"bytes"`` less is better, of rates such as ``"samples/s"`` more.
    """
    ends = {"median": median(runs), "min": min(runs), "max": max(runs)}
    return {"unit": unit, **ends, "runs": list(runs)}


def counted(value: int, unit: str) -> Facts:
    """One quantity that is the same in every run: to ``compare`` any difference is one."""
    return {"unit": unit, "runs": [value], "exact": True}


def with_ratio(
    facts: dict[str, Facts], key: str, reference: str, figure: str = "time"
) -> dict[str, Facts]:
    """Each contender with the ratio of its median `figure` to that of `reference`, one of them.

    The ratio is kept under `key`: ``"this_over_…"``, or ``"…_over_this"`` the other way round.
    `facts` are changed, and returned.
    """
    first = facts[reference][figure]["median"]
    for of in facts.values():
        this = of[figure]["median"]
        of[key] = first / this if key.endswith("_over_this") else this / first
    return facts


def with_bandwidth(facts: dict[str, Facts], bytes_moved: int) -> dict[str, Facts]:
    """Each contender with the rate at which it moves so many bytes, read and written together."""
    for of in facts.values():
        of["gb_per_s"] = bytes_moved / of["time"]["median"] / 1e9
    return facts


def more_is_better(unit: str) -> bool:
    """Whether a larger value of `unit` is the better one: it is a rate."""
    return unit.endswith("/s")


def is_measured(node: Any) -> bool:
    """Whether a part of a result is what :func:`measured` makes."""
    return isinstance(node, dict) and {"unit", "runs"} <= node.keys()


def measured_leaves(
    tree: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Facts]]:
    """Every quantity of :func:`measured` in a result, with the keys that lead to it."""
    if is_measured(tree):
        yield path, tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from measured_leaves(branch, (*path, name))


def is_peers(path: Sequence[str]) -> bool:
    """Whether a quantity at `path` is that of a contender other than ctgpu."""
    below = path[path.index("contenders") + 1 :] if "contenders" in path else ()
    return bool(below) and not below[0].startswith("ctgpu")


# ---- in words -----------------------------------------------------------------------------------


def in_words(value: float, unit: str) -> str:
    """A value with three digits, never an exponent, and a unit of fitting size: ``"27.1 ms"``."""
    sizes = _SIZES.get(unit, ((unit, 1.0),))
    shown, size = next((s for s in reversed(sizes) if s[1] <= abs(value)), sizes[0])
    return f"{three_digits(value / size)} {shown}"


def median_in_words(quantity: Mapping[str, Any]) -> str:
    """The median of a measured quantity."""
    return in_words(quantity["median"], quantity["unit"])


def three_digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    places = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, places)}f}"
