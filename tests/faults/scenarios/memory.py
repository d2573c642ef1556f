"""Builds within a budget of memory."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from ctgpu.spec import Spec
from scenarios.builds import REPOSITORY


def declare_huge_volumes(root: Path) -> None:
    """Make the metadata of a source say that every volume has 1024 × 1024 × 2000 voxels."""
    (path,) = root.glob("dataset/metadata/*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(Rows="1024", Columns="1024", NumberofSlices="2000")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# A process inherits the peak that getrusage() tells from its parent; this one is its own.
PEAK_RSS_BYTES = """
from pathlib import Path
def peak_rss_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
"""

_MEASURED_BUILD = (
    PEAK_RSS_BYTES
    + """
import json, sys
from ctgpu.building.builder import build
from ctgpu.spec import Spec
job = json.load(sys.stdin)
spec = Spec.from_dict(job["spec"])
before = peak_rss_bytes()
build(job["folder"] + "-1", source=job["source"], spec=spec, limit=1, device="cpu", num_workers=1)
one = peak_rss_bytes()
report = build(
    job["folder"], source=job["source"], spec=spec, device="cpu", num_workers=job["workers"],
    memory_limit_bytes=job["limit_bytes"], samples_per_shard=4,
)
print(json.dumps({
    "written": report.written,
    "peak_reserved_bytes": report.pipeline.peak_reserved_bytes,
    "peak_rss_bytes": peak_rss_bytes(),
    "imports_rss_bytes": before,
    "one_sample_rss_bytes": one,
}))
"""
)


def build_measured(
    folder: Path, source: Path, spec: Spec, *, limit_bytes: int, workers: int
) -> dict[str, int]:
    """Build in a process of its own; samples written and memory used."""
    job = {
        "folder": str(folder),
        "source": str(source),
        "spec": spec.to_dict(),
        "limit_bytes": limit_bytes,
        "workers": workers,
    }
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED_BUILD],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    figures: dict[str, int] = json.loads(done.stdout)
    return figures
