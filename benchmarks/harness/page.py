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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import REPOSITORY, machine_line
from benchmarks.harness.measuring import is_measured, median_in_words, three_digits

HERE = REPOSITORY / "benchmarks"

#: Exit status of a benchmark that needs a device which is not there.
NO_DEVICE = 3

# Lines for one benchmark of the page; what is beyond them is in the JSON.
_MOST_LINES = 12
# Figures in a line.
_MOST_FIGURES = 8


@dataclass(frozen=True)
class Outcome:
    """How one benchmark's run ended.

    Attributes
    ----------
    name : str
        The script's, without its suffix.
    seconds : float
        All of it.
    status : str
        ``"ok"``, ``"needs a GPU"`` or ``"failed"``.
    result : dict
        What it wrote; empty where it wrote nothing.
    complaint : str
        The last line that it printed to standard error.
    """

    name: str
    seconds: float
    status: str
    result: dict[str, Any]
    complaint: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and print the page; returns the exit status."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{lines[0]} `python -m benchmarks compare OLD NEW` compares two results.",
    )
    parser.add_argument("--keep", type=Path, help="folder for the results; default: none is kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        outcomes = []
        for script in scripts():
            print(f"{script.stem} …", file=sys.stderr, flush=True)
            outcomes.append(run(script, kept))
    print("\n".join(page(outcomes)))
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def scripts() -> list[Path]:
    """The scripts of the questions."""
    return [*sorted(HERE.glob("run_*.py")), *HERE.glob("project.py")]


def run(script: Path, folder: Path) -> Outcome:
    """Run one in its quick form, in a process of its own; its JSON goes to `folder`."""
    path = folder / f"{script.stem.removeprefix('run_')}.json"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(path)],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    status = "failed"
    if ran.returncode == 0 and result:
        status = "ok"
    elif ran.returncode == NO_DEVICE and script.stem == "run_gpu":
        status = "needs a GPU"
    complaint = (ran.stderr.strip().splitlines() or ["it wrote no result"])[-1]
    return Outcome(script.stem, seconds, status, result, complaint)


def page(outcomes: Sequence[Outcome]) -> list[str]:
    """The page's lines."""
    lines = ["", "Benchmarks, tiny sizes: these show that all of it runs, not how fast it is."]
    machine = next((o.result["machine"] for o in outcomes if o.result), None)
    if machine:
        lines.append(machine_line(machine))
    for outcome in outcomes:
        lines += ["", f"{outcome.name}: {outcome.status}, {outcome.seconds:.1f} s"]
        if outcome.status == "ok":
            lines += part(outcome.result, most=_MOST_LINES)
        else:
            lines.append(f"  {outcome.complaint}")
    counts = [outcome.status for outcome in outcomes]
    summary = (f"{counts.count(s)} {s}" for s in ("ok", "needs a GPU", "failed") if s in counts)
    return [*lines, "", ", ".join(summary)]


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
    lines = list(_measured_branches(result, ()))
    for path, text in sorted(lines, key=lambda line: "contenders" not in line[0]):
        yield " / ".join(name for name in path if name != "contenders") or "in all", text
    if not lines:
        for name, value in result.items():
            if isinstance(value, float):
                yield f"not measured: {name.replace('_', ' ')}", three_digits(value)


def _measured_branches(
    tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What was measured in each branch, and the ratios beside it."""
    said = [_said(name, value) for name, value in tree.items() if is_measured(value)]
    more = [f"and {len(said) - _MOST_FIGURES} more"] if len(said) > _MOST_FIGURES else []
    ratios = [
        f"{name.replace('_', ' ')} {three_digits(value)} ×"
        for name, value in tree.items()
        if "_over_" in name and isinstance(value, float)
    ]
    if said:
        yield path, ", ".join(said[:_MOST_FIGURES] + more + ratios)
    for name, value in tree.items():
        if isinstance(value, dict) and not is_measured(value):
            yield from _measured_branches(value, (*path, name))


def _said(name: str, quantity: Mapping[str, Any]) -> str:
    what = "" if name in ("time", "rate") else f"{name.replace('_', ' ')} "
    if quantity.get("exact"):
        return f"{what}{quantity['runs'][0]:,}"
    return what + median_in_words(quantity)
