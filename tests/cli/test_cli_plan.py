"""``ctgpu plan``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctgpu.building.estimate import estimate_build
from ctgpu.engines import cupy_runtime
from support.command_line import run, run_here
from support.data_set_copies import MINE, SPEC, lay_out_mine
from support.phantoms import SPEC_FLAGS


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(MINE)
    return tmp_path / "mine.toml"


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(tmp_path: Path, source: Path) -> None:
    arguments = ("plan", "--output-dir", tmp_path, "--source", source, "--device", "cpu")
    arguments += ("--calibrate", 1, "--limit", 2)
    shown = run(*arguments)
    assert shown.returncode == 0, shown.stderr
    stored = ("--compress", "│ none ", "│ pack ", "│ rice ", "loaded here in samples/s")
    for text in ("110,592,000 bytes a volume", "the bottleneck", "--num-workers", *stored):
        assert text in shown.stdout
    assert "elsewhere" not in shown.stdout
    there = run_here(*arguments, "--cores", 64, "--network-gbit", 25, "--gpus", 8)
    for text in ("cores: 64, 25 Gbit/s, GPUs: 8", "at least ", "no GPU was measured"):
        assert text in there.stdout
    training = ("--online", "--step-ms", 379, "--batch-size", 2, "--gpus", 8)
    fed = run_here(*arguments, *training, "--network-gbit", 25)
    for text in ("take 42.2/s", "25 Gbit/s", "from raw", "from shards", "what decides: "):
        assert text in fed.stdout
    assert "elsewhere" not in fed.stdout
    told = run_here(*arguments, "--json")
    assert json.loads(told.stdout)["storage"]["stored_bytes"] == 2 * 110_592_000


def test_the_command_plan_says_what_would_be_joined(tmp_path: Path, mine: Path) -> None:
    source = lay_out_mine(tmp_path / "source")
    place = ("--output-dir", tmp_path / "out", "--source", source, "--dataset", mine)
    result = run_here("plan", *place, "--calibrate", 0, "--device", "cpu", "--json")
    assert result.returncode == 0, result.stderr
    estimated = json.loads(result.stdout)
    assert estimated["data_set"] == "Mine"
    (table,) = estimated["tables"]
    assert (table["path"], table["key"], table["volumes"], table["of"]) == ("about.csv", "id", 3, 3)
    assert set(table["says"]) == {"labels", "text", "columns to carry"}
    assert not (tmp_path / "out").exists()
    calibrated = estimate_build(
        tmp_path / "out", source=source, dataset=mine, spec=SPEC, calibrate=2, device="cpu"
    )
    assert calibrated.calibrated_on == 2
    assert not (tmp_path / "out").exists()


def test_it_answers_whatever_a_build_is_told_and_says_each_thing_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy_runtime, "driver_cuda_version", lambda: None)
    place = ("--output-dir", tmp_path, "--source", source, "--calibrate", 1, *SPEC_FLAGS)
    going_on = ("--shards", "7-9", "--force", "--retry-failed", "--temp-dir", tmp_path / "spool")
    (tmp_path / "spool").mkdir()
    plain = run_here("plan", *place, "--json")
    told = run_here("plan", *place, *going_on, "--ray", "--log-format", "json", "--json")
    for result in (plain, told):
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("using the CPU engine: no NVIDIA driver was found") == 1
        assert result.stderr.count("listing folder ") == 1
    found, asked = json.loads(plain.stdout), json.loads(told.stdout)
    assert (found["storage"], found["counts"]) == (asked["storage"], asked["counts"])
    assert asked["calibrated_on"] == 1
    events = [json.loads(line).get("event") for line in told.stderr.splitlines()]
    assert events.count("Listing") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]
