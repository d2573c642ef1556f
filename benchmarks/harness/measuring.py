"""Repeats, medians and ratios: measured quantities, as every result holds them."""

from __future__ import annotations

import gc
import math
import resource
import statistics
import sys
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
    """What every run returns, one after the other and round by round.

    Interleaving spreads the machine's slow moments over all contenders.

    Parameters
    ----------
    runs : mapping of str to callable
        Each is called without arguments.
    repeats, warm_ups : int
        Rounds that are kept, and before them those that are not.
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


def interleaved(
    runs: Mapping[str, Run], repeats: int, *, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Wall-clock seconds of every run, by :func:`rounds`, undisturbed by the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        clocked = {name: partial(seconds_of, run) for name, run in runs.items()}
        return rounds(clocked, repeats, warm_ups=warm_ups)
    finally:
        gc.enable()


def timed(runs: Mapping[str, Run], repeats: int) -> dict[str, Facts]:
    """The time of each, ``{"time": …}``, as contenders have it."""
    return times_of(interleaved(runs, repeats))


def times_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, Facts]:
    """The same of runs that were clocked already."""
    return {name: {"time": measured(runs, "s")} for name, runs in seconds.items()}


def cpu_seconds() -> float:
    """CPU time so far of all threads of this process and of its living children."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def in_pages(shape: tuple[int, ...], dtype: npt.DTypeLike, *, order: Any = "C") -> Array:
    """An array in the memory that the pipeline uses: page-aligned, huge pages where granted."""
    kind = np.dtype(dtype)
    memory = allocate_pages(int(np.prod(shape)) * kind.itemsize)
    memory.fill(0)
    return np.ndarray(shape, kind, buffer=memory.data, order=order)


# ---- quantities ---------------------------------------------------------------------------------


def measured(runs: Sequence[float], unit: str) -> Facts:
    """One measured quantity, as every result holds it: ``compare`` and the pictures look for these.

    Parameters
    ----------
    runs : sequence of float
        The value of every run, in the order of the rounds.
    unit : str
        ``"s"``, ``"bytes"`` … where less is better, ``"samples/s"``, ``"GB/s"`` … where more is.

    Returns
    -------
    dict
        ``unit``, ``median``, ``min``, ``max`` and ``runs``.
    """
    return {
        "unit": unit,
        "median": median(runs),
        "min": min(runs),
        "max": max(runs),
        "runs": list(runs),
    }


def counted(value: int, unit: str) -> Facts:
    """One quantity that is the same in every run: to ``compare`` any difference is one."""
    return {"unit": unit, "runs": [value], "exact": True}


def with_ratio(
    facts: dict[str, Facts], key: str, reference: str, figure: str = "time"
) -> dict[str, Facts]:
    """Each with the ratio of its median to that of `reference`.

    Parameters
    ----------
    facts : dict
        Contenders by name; they are changed, and returned.
    key : str
        Under which the ratio is kept: ``"this_over_…"``, or ``"…_over_this"`` the other way round.
    reference : str
        One of the contenders.
    figure : str
        What is compared of them.
    """
    first = facts[reference][figure]["median"]
    for of in facts.values():
        this = of[figure]["median"]
        of[key] = first / this if key.endswith("_over_this") else this / first
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
    """A value with three digits, never an exponent, and a unit of fitting size.

    >>> in_words(0.0271, "s")
    '27.1 ms'
    >>> in_words(1.61e9, "bytes")
    '1.61 GB'
    """
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
