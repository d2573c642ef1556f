"""What the documents say about performance is what the results say."""

from __future__ import annotations

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


def test_it_says_which_benchmark_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run benchmarks/run_build\.py"):
        report.load_all(tmp_path)
