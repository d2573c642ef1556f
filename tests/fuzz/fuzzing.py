"""Short runs of a fuzzer, always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.compiling import REPOSITORY


def run_fuzzer(harness: Path, folder: Path, runs: int, max_len: int) -> None:
    """Run `harness`, a script or a program, in `folder`, seeded, and fail on whatever it finds."""
    called = [sys.executable, str(harness)] if harness.suffix == ".py" else [str(harness)]
    result = subprocess.run(
        [
            # Linux hands the peak of a process's memory down to what it executes, and libFuzzer
            # holds that against its limit: the shell, small itself, forks and so begins again.
            *("sh", "-c", '"$@"; exit $?', "sh", *called),
            *("-seed=1", f"-runs={runs}", f"-max_len={max_len}", "-timeout=20", "-len_control=0"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"Done {runs} runs" in result.stderr
