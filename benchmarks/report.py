"""Writes the README's performance section from the JSON in ``benchmarks/results/``.

``python benchmarks/report.py`` rewrites it; a test fails where the two differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- performance: made by `python benchmarks/report.py` -->\n"
END = "<!-- /performance -->\n"


def main() -> None:
    """Rewrite the section."""
    README.write_text(with_section(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_section(readme: str) -> str:
    """`readme` with the section that the results give."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + section() + END + after


def section() -> str:
    """The section, as Markdown."""
    build, one, loading = (_load(name) for name in ("build", "preprocess", "loading"))
    return "\n".join(
        [
            _machine(build),
            "",
            "**The whole job**, from a local Hub to shards, download and payload checksums on "
            f"(`benchmarks/run_build.py`; {build['data']}):",
            "",
            "| Files | old way, one thread | old way, one process per core | ctgpu | ratios |",
            "|---|---|---|---|---|",
            *(_build_row(name, facts) for name, facts in build["formats"].items()),
            "",
            "**One volume**, voxels in memory to (480, 480, 240) float16, one thread "
            "(`benchmarks/run_preprocess.py`):",
            "",
            "| Contender | median ms | ctgpu is |",
            "|---|---|---|",
            *_preprocess_rows(one),
            "",
            *_floor_lines(one),
            "",
            "**Loading** a 110.6 MB sample, warm files (`benchmarks/run_loading.py`):",
            "",
            "| Contender | samples/s | CPU seconds per sample |",
            "|---|---|---|",
            *(
                f"| {name} | {facts['samples_per_s']:.3g} | {facts['cpu_s_per_sample']:.3g} |"
                for name, facts in loading["warm"]["contenders"].items()
            ),
            "",
            "No GPU has been measured yet: see [docs/gpu.md](docs/gpu.md).",
            "",
        ]
    )


def _load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"Measured on {machine['usable_cores']} cores of an {machine['cpu']} "
        f"({machine['ctgpu_cpu_variant']}), {machine['memory_gib']:.0f} GiB, no GPU; medians of "
        "interleaved runs, every ratio within one run. Your machine gives other times."
    )


def _build_row(name: str, facts: dict[str, Any]) -> str:
    rates = facts["median_samples_per_s"]
    return (
        f"| `{name}` | {rates['old, one thread']:.3g} samples/s "
        f"| {rates['old, one process per core']:.3g} | **{rates['ctgpu']:.3g}** "
        f"| **{facts['ctgpu_over_old_one_thread']:.1f} ×** and "
        f"{facts['ctgpu_over_old_per_core']:.1f} × |"
    )


def _preprocess_rows(result: dict[str, Any]) -> list[str]:
    runs = result["contenders"]["runs"]
    ours = runs[f"ctgpu {result['machine']['ctgpu_cpu_variant']}"]["median_ms"]
    return [
        f"| {name} | {_short(facts['median_ms'])} | {_short(facts['median_ms'] / ours)} × |"
        for name, facts in runs.items()
    ]


def _short(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _floor_lines(result: dict[str, Any]) -> list[str]:
    whole = result["floor"]["uncropped"]
    two = result["threads"]
    return [
        f"Where all of the source is needed ({whole['bytes_moved'] / 1e6:.0f} MB moved) that is "
        f"{whole['ctgpu_over_floor']:.2f} × the floor (one read and one streaming write, "
        f"{whole['floor_gb_per_s']:.0f} GB/s) and {whole['ctgpu_over_copy']:.2f} × a `memcpy` of "
        f"as many bytes. Two threads: {two['2']['speedup']:.2f} × one."
    ]


if __name__ == "__main__":
    main()
