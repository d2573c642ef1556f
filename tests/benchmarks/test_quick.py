"""Every benchmark runs with ``--quick`` and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["run_build", "run_loading", "run_preprocess", "run_reliability"])
def test_quick_runs_and_writes_its_result(name: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / f"{name}.py")),
            *("--quick", "--json", str(tmp_path / "result.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=BENCHMARKS.parent,
    )
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["benchmark"] == name.removeprefix("run_")
    assert written["machine"]["usable_cores"] >= 1
    assert written["machine"]["versions"]["numpy"]
