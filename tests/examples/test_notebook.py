"""The notebook runs from its first cell to its last, and what it trains has learned something."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent.parent / "examples/build_look_train.ipynb"


def cells(path: Path) -> list[dict[str, Any]]:
    """Those with code."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def pictures(cell: dict[str, Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_it_is_kept_without_outputs() -> None:
    assert cells(NOTEBOOK)
    for cell in cells(NOTEBOOK):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("torch", "matplotlib", "nbclient", "ipykernel"))),
    reason="torch, matplotlib, nbclient or ipykernel is not installed",
)
def test_it_builds_looks_and_trains(tmp_path: Path) -> None:
    copy = Path(shutil.copy(NOTEBOOK, tmp_path))
    # Kernels and settings of whoever runs the tests are not for the notebook.
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    result = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", str(copy)],
        cwd=tmp_path,
        env=os.environ
        | {name: str(tmp_path / name.lower()) for name in own}
        | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    _, build, look, train, held_out = cells(copy)
    (outcome,) = build["outputs"]
    assert "".join(outcome["data"]["text/plain"]) == "(12, [])"
    assert [pictures(cell) for cell in (build, look, train, held_out)] == [0, 1, 1, 0]
    said = re.findall(r"(case_\d+): ([\d.]+), and it is ([01])", printed(held_out))
    assert [(case, label) for case, _, label in said] == [("case_10", "0"), ("case_11", "1")]
    assert float(said[0][1]) < 0.3
    assert float(said[1][1]) > 0.7
