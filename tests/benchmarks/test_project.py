"""What ``project.py`` reads of results, and what it says of the old guide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.asking import RESULTS
from benchmarks.harness.measuring import measured
from benchmarks.questions import project
from benchmarks.questions.project import ALL_VOLUMES, read_calibration, read_gpu_rate, sizes
from ctgpu.building.projection import UNLIMITED, Machine, SampleCosts
from ctgpu.building.projection import project as projected

# Round figures: 100 MB in, 200 MB raw, 100 MB out; 0.2 + 0.5 + 0.3 core seconds; 0.1 s to write.
COSTS = SampleCosts(100e6, 200e6, 100e6, 0.2, 0.5, 0.3, 0.1)
PER_CORE = "old, one process per core"


def build_result(**changes: Any) -> dict[str, Any]:
    """A small ``build.json``: 4 samples on 2 cores in 7 s, 14 s of computing threads."""
    busy_s = {"fetch": 4.0, "decode": 8.0, "device": 2.0, "write": 0.4}
    stages = {
        name: {"busy": measured([9 * s, s, 0.1 * s], "s"), "span": measured([span_s], "s")}
        for (name, s), span_s in zip(busy_s.items(), (6.0, 6.5, 6.8, 7.0), strict=True)
    }
    old = {"rate": measured([0.5], "samples/s")}
    return {
        "benchmark": "build",
        "machine": {"cpu": "a CPU", "memory_gib": 8, "utc": "2026-01-01T00:00:00+00:00"},
        "shape_hwd": [100, 100, 50],
        "cores": 2,
        "samples_per_run": 4,
        "formats": {
            ".nii.gz": {"file_bytes": 250_000, "stages": stages, "contenders": {PER_CORE: old}}
        },
    } | changes


def saved(folder: Path, result: object) -> Path:
    path = folder / "build.json"
    path.write_text(json.dumps(result))
    return path


# What was measured


def test_costs_are_the_busy_seconds_of_a_sample(tmp_path: Path) -> None:
    calibration = read_calibration(saved(tmp_path, build_result()))
    assert calibration.costs == SampleCosts(250_000, 1_000_000, 110_592_000, 1.0, 2.0, 0.5, 0.1)
    assert calibration.core_share == 1.0
    assert (calibration.cores, calibration.memory_bytes) == (2, 8 * 2**30)


def test_threads_that_waited_for_a_core_are_not_counted_as_working(tmp_path: Path) -> None:
    calibration = read_calibration(saved(tmp_path, build_result(cores=1)))
    # One core for 7 s cannot have given 14 core seconds.
    assert calibration.core_share == 0.5
    assert calibration.costs.core_s == pytest.approx(7.0 / 4)
    assert calibration.costs.write_s == 0.1


@pytest.mark.parametrize(
    "result",
    [
        {"formats": {}},
        {"formats": {".nii.gz": {"file_bytes": 1}}},
        {"samples_per_run": None},
        {"samples_per_run": 0},
        {"machine": {}},
        {"shape_hwd": "512"},
    ],
)
def test_a_result_that_lacks_something_is_refused_in_one_sentence(
    result: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as refused:
        read_calibration(saved(tmp_path, build_result(**result)))
    assert str(refused.value).startswith("build.json ")
    assert "\n" not in str(refused.value)


def test_a_result_that_is_missing_or_no_json_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"build\.json is not there: run .*run_build\.py"):
        project.main(["--build", str(tmp_path / "build.json")])
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(SystemExit, match="has not what a projection needs"):
        project.main(["--build", str(tmp_path / "build.json")])


def test_sizes_are_those_of_the_readings() -> None:
    readings = sizes(COSTS)
    assert readings["as measured"] == COSTS
    assert readings["12 TB"].compressed_bytes * ALL_VOLUMES == pytest.approx(12e12)
    assert readings["21 TB"].compressed_bytes == pytest.approx(418.4e6, rel=1e-3)


def test_the_rate_of_a_gpu_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert read_gpu_rate(path) is None
    rate, other = measured([150.0], "samples/s"), measured([1.0], "samples/s")
    contenders = {"copies alone": {"rate": other}}
    path.write_text(json.dumps({"pipeline": {"contenders": contenders}}))
    assert read_gpu_rate(path) is None
    contenders["ctgpu"] = {"rate": rate}
    kernel = {"contenders": {"ctgpu": {"rate": other}}}
    path.write_text(json.dumps({"kernel": kernel, "pipeline": {"contenders": contenders}}))
    assert read_gpu_rate(path) == 150.0
    path.write_text("not JSON")
    with pytest.raises(SystemExit, match="run_gpu"):
        read_gpu_rate(path)


# The old guide


def test_what_the_old_guides_runs_would_take() -> None:
    needs = project.old_run(40279, (80, 120), "as measured", COSTS)["needs"]
    assert needs["samples_per_s"] == pytest.approx((40279 / 7200, 40279 / 4800))
    assert needs["network_gbit_per_s"][1] == pytest.approx(8.391 * 0.8, rel=1e-3)
    assert needs["inflate_cores"][1] == pytest.approx(8.391 * 0.5, rel=1e-3)
    assert needs["all_cores"][0] == pytest.approx(5.594, rel=1e-3)
    assert needs["disk_gb_per_s"][1] == pytest.approx(0.8391, rel=1e-3)
    assert needs["requests_per_window"][1] == pytest.approx(2517, rel=1e-3)
    part = project.old_run(7686, (15, 20), "as measured", COSTS)["needs"]
    assert part["samples_per_s"] == pytest.approx((6.405, 8.54))


@pytest.mark.parametrize(
    ("core_s", "verdict"),
    [
        (1.0, "16 are enough (42.0 min"),
        (2.5, "16 are enough for its slow end only (105 min"),
        (4.0, "16 are too few (168 min"),
    ],
)
def test_the_verdict_is_that_of_the_figures(core_s: float, verdict: str) -> None:
    costs = replace(COSTS, compressed_bytes=300e6, decode_core_s=core_s - 0.5)
    text = project.old_run(40279, (80, 120), "as measured", costs)["verdict"]
    assert verdict in text
    # 5.594 and 8.391 samples/s of 2.4 Gbit.
    assert "13.4 to 20.1 Gbit/s" in text
    assert "a link of 25 Gbit/s for the slow end and of 25 for the fast" in text
    assert "(10 Gbit/s: 161 min at best)" in text


def test_the_old_guide_contradicts_itself() -> None:
    steps = project.steps_contradiction()
    assert steps["claimed_ratio"] == pytest.approx(9.6)
    assert steps["total_ratio"] == pytest.approx(3.29, abs=0.01)


# The page and the JSON


def test_the_result_holds_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "project.json"
    project.main(
        [
            *("--quick", "--build", str(saved(tmp_path, build_result())), "--json", str(path)),
            *("--gpu", str(tmp_path / "gpu.json")),
        ]
    )
    printed = capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads(path.read_text(), parse_constant=refuse)
    assert result["benchmark"] == "project"
    assert result["simulated"] is True
    by_machine: dict[str, list[Any]] = {}
    for projection in result["projections"]:
        by_machine.setdefault(projection["machine"]["name"], []).append(projection)
    many = by_machine["8 such nodes, no quota"]
    assert [p["reading"] for p in many] == ["as measured", "12 TB", "21 TB"]
    assert many[0]["limits_samples_per_s"]["network"] == pytest.approx(8 * 25e9 / 8 / 250_000)
    assert many[0]["limits_samples_per_s"]["Hub requests"] is None
    here = by_machine["the measuring machine, local Hub"]
    assert here[0]["machine"]["disk_bytes_per_s"] is None
    assert here[0]["samples_per_s"] == pytest.approx(2 / 3.5)
    assert here[0]["bottleneck"] == "cores"
    assert "| the measuring machine, local Hub | 0.571/s, 22.9 h, cores |" in printed
    assert {p["upper_bound"] for p in result["projections"] if p["machine"]["gpus"]} == {True}
    assert "| 16 cores, 10 Gbit/s, 1 GPU | ≤ " in printed
    for number, assumption in enumerate(result["assumptions"], 1):
        assert f"{number}. {assumption}" in printed
    assert "4.8 → 0.5 s a step is 9.6 ×" in printed
    assert "1.35 → 0.41 s, are 3.3 ×" in printed


def test_what_virtual_time_found_is_that_of_the_published_result(tmp_path: Path) -> None:
    path = tmp_path / "project.json"
    project.main(["--build", str(saved(tmp_path, build_result())), "--json", str(path)])
    made, published = (json.loads(p.read_text()) for p in (path, RESULTS / "project.json"))
    for key in ("checks", "largest_deviation", "tolerance"):
        assert made[key] == published[key]


def test_the_published_projections_are_those_of_the_model() -> None:
    published = json.loads((RESULTS / "project.json").read_text())
    for row in published["projections"]:
        told = row["machine"]
        unlimited = {k: UNLIMITED for k, v in told.items() if v is None and "bytes" in k}
        costs = SampleCosts(**published["costs"][row["reading"]])
        made = projected(Machine(**told | unlimited), [costs], published["gpu_samples_per_s"])
        assert made.samples_per_s == pytest.approx(row["samples_per_s"])
        assert (made.bottleneck, made.second) == (row["bottleneck"], row["second"])
