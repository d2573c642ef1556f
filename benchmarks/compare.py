"""What got slower between two results of one benchmark, beyond the noise of their runs?

    python -m benchmarks compare OLD.json NEW.json

Every quantity that both results hold is put to an exact two-sided rank test (Mann-Whitney) of its
runs.  It got slower where the test says so, with a chance of at most 5 % that any of the figures is
accused falsely (Bonferroni's correction, after Tarone: quantities that have too few runs to ever be
accused are set aside and named), and where its median changed by 5 % or more.  Memory counts like
time: more of it is worse.

Runs of one process share its machine's mood, which no test of them can see.  So where the other
contenders, or all figures, changed by one factor, that is said, and every figure is also judged
relative to it.

What was counted rather than timed (the instructions of a kernel) is the same in every run, so that
any difference is one.

Exits with 1 where something got slower, 2 where the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import in_words, is_peers, measured, measured_leaves, median, more_is_better
from ctgpu.errors import reason_of

ALPHA = 0.05
SMALLEST_FACTOR = 1.05

#: Facts of the machine without which two results cannot be held against each other.
MACHINE = ("cpu", "usable_cores", "ctgpu_cpu_variant", "gpu", "system")

# Fewer figures than this say nothing about a factor that they have in common.
_FEWEST_FOR_FACTOR = 3


class UnusableError(Exception):
    """Why two files cannot be compared, in one sentence."""


@dataclass(frozen=True)
class Change:
    """One quantity, then and now.

    Attributes
    ----------
    path : tuple of str
        Where it is in both results.
    old, new : dict
        What was measured.
    factor : float
        How many times worse the median is; below one where it is better.
    p : float
        Chance that runs of equal speed differ as much as these.
    smallest_p : float
        The least that `p` can be with as many runs.
    """

    path: tuple[str, ...]
    old: dict[str, Any]
    new: dict[str, Any]
    factor: float
    p: float
    smallest_p: float

    @classmethod
    def of(cls, path: tuple[str, ...], old: dict[str, Any], new: dict[str, Any]) -> Change:
        """Compare the runs of one quantity."""
        if old.get("exact") and new.get("exact"):
            differs = old["runs"] != new["runs"]
            return cls(path, old, new, _times_worse(old, new), 0.0 if differs else 1.0, 0.0)
        runs = len(old["runs"]), len(new["runs"])
        return cls(
            path,
            old,
            new,
            _times_worse(old, new),
            _rank_test(old["runs"], new["runs"]),
            2 / math.comb(sum(runs), runs[0]),
        )

    @property
    def is_exact(self) -> bool:
        """Whether it was counted both times, and not timed."""
        return bool(self.old.get("exact") and self.new.get("exact"))

    def relative_to(self, factor: float) -> Change:
        """The same, had the machine been as fast as before; memory does not depend on it."""
        unit = self.new["unit"]
        if not _is_timed(unit):
            return self
        scale = factor if more_is_better(unit) else 1 / factor
        runs = [value * scale for value in self.new["runs"]]
        return Change.of(self.path, self.old, measured(runs, unit))

    def is_beyond_noise(self, threshold: float) -> bool:
        """Whether the test says so, and the change is large enough to matter."""
        if self.is_exact:
            return self.p == 0.0
        log = abs(math.log(self.factor)) if 0 < self.factor < math.inf else math.inf
        return self.p <= threshold and log >= math.log(SMALLEST_FACTOR)

    def __str__(self) -> str:
        unit = self.old["unit"]
        old, new = self.old["median"], self.new["median"]
        change = f"{new / old - 1:+.0%}" if old else "from nothing" if new else "no change"
        peers = ", not ctgpu's own" if is_peers(self.path) else ""
        runs = f"{len(self.old['runs'])} and {len(self.new['runs'])} runs"
        told = "counted" if self.is_exact else f"p = {self.p:.2g}, {runs}"
        return (
            f"{' / '.join(self.path)}: {in_words(old, unit)} → {in_words(new, unit)} "
            f"({change}, {told}{peers})"
        )


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` found; each change is in one of the first four lists.

    Attributes
    ----------
    slower, faster : list of Change
        Beyond the noise.
    unchanged : list of Change
        Within it.
    too_few : list of Change
        Whose runs are too few to tell.
    factor : float or None
        By which the machine seems slower; None where nothing points to that.
    factor_of : str
        Which figures changed by it.
    relatively_slower : list of Change
        Beyond the noise even with that factor taken out.
    """

    slower: list[Change]
    faster: list[Change]
    unchanged: list[Change]
    too_few: list[Change]
    factor: float | None
    factor_of: str
    relatively_slower: list[Change]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="What got slower between two results of one benchmark?",
    )
    parser.add_argument("old", type=Path, help="result from before")
    parser.add_argument("new", type=Path, help="result from after")
    options = parser.parse_args(arguments)
    try:
        old, new = load(options.old), load(options.new)
        if old["benchmark"] != new["benchmark"]:
            raise UnusableError(
                f"{options.old} is a result of {old['benchmark']} and {options.new} of "
                f"{new['benchmark']}: compare two results of one benchmark"
            )
        before, after = dict(measured_leaves(old)), dict(measured_leaves(new))
        both = [path for path in before if path in after]
        if not both:
            raise UnusableError(
                f"{options.old} and {options.new} have no measured quantity in common"
            )
        verdict = judge(
            Change.of(path, before[path], after[path])
            for path in both
            if before[path]["unit"] == after[path]["unit"]
        )
    except UnusableError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for line in differing_conditions(old, new):
        print(line)
    show(verdict)
    _show_list(
        "measured in another unit:",
        [" / ".join(path) for path in both if before[path]["unit"] != after[path]["unit"]],
    )
    _show_list("only in the old result:", [" / ".join(p) for p in before if p not in after])
    _show_list("only in the new result:", [" / ".join(p) for p in after if p not in before])
    return 1 if verdict.slower or verdict.relatively_slower else 0


def load(path: Path) -> dict[str, Any]:
    """A result, checked as far as a comparison needs it.

    Raises
    ------
    UnusableError
        If the file cannot be read or is not what a benchmark writes.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableError(f"{path} cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise UnusableError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or not {"benchmark", "machine"} <= result.keys():
        raise UnusableError(f"{path} is not a result of a benchmark")
    for place, quantity in measured_leaves(result):
        runs = quantity["runs"]
        if not (
            isinstance(quantity["unit"], str)
            and isinstance(runs, list)
            and runs
            and all(type(run) in (int, float) and math.isfinite(run) and run >= 0 for run in runs)
        ):
            raise UnusableError(
                f"{path} holds runs of {' / '.join(place)} that are not numbers from 0"
            )
        quantity |= measured(runs, quantity["unit"])
    return result


def differing_conditions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else differs between two results, loudest first."""
    machines = old["machine"], new["machine"]
    lines = [
        f"DIFFERENT MACHINE: {name} was {machines[0].get(name)}, is {machines[1].get(name)}"
        for name in MACHINE
        if machines[0].get(name) != machines[1].get(name)
    ]
    lines += [
        f"DIFFERENT DATA: {name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted({*_conditions(old), *_conditions(new)})
        if old.get(name) != new.get(name)
    ]
    if lines:
        lines.append("So a difference below says nothing about the code.")
    versions = [machine.get("versions", {}) for machine in machines]
    changed = [
        f"{name} {versions[0].get(name, 'none')} → {versions[1].get(name, 'none')}"
        for name in sorted({*versions[0], *versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    if changed:
        lines.append(f"other versions: {', '.join(changed)}")
    return lines


def _conditions(result: Mapping[str, Any]) -> Iterable[str]:
    """Names of what a result says of its data and settings: neither measured nor derived."""
    for name, value in result.items():
        if name in ("benchmark", "machine", "repeats") or isinstance(value, float):
            continue
        if not isinstance(value, dict) or name in ("source", "spec"):
            yield name


def judge(changes: Iterable[Change]) -> Verdict:
    """Sort changes into those beyond the noise, those within it, and those nobody can tell."""
    every = list(changes)
    threshold = strict_threshold([change.smallest_p for change in every if not change.is_exact])
    told = [change for change in every if change.smallest_p <= threshold]
    beyond = [change for change in told if change.is_beyond_noise(threshold)]
    factor, factor_of = common_factor(every)
    relative = [change.relative_to(factor) for change in told] if factor else []
    return Verdict(
        slower=[change for change in beyond if change.factor > 1],
        faster=[change for change in beyond if change.factor < 1],
        unchanged=[change for change in told if change not in beyond],
        too_few=[change for change in every if change.smallest_p > threshold],
        factor=factor,
        factor_of=factor_of,
        relatively_slower=[
            change for change in relative if change.factor > 1 and change.is_beyond_noise(threshold)
        ],
    )


def strict_threshold(smallest: Sequence[float]) -> float:
    """What a figure's p must not exceed, for a chance of :data:`ALPHA` of any false accusation.

    Bonferroni's correction over those alone that can reach it (Tarone 1990).
    """
    for tests in range(1, len(smallest)):
        if sum(p <= ALPHA / tests for p in smallest) <= tests:
            return ALPHA / tests
    return ALPHA / max(1, len(smallest))


def common_factor(changes: Sequence[Change]) -> tuple[float | None, str]:
    """The factor by which figures got worse together, and which: the peers', or else all.

    None where they did not: fewer than three quarters of them lie around it, or it is small.
    """
    timed = [
        change
        for change in changes
        if _is_timed(change.old["unit"]) and 0 < change.factor < math.inf
    ]
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


def show(verdict: Verdict) -> None:
    """Print what was found."""
    if verdict.factor is not None:
        word = "slower" if verdict.factor > 1 else "faster"
        which = "the other contenders" if verdict.factor_of == "peers" else "all figures"
        factor = max(verdict.factor, 1 / verdict.factor)
        print(
            f"THE MACHINE, rather than the code, seems {word}: {which} changed by {factor:.2f} ×."
        )
        if verdict.factor_of == "all":
            print("(A change of the code that everything depends on would look the same.)")
        _show_list("slower also relative to that:", verdict.relatively_slower, "none")
    _show_list("slower, or larger:", verdict.slower, "nothing beyond the noise")
    _show_list("faster, or smaller:", verdict.faster, "nothing beyond the noise")
    _show_list("too few runs to tell:", verdict.too_few)
    print(f"within the noise: {len(verdict.unchanged)}")


def _show_list(title: str, rows: Sequence[object], none: str | None = None) -> None:
    if rows:
        print("\n  ".join([title, *map(str, rows)]))
    elif none is not None:
        print(f"{title} {none}")


def _is_timed(unit: str) -> bool:
    return unit == "s" or more_is_better(unit)


def _times_worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    worse, better = new["median"], old["median"]
    if more_is_better(old["unit"]):
        worse, better = better, worse
    if worse == better:
        return 1.0
    return worse / better if better else math.inf


def _rank_test(old: Sequence[float], new: Sequence[float]) -> float:
    try:
        from scipy.stats import mannwhitneyu
    except ImportError as error:
        raise UnusableError(
            "comparing needs scipy, which is not installed: pip install '.[bench]'"
        ) from error
    return float(mannwhitneyu(old, new, alternative="two-sided", method="exact").pvalue)
