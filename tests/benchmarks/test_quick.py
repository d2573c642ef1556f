"""Every benchmark, run once with ``--quick``: its result, its picture, and a report of them all."""

from __future__ import annotations

import functools
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drawn import assert_drawn, texts
from made_results import gpu_result

from benchmarks.harness import page
from benchmarks.harness.asking import RESULTS
from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import in_words, measured_leaves
from benchmarks.publishing import bars, report
from ctgpu.engines import available_engines

pytestmark = pytest.mark.slow

SCRIPTS = [script.stem for script in page.scripts()]
#: Of its clusters tests/distribute has enough.
LONG = "run_distribute"
RUN = [
    pytest.param(script, marks=[pytest.mark.exhaustive] * (script == LONG)) for script in SCRIPTS
]


@dataclass(frozen=True)
class Quick:
    """How ``python benchmarks/<name>.py --quick`` ended, and where it writes."""

    status: int
    stderr: str
    json: Path

    @property
    def result(self) -> dict[str, Any]:
        """What it wrote."""
        assert self.status == 0, self.stderr
        return dict(json.loads(self.json.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quick]:
    """Runs a benchmark by its script's name, without suffix, once for all tests."""
    folder = tmp_path_factory.mktemp("quick")

    @functools.cache
    def run(name: str) -> Quick:
        # Named as those in ``benchmarks/results/`` are.
        written = folder / f"{name.removeprefix('run_')}.json"
        ran = subprocess.run(
            [
                *(sys.executable, str(page.HERE / f"{name}.py"), "--quick"),
                *("--json", str(written)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=page.HERE.parent,
        )
        return Quick(ran.returncode, ran.stderr, written)

    return run


@pytest.mark.parametrize("name", RUN)
def test_quick_runs_and_writes_its_result(name: str, quick: Callable[[str], Quick]) -> None:
    ran = quick(name)
    if name == "run_gpu" and available_engines()["cuda"] is not None:
        assert ran.status == page.NO_DEVICE
        assert ran.stderr.startswith("this benchmark needs a GPU: ")
        assert ran.stderr.count("\n") == 1
        assert not ran.json.exists()
        return
    result = ran.result
    assert result["benchmark"] == name.removeprefix("run_")
    machine = result["machine"]
    assert machine["usable_cores"] >= 1
    assert {"cpu", "memory_gib", "gpu", "ctgpu_cpu_variant", "system", "commit"} <= machine.keys()
    assert machine["versions"]["numpy"]
    quantities = list(measured_leaves(result))
    # A simulation says that it is one, and passes nothing off as measured.
    assert bool(quantities) != result.get("simulated", False)
    assert result.get("data") or not quantities
    for path, quantity in quantities:
        runs = quantity["runs"]
        assert set(quantity) == {"unit", "median", "min", "max", "runs"}, path
        assert isinstance(quantity["unit"], str), path
        assert all(type(run) in (int, float) and math.isfinite(run) for run in runs), path
        assert quantity["median"] == statistics.median(runs), path
        assert (quantity["min"], quantity["max"]) == (min(runs), max(runs)), path


@pytest.mark.parametrize("name", [one for one in RUN if one.values != ("run_gpu",)])
def test_what_a_benchmark_writes_is_drawn(
    name: str, quick: Callable[[str], Quick], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra bench) is not installed")
    ran = quick(name)
    if list(measured_leaves(ran.result)) or ran.result["benchmark"] in bars.PICTURES:
        bars.draw(ran.result, tmp_path / "made.png")
        assert_drawn(tmp_path / "made.png")
    else:
        assert "Nothing in this result was measured." in texts(bars.figure_of(ran.result))


@pytest.fixture(scope="module")
def folder(quick: Callable[[str], Quick], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of which the documents are made."""
    made = tmp_path_factory.mktemp("results")
    for name in (*report.NAMES, "codec"):
        script = name if name == "project" else f"run_{name}"
        written = RESULTS / f"{name}.json" if script == LONG else quick(script).json
        shutil.copy(written, made / f"{name}.json")
    return made


def test_the_documents_say_what_was_measured_on_what(folder: Path) -> None:
    results = report.load_all(folder)
    build, one, loading = results["build"], results["preprocess"], results["loading"]
    section, page = report.section(results), report.page(results)
    for text in (section, page):
        assert machine_line(build["machine"]) in text
        assert build["machine"]["utc"][:10] in text
        assert "No GPU has been measured yet" in text
        for name in ("old, one process per core", "ctgpu"):
            rate = build["formats"][".nii.gz"]["contenders"][name]["rate"]
            assert in_words(rate["median"], "samples/s") in text
    for facts in build["formats"].values():
        for contender in facts["contenders"].values():
            assert in_words(contender["rate"]["median"], "samples/s") in page
    for row in loading["steps"]["summary"].values():
        assert row.get("old_guide", "") in page
    assert "simulated" in page
    for name in one["contenders"]:
        assert f"| {name} |" in page or f"| **{name}** |" in page
    for facts in (f for contenders in one["first_call"].values() for f in contenders.values()):
        assert in_words(facts["time"]["median"], "s") in page
    for table in ("before", "after"):
        for step, guide_ms in loading["steps"][table]["old_guide_ms"].items():
            assert f"| {guide_ms:g} |" in page, step
    for result in results.values():
        assert result.get("data", "") in page
    for text in results["project"]["assumptions"]:
        assert text in page


def test_the_page_says_what_compression_gains_and_costs(folder: Path) -> None:
    results = report.load_all(folder)
    codec, loading, build = (results[name] for name in ("codec", "loading", "build"))
    page = report.page(results)
    (chest,) = codec["chests"].values()
    assert chest.keys() >= {"float16", "float16, 2^-10", "int16", "mask, uint8"}
    for name, one in chest.items():
        for way, ratio in one["raw_over_stored"].items():
            assert f"| {name} | {way} | {ratio:.2f} |" in page
    ratios = loading["compressed"]["raw_over_stored"]
    for name, one in loading["compressed"]["storage"].items():
        assert f"| {name} |" in page
        assert one["contenders"].keys() == ratios.keys()
        assert one["contenders"]["ctgpu, none"]["gain_over_ratio"] == 1
    assert ratios["ctgpu, rice, 2^-10"] > ratios["ctgpu, rice"] > 1
    for disk in build["compressed"]:
        assert f"| {disk} | rice |" in page


def test_only_the_section_of_the_readme_is_replaced(folder: Path) -> None:
    results = report.load_all(folder)
    readme = f"before\n{report.BEGIN}old figures\n{report.END}after\n"
    made = report.with_section(readme, results)
    assert made == f"before\n{report.BEGIN}{report.section(results)}{report.END}after\n"


def test_a_gpus_result_takes_the_place_of_its_absence(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "results")
    (tmp_path / "results/gpu.json").write_text(json.dumps(gpu_result()))
    section = report.section(report.load_all(tmp_path / "results"))
    assert "No GPU has been measured yet" not in section
    assert "7.2 × as fast as torch" in section
    assert "80.0 samples/s, 80% of the rate of the copies alone" in section
