"""A short run of the tar reader's fuzzer, always the same; the long one is ``make fuzz``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("fuzz_tar.py")


def test_a_short_seeded_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    result = subprocess.run(
        [sys.executable, str(HARNESS), "-seed=1", "-runs=20000", "-max_len=8192", "-timeout=20"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HARNESS.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Done 20000 runs" in result.stderr
