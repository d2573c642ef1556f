"""Plans of many samples, and builds of which many shards are done."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctgpu.shards.index import index_text
from ctgpu.shards.names import index_name, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import Member, SampleEntry, ShardRecord
from ctgpu.shards.tar import place_sample
from ctgpu.testing.ctrate import LABEL_NAMES, table_names
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.ref import SampleRef
from scenarios.builds import REPOSITORY, make_source
from scenarios.memory import PEAK_RSS_BYTES
from support.phantoms import SPEC


def lay_out_names(root: Path, samples: int) -> None:
    """A train split as large as wanted, of files that hold a few bytes, with full-size CSVs."""
    folder = root / "dataset" / "train_fixed"
    text = "Trachea and both main bronchi are open. No occlusive pathology was detected. " * 18
    names = []
    for n in range(samples):
        scan, recon = divmod(n, 2)
        names.append(f"train_{scan + 1}_a_{recon + 1}")
        place = folder / f"train_{scan + 1}" / f"train_{scan + 1}_a"
        if recon == 0:
            place.mkdir(parents=True)
        (place / f"{names[-1]}.nii.gz").write_bytes(b"%d" % n)
    tables: dict[str, dict[str, str]] = {
        "metadata": {
            "Manufacturer": "Phantom",
            **dict(zip(("RescaleSlope", "RescaleIntercept"), ("1", "-1024"), strict=True)),
            "XYSpacing": "[0.75, 0.75]",
            "ZSpacing": "1.5",
            **dict(zip(("Rows", "Columns", "NumberofSlices"), ("512", "512", "300"), strict=True)),
        },
        "labels": dict.fromkeys(LABEL_NAMES, "0"),
        "reports": {"Findings_EN": text, "Impressions_EN": text[:300]},
    }
    for table, columns in tables.items():
        path = root / table_names(table, "train")[0]
        path.parent.mkdir(parents=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["VolumeName", *columns])
            writer.writerows([f"{name}.nii.gz", *columns.values()] for name in names)


_MEASURED_PLAN = (
    PEAK_RSS_BYTES
    + """
import json, sys, time
from pathlib import Path
from ctgpu.engines import open_engine
from ctgpu.building.planning import make_plan
from ctgpu.building.request import Request
from ctgpu.building.events import ignore
from ctgpu.shards.plan import Plan
folder, repo_id, endpoint = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
engine = open_engine("cpu")
began = time.perf_counter()
request = Request(split="train", repo_id=repo_id, endpoint=endpoint)
plan = make_plan(request, engine.arithmetic, ignore).plan
folder.mkdir()
Plan.create(folder, plan)
print(json.dumps({
    "samples": len(plan.samples),
    "shards": plan.shards,
    "seconds": time.perf_counter() - began,
    "peak_rss_bytes": peak_rss_bytes(),
}))
"""
)


def plan_measured(work_dir: Path, samples: int) -> dict[str, Any]:
    """Plan a build of `samples` volumes from a local Hub, each in a process of its own."""
    lay_out_names(work_dir / "names", samples)
    serve = [sys.executable, "-m", "ctgpu.testing.hub", str(work_dir / "names")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as hub:
        assert hub.stdout is not None
        try:
            url = hub.stdout.readline().strip()
            plan = [
                sys.executable,
                "-c",
                _MEASURED_PLAN,
                str(work_dir / "planned"),
                "local/ct-rate",
            ]
            done = subprocess.run(
                [*plan, url], capture_output=True, text=True, env=environment, check=True
            )
        finally:
            hub.terminate()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def make_plan_of(
    folder: Path, shards: int, samples_per_shard: int, source: dict[str, str], last: SampleRef
) -> Plan:
    """A saved plan of volumes that nobody has, but for the last one."""
    count = shards * samples_per_shard
    refs = [
        SampleRef.of_file(f"dataset/valid_fixed/valid_{n}_b_1.nii.gz", 1 << 27)
        for n in range(1, count)
    ]
    plan = Plan(
        dataset=source["location"],
        split="valid",
        spec=SPEC,
        arithmetic="ctgpu",
        fingerprint=SPEC.fingerprint("ctgpu"),
        source=source,
        selection={
            "recon": "all",
            "order": "path",
            "seed": 0,
            "limit": None,
            "keep_no_chest": False,
            "spacing_fallback": "fail",
        },
        samples_per_shard=samples_per_shard,
        class_names=tuple(LABEL_NAMES),
        samples=[replace(ref, provenance="fixed") for ref in (*refs, last)],
    )
    folder.mkdir(parents=True)
    return Plan.create(folder, plan)


def pretend_committed(folder: Path, plan: Plan, shards: range) -> None:
    """Tars of holes and records as of full-size volumes, as if these shards had been made."""
    sizes = {"bin": 2 * 480 * 480 * 240, "cls": 72, "txt": 1200, "json": 3000}
    for index in shards:
        position, entries = 0, []
        for sample in plan.samples_of(index):
            placement = place_sample(position, sample.key, sizes)
            members = {
                extension: Member(offset, sizes[extension], "0" * 32)
                for extension, offset in zip(sizes, placement.offsets, strict=True)
            }
            entries.append(
                SampleEntry(sample.key, sample.study_id, placement.start, placement.end, members)
            )
            position = placement.end
        record = ShardRecord(index, plan.fingerprint, position + 1024, entries)
        with (folder / shard_name(index)).open("wb") as tar:
            os.truncate(tar.fileno(), record.size_bytes)
        (folder / record_name(index)).write_bytes(record.to_json())
        (folder / index_name(index)).write_bytes(index_text(record))


_MEASURED_RUN = """
import json, os, sys, time
tars = []
def audit(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tar"):
        tars.append(str(arguments[0]))
sys.addaudithook(audit)
from ctgpu.building.builder import build
from ctgpu.building.events import Planned, ShardResumed
import huggingface_hub, nibabel
moments = {}
began = time.perf_counter()
def watch(event):
    moments.setdefault(type(event).__name__, time.perf_counter() - began)
report = build(sys.argv[1], device="cpu", endpoint=sys.argv[2] or None, watch=watch)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "seconds_to_begin": moments["Planned"],
    "written": report.written,
    "total_samples": report.manifest["total_samples"],
    "tars_opened": tars,
}))
"""


def run_measured(folder: Path, endpoint: str = "") -> dict[str, Any]:
    """Run a build again in a process of its own: its time, and the tars that it opened."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED_RUN, str(folder), endpoint],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def resume_measured(work_dir: Path, committed: int, samples_per_shard: int = 1) -> dict[str, Any]:
    """Resume a build of which `committed` shards are done and one sample is left."""
    root = work_dir / "one"
    if not root.exists():
        make_source(root, 1)
    with LocalHub(root) as hub:
        files = hub.commits[hub.head].items()
        last = next(SampleRef.of_file(n, p.stat().st_size) for n, p in files if n.endswith(".gz"))
        folder = work_dir / f"committed-{committed}"
        source = {"kind": "hub", "location": hub.repo_id, "revision": hub.head}
        plan = make_plan_of(folder, committed + 1, samples_per_shard, source, last)
        pretend_committed(folder, plan, range(committed))
        return run_measured(folder, hub.url)
