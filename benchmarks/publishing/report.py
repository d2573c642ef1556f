"""Writes what documents say about performance, and its pictures, from ``benchmarks/results/``.

``python benchmarks/report.py`` rewrites the README's section and ``docs/performance.md``; a test
fails where they and the results differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.asking import REAL_CT_ORIGIN, RESULTS
from benchmarks.harness.machine import REPOSITORY, machine_line
from benchmarks.publishing import bars, tables

README = REPOSITORY / "README.md"
PAGE = REPOSITORY / "docs" / "performance.md"
BEGIN = "<!-- performance: made by `python benchmarks/report.py` -->\n"
END = "<!-- /performance -->\n"

#: Pictures in `docs/performance/`, and the results that they show.
PICTURES = {
    "stages.png": "build",
    "roofline.png": "preprocess",
    "loading.png": "loading",
    "distribute.png": "distribute",
}

#: What the documents are made of.
NAMES = ("build", "preprocess", "loading", "distribute", "reliability", "project")

Result = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite both, and draw their pictures."""
    results = load_all(RESULTS)
    README.write_text(with_section(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    for picture, name in PICTURES.items():
        bars.draw(results[name], PAGE.with_suffix("") / picture)
    return 0


def load_all(folder: Path) -> dict[str, Result]:
    """Every result that the documents need, and the GPU's where there is one.

    Raises
    ------
    SystemExit
        With one sentence, where one has not been measured.
    """
    results = {}
    for name in (*NAMES, "gpu"):
        path = folder / f"{name}.json"
        if path.is_file():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
        elif name != "gpu":
            script = "project" if name == "project" else f"run_{name}"
            raise SystemExit(f"{name}.json is not in {folder.name}: run benchmarks/{script}.py")
    return results


def with_section(readme: str, results: Mapping[str, Result]) -> str:
    """`readme` with the section that the results give."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + section(results) + END + after


def section(results: Mapping[str, Result]) -> str:
    """The README's section, as Markdown."""
    build, one, loading = results["build"], results["preprocess"], results["loading"]
    shown = ("ctgpu", "torch written well", "SimpleITK", "numpy + torch steps", "TorchIO", "MONAI")
    few = {n: f for n, f in one["contenders"].items() if n in (*shown, one["ctgpu"])}
    return _joined(
        [_machine(build), "The old way is what the scripts did that ctgpu replaces."],
        ["**The whole job**, from a local Hub to shards, downloads and payloads checked:"],
        tables.build_table(build),
        _picture("docs/performance/stages.png", "Rate of each way, and how busy each stage was"),
        ["**One volume**, voxels in memory to float16, one thread:"],
        tables.volume_table(one, few),
        _picture("docs/performance/roofline.png", "Rate of each contender below the memory's"),
        ["**Loading**, against what an old guide to those scripts claims:"],
        tables.summary_table(loading),
        tables.loading_note(loading),
        tables.distribution_lines(results["distribute"])[:1],
        tables.gpu(results.get("gpu")),
        [
            "Per-step tables, other readers, thread counts, cold files, Ray, survival, and a "
            "projection of CT-RATE's whole train split: "
            "[docs/performance.md](docs/performance.md). "
            "`python -m benchmarks` runs every benchmark at tiny size."
        ],
    )


def page(results: Mapping[str, Result]) -> str:
    """``docs/performance.md``."""
    build, one, loading = results["build"], results["preprocess"], results["loading"]
    return _joined(
        ["# Performance"],
        ["<!-- made by `python benchmarks/report.py` from benchmarks/results/; do not edit -->"],
        [_machine(build), *_elsewhere(results)],
        [REAL_CT_ORIGIN],
        _heading("The whole job", "run_build.py", build),
        tables.build_table(build),
        _picture("performance/stages.png", "Rate of each way, and how busy each stage was"),
        _heading("One volume", "run_preprocess.py", one),
        tables.volume_table(one, one["contenders"]),
        _picture("performance/roofline.png", "Rate of each contender below the memory's"),
        tables.floor_lines(one),
        tables.first_call_table(one),
        _heading("Loading: the old guide's tables", "run_loading.py", loading),
        tables.step_table("before", loading["steps"]["before"]),
        tables.step_table("after", loading["steps"]["after"]),
        tables.summary_table(loading),
        tables.loading_note(loading),
        ["## Loading: other readers"],
        tables.reader_table(loading),
        tables.thread_table(loading),
        tables.cold_lines(loading),
        _picture("performance/loading.png", "Samples per second by reader and by threads"),
        _heading("Several processes and machines", "run_distribute.py", results["distribute"]),
        tables.distribution_lines(results["distribute"]),
        tables.scaling_table(results["distribute"]),
        _picture("performance/distribute.png", "Shards per second over workers"),
        _heading("What survives", "run_reliability.py", results["reliability"]),
        tables.survival_table(results["reliability"]),
        _heading("The whole train split, projected", "project.py", results["project"]),
        tables.projection(results["project"], build),
        ["## GPU"],
        tables.gpu(results.get("gpu")),
    )


def _joined(*parts: Sequence[str]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _heading(title: str, script: str, result: Result) -> list[str]:
    facts = [str(result[key]) for key in ("data", "cache") if key in result]
    facts.append(f"`python benchmarks/{script}`")
    return [f"## {title}", "", "; ".join(facts) + "."]


def _machine(result: Result) -> str:
    machine = result["machine"]
    return (
        f"Measured on {machine_line(machine)}, {machine['utc'].partition('T')[0]}; medians of "
        "interleaved runs, every ratio within one run, files warm where nothing else is said. "
        "Your machine gives other times."
    )


def _elsewhere(results: Mapping[str, Result]) -> list[str]:
    """The machines that are not the one of the whole job."""
    usual = machine_line(results["build"]["machine"])
    others = {name: machine_line(result["machine"]) for name, result in results.items()}
    return [f"`{n}` was measured on {where}." for n, where in others.items() if where != usual]


def _picture(path: str, text: str) -> list[str]:
    return [f"![{text}]({path})"]
