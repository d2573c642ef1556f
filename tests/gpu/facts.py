"""First stage of ``check.py``: which GPU, driver and link this is, and which commit is checked.

    python facts.py RESULT.json CARRIED

Uses the standard library alone, so that it says something on any machine.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pack import hashes_of_sources

#: What nvidia-smi is asked for; it answers "[N/A]" to what a device does not tell.
QUERIES = (
    "name",
    "driver_version",
    "memory.total",
    "compute_mode",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "pcie.link.width.max",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.limit",
)
PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "torch", "numpy", "pytest")


def main() -> int:
    """Write the facts; returns 0 where there is a GPU."""
    result, carried = map(Path, sys.argv[1:])
    facts = {
        "gpus": gpus(),
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "pack": pack(carried),
    }
    result.write_text(json.dumps(facts), encoding="utf-8")
    return 0 if facts["gpus"] else 1


def gpus() -> list[dict[str, str]]:
    """Of every GPU, what nvidia-smi says of it; none where there is no nvidia-smi, or it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        print("there is no nvidia-smi here")
        return []
    ran = subprocess.run(
        [tool, f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        print(ran.stdout + ran.stderr)
        return []
    rows = csv.reader(ran.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(QUERIES, row, strict=False)) for row in rows if row]


def versions() -> dict[str, str]:
    """Packages that the machine brought itself."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def pack(carried: Path) -> dict[str, Any]:
    """What ``pack.py`` wrote of the pack: commit, time, hashes of what is run and compiled.

    The commit ends in ``-changed``, and ``changed`` names the folders, where code here is not, or
    cannot be shown to be, what was there when it was packed.
    """
    try:
        written = dict(json.loads((carried / "pack.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    packed = written.get("sources", {})
    changed = [name for name, now in hashes_of_sources().items() if packed.get(name) != now]
    if changed and written.get("commit"):
        written["commit"] += "-changed"
    return written | {"changed": changed}


if __name__ == "__main__":
    sys.exit(main())
