"""What the documents say about performance is what the results say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_results import gpu_result
from quick_runs import Quick

from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import in_words, measured
from benchmarks.publishing import report


def test_the_readme_and_the_page_are_those_of_the_results() -> None:
    results = report.load_all(report.RESULTS)
    readme = report.README.read_text(encoding="utf-8")
    assert report.BEGIN in readme
    assert report.END in readme
    assert report.with_section(readme, results) == readme
    assert report.PAGE.read_text(encoding="utf-8") == report.page(results)


def test_the_pictures_are_there() -> None:
    page, readme = report.PAGE.read_text(), report.README.read_text()
    for picture in report.PICTURES:
        assert f"](performance/{picture})" in page
        assert (report.PAGE.with_suffix("") / picture).read_bytes().startswith(b"\x89PNG")
    assert "](docs/performance/stages.png)" in readme
    assert "](docs/performance/roofline.png)" in readme


def test_a_first_call_is_shown_where_it_was_measured() -> None:
    results = report.load_all(report.RESULTS)
    one = dict(results["preprocess"])
    one.pop("first_call", None)
    assert "used again" not in report.page(results | {"preprocess": one})
    first_call = {
        layout: {
            "memory used again": {"time": measured([0.05], "s"), "this_over_used_again": 1.0},
            "fresh memory": {"time": measured([0.0625], "s"), "this_over_used_again": 1.25},
        }
        for layout in ("HWD", "DHW")
    }
    page = report.page(results | {"preprocess": one | {"first_call": first_call}})
    assert "| D, H, W, fresh memory | 62.5 ms | 1.25 × |" in page


@pytest.fixture(scope="module")
def folder(quick: Callable[[str], Quick], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all benchmarks at tiny size."""
    made = tmp_path_factory.mktemp("results")
    for name in report.NAMES:
        ran = quick(name if name == "project" else f"run_{name}")
        shutil.copy(ran.json, made / f"{name}.json")
    return made


@pytest.mark.slow
def test_the_documents_say_what_was_measured_on_what(folder: Path) -> None:
    results = report.load_all(folder)
    build, one, loading = results["build"], results["preprocess"], results["loading"]
    section, page = report.section(results), report.page(results)
    for text in (section, page):
        assert machine_line(build["machine"]) in text
        assert build["machine"]["utc"][:10] in text
        for facts in build["formats"].values():
            for contender in facts["contenders"].values():
                assert in_words(contender["rate"]["median"], "samples/s") in text
        for row in loading["steps"]["summary"].values():
            assert row.get("old_guide", "") in text
        assert "simulated" in text
        assert "No GPU has been measured yet" in text
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


@pytest.mark.slow
def test_only_the_section_of_the_readme_is_replaced(folder: Path) -> None:
    results = report.load_all(folder)
    readme = f"before\n{report.BEGIN}old figures\n{report.END}after\n"
    made = report.with_section(readme, results)
    assert made == f"before\n{report.BEGIN}{report.section(results)}{report.END}after\n"


@pytest.mark.slow
def test_a_gpus_result_takes_the_place_of_its_absence(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "results")
    (tmp_path / "results/gpu.json").write_text(json.dumps(gpu_result()))
    section = report.section(report.load_all(tmp_path / "results"))
    assert "No GPU has been measured yet" not in section
    assert "7.2 × as fast as torch" in section
    assert "80.0 samples/s, 80% of the rate of the copies alone" in section


def test_it_says_which_benchmark_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run benchmarks/run_build\.py"):
        report.load_all(tmp_path)
