"""What a build says it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctgpu.building.described import JoinedTable
from ctgpu.building.pipeline import PipelineReport, StageTime
from ctgpu.building.report import BuildReport
from support.building import builds
from support.phantoms import SPEC

build = builds(spec=SPEC, samples_per_shard=4)


def test_its_report_has_a_short_repr(tmp_path: Path, source: Path) -> None:
    report = build(tmp_path / "out", source, samples_per_shard=2)
    total = report.manifest["total_samples"]
    assert repr(report) == (
        f"BuildReport('{tmp_path / 'out'}': {total} of {total} planned samples in "
        f"{report.manifest['total_shards']} shards, {total} of them written now, 0 failed)"
    )
    assert "0 of them written now" in repr(build(tmp_path / "out"))


def report_of(folder: Path, **changed: Any) -> BuildReport:
    manifest = {
        "total_samples": 6,
        "total_shards": 2,
        "sample_shape": [4, 5, 6],
        "layout": "HWD",
        "sample_dtype": "float16",
        "num_classes": 18,
        "source": {"kind": "folder"},
    } | changed.pop("manifest", {})
    values: dict[str, Any] = {"written": 6, "stored_bytes": 1440, "failures": [], "pipeline": None}
    return BuildReport(folder=folder, manifest=manifest, **(values | changed))


def test_a_sample_or_a_folder_that_is_missing_is_no_success(tmp_path: Path) -> None:
    assert report_of(tmp_path).exit_code == 0
    failed = report_of(tmp_path, failures=[{"key": "a"}])
    assert (failed.exit_code, failed.failures_path) == (1, tmp_path / "failures.jsonl")
    missing = {"valid_2": "a link to /gone"}
    report = report_of(tmp_path, manifest={"source": {"missing_folders": missing}})
    assert (report.exit_code, report.missing_folders) == (1, missing)


@pytest.mark.parametrize(
    ("shards", "urls"),
    [(1, "shard-000000.tar"), (2, "shard-{000000..000001}.tar"), (0, "shard-000000.tar")],
)
def test_the_lines_for_a_training_config_name_the_tars(
    tmp_path: Path, shards: int, urls: str
) -> None:
    folder = tmp_path / 'o: "q" # {a} é'
    text = report_of(folder, manifest={"total_shards": shards}).training_yaml()
    assert yaml.safe_load(text) == {
        "data": {
            "format": "webdataset",
            "urls": str(folder.resolve() / urls),
            "num_samples": 6,
            "shape": [4, 5, 6],
            "dtype": "float16",
            "num_classes": 18,
        }
    }
    assert "# HWD" in text


def test_its_json_is_one_line_with_or_without_work_done(tmp_path: Path) -> None:
    idle = report_of(tmp_path, data_set="Mine").to_json()
    assert "\n" not in idle
    assert json.loads(idle)["wall_s"] == 0
    assert json.loads(idle)["stages"] == json.loads(idle)["tables"] == []
    stages = [StageTime("fetch", 2, busy_s=1.0, waiting_s=0.5)]
    table = JoinedTable("t.csv", "scan", ("labels",), 5, 6)
    busy = json.loads(
        report_of(
            tmp_path, pipeline=PipelineReport(10.0, stages, 5000, 6), tables=[table]
        ).to_json()
    )
    assert (busy["wall_s"], busy["stages"][0]["busy_s"]) == (10.0, 1.0)
    assert busy["tables"][0] | {"says": ["labels"]} == {
        "path": "t.csv",
        "key": "scan",
        "says": ["labels"],
        "volumes": 5,
        "of": 6,
    }
    assert str(table) == "t.csv (labels), joined by scan: 5 of 6 volumes have a row"
    beside = replace(table, path="the tars", key="")
    assert str(beside) == "the tars (labels): 5 of 6 volumes have a row"
