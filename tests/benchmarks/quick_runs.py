"""Runs of the benchmarks' quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import page


@dataclass(frozen=True)
class Quick:
    """How ``python benchmarks/<name>.py --quick`` ended, and where it writes."""

    status: int
    stderr: str
    json: Path
    picture: Path

    @property
    def result(self) -> dict[str, Any]:
        """What it wrote."""
        assert self.status == 0, self.stderr
        return dict(json.loads(self.json.read_text(encoding="utf-8")))


def run_quick(name: str, folder: Path) -> Quick:
    """Run the script `name`; its result is named as those in ``benchmarks/results/`` are."""
    written = folder / f"{name.removeprefix('run_')}.json"
    picture = written.with_suffix(".png")
    ran = subprocess.run(
        [
            *(sys.executable, str(page.HERE / f"{name}.py"), "--quick"),
            *("--json", str(written), "--plot", str(picture)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=page.HERE.parent,
    )
    return Quick(ran.returncode, ran.stderr, written, picture)
