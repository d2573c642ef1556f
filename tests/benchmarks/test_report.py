"""What the documents say about performance is what the results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.harness.measuring import measured
from benchmarks.publishing import report

pytest.importorskip("jinja2", reason="jinja2 (extra bench) is not installed")


def test_the_sections_and_the_page_are_those_of_the_results() -> None:
    results = report.load_all(report.RESULTS)
    for document in report.SECTIONS:
        text = document.read_text(encoding="utf-8")
        assert report.BEGIN in text
        assert report.END in text
        assert report.with_section(text, results, document) == text
        assert len(report.section(results, document).splitlines()) > 5
    assert report.PAGE.read_text(encoding="utf-8") == report.page(results)


def test_the_pictures_are_there() -> None:
    page = report.PAGE.read_text()
    for picture in report.PICTURES:
        assert f"](performance/{picture})" in page
        assert (report.PAGE.with_suffix("") / picture).read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_on_another_machine_says_so() -> None:
    results = report.load_all(report.RESULTS)
    here = results["build"]["machine"]
    alike = {name: {**of, "machine": here} for name, of in results.items()}
    assert "another machine:" not in report.page(alike)
    assert "¹" not in report.section(alike)
    slow, fast = ({**here, "cpu": cpu} for cpu in ("Slow", "Fast"))
    others = alike | {
        "preprocess": {**alike["preprocess"], "machine": slow},
        "online": {**alike["online"], "machine": fast},
    }
    sections = report.page(others).split("\n## ")
    told = {text.splitlines()[0]: text for text in sections if "On another machine:" in text}
    assert list(told) == ["One volume", "Training at once, from raw volumes"]
    assert "cores, Slow (" in told["One volume"]
    readme = report.section(others)
    assert re.search(r"^\| one volume.*thread¹ \|", readme, re.MULTILINE)
    assert re.search(r"^\| training from raw.*shards² \|", readme, re.MULTILINE)
    assert "¹ On 2 cores, Slow (" in readme
    assert "² On 2 cores, Fast (" in readme


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


def test_it_says_which_benchmark_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run benchmarks/run_build\.py"):
        report.load_all(tmp_path)
