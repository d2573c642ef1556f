"""A first epoch beside a build: it runs, and the documents show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.measuring import in_words
from benchmarks.publishing import report
from benchmarks.questions import beside_build, online

pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.slow
def test_it_runs_and_is_shown(tmp_path: Path) -> None:
    written = tmp_path / "online_beside_build.json"
    assert online.main(["--beside-a-build", "--quick", "--json", str(written)]) == 0
    result = json.loads(written.read_text())
    assert result["benchmark"] == "online_beside_build"
    ways = [beside_build.ALONE, beside_build.SAME, beside_build.SHUFFLED]
    assert list(result["contenders"]) == ways
    results = report.load_all(report.RESULTS) | {"online_beside_build": result}
    section = report.section(results, report.ONLINE)
    for name, of in result["contenders"].items():
        assert f"| {name} | {in_words(of['cpu_per_sample']['median'], 's')} |" in section
