"""What got slower between two results of one benchmark, beyond the noise of their runs?

    python -m benchmarks compare OLD.json NEW.json

A quantity got slower where all three say so: its median changed by 5 % or more; the exact two-sided
rank test of its runs (Mann-Whitney) gives p of 1 % or less; and in four of five pairs of an old and
a new run the new one is worse (the effect size).  Fewer than five runs of each cannot reach such a
p: those are named.  Memory counts like time: more of it is worse.  What was counted rather than
timed (the instructions of a kernel) is the same in every run, so that any difference is one.

Runs of one process share its machine's mood, which no test of them can see.  So where the other
contenders, or all figures, changed by one factor, that is said, and every figure is also judged
relative to it.

Exits with 1 where something got slower, 2 where the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.measuring import (
    Facts,
    in_words,
    is_peers,
    measured,
    measured_leaves,
    median,
    more_is_better,
)
from ctgpu.errors import reason_of

SMALLEST_FACTOR = 1.05
MOST_P = 0.01
LEAST_EFFECT = 0.8

#: Facts of the machine without which two results cannot be held against each other.
MACHINE = ("cpu", "usable_cores", "ctgpu_cpu_variant", "gpu", "system")

# Fewer figures than this say nothing about a factor that they have in common.
_FEWEST_FOR_FACTOR = 3


class UnusableError(Exception):
    """Why two files cannot be compared, in one sentence."""


@dataclass(frozen=True)
class Change:
    """One quantity, then and now, by its place in both results.

    `factor` is how many times worse the median is, `p` and `effect` are as said above.
    """

    path: tuple[str, ...]
    old: Facts
    new: Facts
    factor: float
    p: float
    effect: float

    @classmethod
    def of(cls, path: tuple[str, ...], old: Facts, new: Facts) -> Change:
        """Compare the runs of one quantity."""
        worse, better = new["median"], old["median"]
        if more_is_better(old["unit"]):
            worse, better = better, worse
        factor = 1.0 if worse == better else worse / better if better else math.inf
        if old.get("exact") and new.get("exact"):
            return cls(path, old, new, factor, float(old["runs"] == new["runs"]), float(factor > 1))
        return cls(path, old, new, factor, *_rank_test(old, new))

    @property
    def is_exact(self) -> bool:
        """Whether it was counted both times, and not timed."""
        return bool(self.old.get("exact") and self.new.get("exact"))

    @property
    def is_timed(self) -> bool:
        """Whether it depends on how fast the machine is."""
        return self.old["unit"] == "s" or more_is_better(self.old["unit"])

    @property
    def can_be_told(self) -> bool:
        """Whether there are runs enough to ever find a difference."""
        runs = len(self.old["runs"]), len(self.new["runs"])
        return self.is_exact or 2 / math.comb(sum(runs), runs[0]) <= MOST_P

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the test says so, and the change is large enough to matter."""
        if self.is_exact:
            return self.p == 0.0
        log = abs(math.log(self.factor)) if 0 < self.factor < math.inf else math.inf
        is_large = max(self.effect, 1 - self.effect) >= LEAST_EFFECT
        return self.p <= MOST_P and is_large and log >= math.log(SMALLEST_FACTOR)

    def relative_to(self, factor: float) -> Change:
        """The same, had the machine been as fast as before; memory does not depend on it."""
        unit = self.new["unit"]
        if not self.is_timed:
            return self
        scale = factor if more_is_better(unit) else 1 / factor
        runs = [value * scale for value in self.new["runs"]]
        return Change.of(self.path, self.old, measured(runs, unit))

    def __str__(self) -> str:
        unit, old, new = self.old["unit"], self.old["median"], self.new["median"]
        change = f"{new / old - 1:+.0%}" if old else "from nothing" if new else "no change"
        told = "counted"
        if not self.is_exact:
            runs = f"{len(self.old['runs'])} and {len(self.new['runs'])} runs"
            told = f"worse in {self.effect:.0%} of pairs, p = {self.p:.2g}, {runs}"
        told += ", not ctgpu's own" if is_peers(self.path) else ""
        values = f"{in_words(old, unit)} → {in_words(new, unit)}"
        return f"{' / '.join(self.path)}: {values} ({change}, {told})"


def _rank_test(old: Facts, new: Facts) -> tuple[float, float]:
    """Its p, and the share of pairs in which the new run is worse (of ties, half)."""
    try:
        from scipy.stats import mannwhitneyu
    except ImportError as error:
        raise UnusableError(
            "comparing needs scipy, which is not installed: pip install '.[bench]'"
        ) from error
    tested = mannwhitneyu(new["runs"], old["runs"], alternative="two-sided", method="exact")
    larger = float(tested.statistic) / (len(new["runs"]) * len(old["runs"]))
    return float(tested.pvalue), 1 - larger if more_is_better(old["unit"]) else larger


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; returns the exit status."""
    about = "What got slower between two results of one benchmark?"
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=about)
    parser.add_argument("old", type=Path, help="result from before")
    parser.add_argument("new", type=Path, help="result from after")
    options = parser.parse_args(arguments)
    try:
        return compare(options.old, options.new)
    except UnusableError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def compare(old_path: Path, new_path: Path) -> int:
    """Print how two results differ; 1 where something got slower, else 0."""
    old, new = load(old_path), load(new_path)
    if old["benchmark"] != new["benchmark"]:
        raise UnusableError(
            f"{old_path} is a result of {old['benchmark']} and {new_path} of {new['benchmark']}: "
            "compare two results of one benchmark"
        )
    before, after = dict(measured_leaves(old)), dict(measured_leaves(new))
    both = [path for path in before if path in after]
    if not both:
        raise UnusableError(f"{old_path} and {new_path} have no measured quantity in common")
    alike = [path for path in both if before[path]["unit"] == after[path]["unit"]]
    changes = [Change.of(path, before[path], after[path]) for path in alike]
    print("".join(f"{line}\n" for line in differing_conditions(old, new)), end="")
    got_slower = show(changes)
    for title, paths in (
        ("measured in another unit:", set(both) - set(alike)),
        ("only in the old result:", before.keys() - after.keys()),
        ("only in the new result:", after.keys() - before.keys()),
    ):
        _show_list(title, [" / ".join(path) for path in sorted(paths)])
    return int(got_slower)


def load(path: Path) -> dict[str, Any]:
    """A result, checked as far as a comparison needs it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableError(f"{path} cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise UnusableError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or not {"benchmark", "machine"} <= result.keys():
        raise UnusableError(f"{path} is not a result of a benchmark")
    for place, quantity in measured_leaves(result):
        runs, unit = quantity["runs"], quantity["unit"]
        if not (
            isinstance(unit, str) and isinstance(runs, list) and runs and all(map(_counts, runs))
        ):
            raise UnusableError(
                f"{path} holds runs of {' / '.join(place)} that are not numbers from 0"
            )
        quantity |= measured(runs, unit)
    return result


def _counts(run: Any) -> bool:
    return type(run) in (int, float) and 0 <= run < math.inf


def differing_conditions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else differs between two results, loudest first."""
    machines = old["machine"], new["machine"]
    conditions = sorted({*_conditions(old), *_conditions(new)})
    lines = [
        f"DIFFERENT {what}: {name} was {was}, is {now}"
        for what, names, of in (("MACHINE", MACHINE, machines), ("DATA", conditions, (old, new)))
        for name, was, now in _differing(names, *of)
    ]
    if lines:
        lines.append("So a difference below says nothing about the code.")
    versions = [machine.get("versions", {}) for machine in machines]
    changed = _differing(sorted({*versions[0], *versions[1]}), *versions)
    if told := ", ".join(f"{name} {was or 'none'} → {now or 'none'}" for name, was, now in changed):
        lines.append(f"other versions: {told}")
    return lines


def _differing(
    names: Iterable[str], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, then and now, of those that are not the same; None where one is missing."""
    for name in names:
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _conditions(result: Mapping[str, Any]) -> Iterator[str]:
    """Names of what a result says of its data and settings: neither measured nor derived."""
    for name, value in result.items():
        if name in ("benchmark", "machine", "repeats") or isinstance(value, float):
            continue
        if not isinstance(value, dict) or name in ("source", "spec"):
            yield name


def common_factor(changes: Sequence[Change]) -> tuple[float | None, str]:
    """The factor by which figures got worse together, and which: the peers', or else all.

    None where they did not: fewer than three quarters of them lie around it, or it is small.
    """
    timed = [change for change in changes if change.is_timed and 0 < change.factor < math.inf]
    peers = [change for change in timed if is_peers(change.path)]
    pool, which = (peers, "peers") if len(peers) >= _FEWEST_FOR_FACTOR else (timed, "all")
    if len(pool) < _FEWEST_FOR_FACTOR:
        return None, which
    factor = median([change.factor for change in pool])
    log = math.log(factor)
    near = [change for change in pool if 0.5 <= math.log(change.factor) / (log or 1) <= 1.5]
    if abs(log) < math.log(SMALLEST_FACTOR) or len(near) < 0.75 * len(pool):
        return None, which
    return factor, which


def show(changes: Sequence[Change]) -> bool:
    """Print what was found; whether anything got slower, by itself or relative to the machine."""
    told = [change for change in changes if change.can_be_told]
    beyond = [change for change in told if change.is_beyond_noise]
    slower = [change for change in beyond if change.factor > 1]
    relatively: list[Change] = []
    factor, which = common_factor(changes)
    if factor is not None:
        word = "slower" if factor > 1 else "faster"
        of = "the other contenders" if which == "peers" else "all figures"
        times = f"{max(factor, 1 / factor):.2f} ×"
        print(f"THE MACHINE, rather than the code, seems {word}: {of} changed by {times}.")
        if which == "all":
            print("(A change of the code that everything depends on would look the same.)")
        judged = [change.relative_to(factor) for change in told]
        relatively = [c for c in judged if c.is_beyond_noise and c.factor > 1]
        _show_list("slower also relative to that:", relatively, "none")
    faster = [change for change in beyond if change.factor < 1]
    _show_list("slower, or larger:", slower, "nothing beyond the noise")
    _show_list("faster, or smaller:", faster, "nothing beyond the noise")
    _show_list("too few runs to tell:", [change for change in changes if not change.can_be_told])
    print(f"within the noise: {len(told) - len(beyond)}")
    return bool(slower or relatively)


def _show_list(title: str, rows: Sequence[object], none: str | None = None) -> None:
    if rows:
        print("\n  ".join([title, *map(str, rows)]))
    elif none is not None:
        print(f"{title} {none}")
