"""Every benchmark in its quick form, and one page of what came out.

    python -m benchmarks                       this page
    python -m benchmarks compare OLD NEW       what got slower between two results

The sizes are tiny: the page shows that every benchmark runs, and what it measures.  One that is
run by itself prints its part of the page, whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import REPOSITORY, machine_line
from benchmarks.harness.measuring import is_measured, measured_leaves, median_in_words, three_digits

HERE = REPOSITORY / "benchmarks"

#: Exit status of a benchmark that needs a device which is not there.
NO_DEVICE = 3

# How a benchmark's run ends.
_OK, _NEEDS_GPU, _FAILED = "ok", "needs a GPU", "failed"
# Lines for one benchmark of the page; what is beyond them is in the JSON.
_MOST_LINES = 12
# Figures in a line.
_MOST_FIGURES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and print each one's part of the page; returns the exit status."""
    about, *_ = (__doc__ or "").splitlines()
    about += " `python -m benchmarks compare OLD NEW` compares two results."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=about)
    parser.add_argument("--keep", type=Path, help="folder for the results; default: none is kept")
    options = parser.parse_args(arguments)
    print("Benchmarks, tiny sizes: these show that all of it runs, not how fast it is.")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        for script in scripts():
            began = time.perf_counter()
            status, lines = run(script, kept)
            seconds = time.perf_counter() - began
            print("", f"{script.stem}: {status}, {seconds:.1f} s", *lines, sep="\n", flush=True)
            counts[status] += 1
    ends = (_OK, _NEEDS_GPU, _FAILED)
    print("\n" + ", ".join(f"{counts[end]} {end}" for end in ends if counts[end]))
    return int(counts[_FAILED] > 0)


def scripts() -> list[Path]:
    """The scripts of the questions."""
    return [*sorted(HERE.glob("run_*.py")), *HERE.glob("project.py")]


def run(script: Path, folder: Path) -> tuple[str, list[str]]:
    """Run one in its quick form, in a process of its own; its JSON goes to `folder`.

    Returns how it ended, and what the page says of it: figures, or its last words.
    """
    path = folder / f"{script.stem.removeprefix('run_')}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--quick", "--json", str(path)]
    ran = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if ran.returncode == 0 and path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        return _OK, [machine_line(result["machine"]), *part(result, most=_MOST_LINES)]
    needs_gpu = ran.returncode == NO_DEVICE and script.stem == "run_gpu"
    last = (ran.stderr.strip().splitlines() or ["it wrote no result"])[-1]
    return _NEEDS_GPU if needs_gpu else _FAILED, [f"  {last}"]


def part(result: Mapping[str, Any], *, most: int | None = None) -> list[str]:
    """What the page has of one result, `most` lines of it."""
    found = list(headlines(result))
    width = max((len(what) for what, _ in found[:most]), default=0)
    lines = [f"  {what:<{width}}  {value}" for what, value in found[:most]]
    return lines if len(lines) == len(found) else [*lines, f"  and {len(found) - len(lines)} more"]


def headlines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a result says above all: its verdict, its contenders, then all else that it measured.

    Of a simulation, which measures nothing, the figures that stand alone.
    """
    for facts in result.get("verdict", {}).values():
        tried = f"{facts['tried']} tried, {facts['wrong']} {facts['wrong_means']}"
        yield facts["tried_means"], tried
    branches = dict.fromkeys(path[:-1] for path, _ in measured_leaves(dict(result)))
    for path in sorted(branches, key=lambda path: "contenders" not in path):
        place = " / ".join(name for name in path if name != "contenders")
        yield place or "in all", _said(reduce(getitem, path, result))
    if not branches:
        for name, value in result.items():
            if isinstance(value, float):
                yield f"not measured: {name.replace('_', ' ')}", three_digits(value)


def _said(branch: Mapping[str, Any]) -> str:
    """What was measured there, and the ratios beside it."""
    figures, ratios = [], []
    for name, value in branch.items():
        what = "" if name in ("time", "rate") else f"{name.replace('_', ' ')} "
        if is_measured(value):
            exact = value.get("exact")
            figures.append(what + (f"{value['runs'][0]:,}" if exact else median_in_words(value)))
        elif "_over_" in name and isinstance(value, float):
            ratios.append(f"{what}{three_digits(value)} ×")
    more = [f"and {len(figures) - _MOST_FIGURES} more"] if len(figures) > _MOST_FIGURES else []
    return ", ".join(figures[:_MOST_FIGURES] + more + ratios)
