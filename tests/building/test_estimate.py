"""The dry run, and the figures that the old guide had wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ctgpu
from ctgpu.building.estimate import StageEstimate, Storage, _Work, estimate_build
from ctgpu.cli.plan import _show
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

SPACING_MM = (3.5, 3.0, 5.0)
SMALL = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = {
        f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
        for n in range(1, 6)
    }
    lay_out_ct_rate(root, volumes)
    return root


def request(source: Path) -> dict[str, Any]:
    return {"source": source, "spec": SMALL, "samples_per_shard": 2}


def test_a_volume_and_a_full_shard_take_what_they_take() -> None:
    storage = Storage.of(1)
    assert storage.sample_bytes == 110_592_000
    assert storage.full_shard_bytes == 14_155_776_000
    assert f"{storage.full_shard_bytes / 1e9:.2f} GB" == "14.16 GB"
    assert Storage.of(1, spec=Spec(dtype="int16")).sample_bytes == 110_592_000
    assert Storage.of(1, spec=Spec(dtype="uint8")).sample_bytes == 55_296_000


@pytest.mark.parametrize(
    ("samples", "shards", "terabytes"), [(40_279, 315, "4.45"), (7_686, 61, "0.85")]
)
def test_a_data_set_takes_what_it_takes(samples: int, shards: int, terabytes: str) -> None:
    storage = Storage.of(samples)
    assert storage.shards == shards
    assert f"{storage.stored_bytes / 1e12:.2f}" == terabytes
    # Headers and small members are next to nothing beside it.
    assert 1 < storage.needed_bytes / storage.stored_bytes < 1.001


def test_a_dry_run_counts_measures_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "not" / "there"
    estimate = estimate_build(target, **request(source), device="cpu", calibrate=2)
    assert list(tmp_path.iterdir()) == []
    assert (estimate.storage.samples, estimate.storage.shards) == (5, 3)
    assert estimate.counts["listed"] == 5
    assert estimate.source_bytes == sum(p.stat().st_size for p in source.rglob("*.nii.gz"))
    assert estimate.calibrated_on == 2
    assert [stage.name for stage in estimate.stages] == ["fetch", "decode", "device", "write"]
    assert all(stage.thread_s > 0 for stage in estimate.stages)
    assert estimate.bottleneck in estimate.stages
    assert estimate.wall_s >= max(stage.wall_s for stage in estimate.stages)
    assert estimate.exit_code == 0
    assert json.dumps(estimate.to_dict())


def test_without_a_calibration_nothing_is_built(tmp_path: Path, source: Path) -> None:
    estimate = estimate_build(tmp_path, **request(source), device="cpu", calibrate=0)
    assert estimate.stages == ()
    assert estimate.bottleneck is None
    assert estimate.to_dict()["wall_s"] is None


def test_no_room_is_said_with_the_builds_exit_code(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 5, 1000))
    estimate = estimate_build(tmp_path, **request(source), device="cpu", calibrate=0)
    assert not estimate.fits
    assert estimate.exit_code == 3


def test_room_that_is_not_known_is_no_lack_of_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 0))
    estimate = estimate_build(tmp_path, **request(source), device="cpu", calibrate=0)
    assert (estimate.free_bytes, estimate.fits, estimate.exit_code) == (None, True, 0)
    assert json.loads(json.dumps(estimate.to_dict()))["free_bytes"] is None
    table = io.StringIO()
    _show(estimate, Console(file=table, width=120))
    assert "unknown, for the file system does not say" in table.getvalue()


def test_a_build_asks_for_the_space_that_the_plan_names(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = estimate_build(tmp_path / "out", **request(source), device="cpu", calibrate=0)
    needed_bytes = estimate.storage.needed_bytes
    asked: list[int] = []
    monkeypatch.setattr(
        "ctgpu.building.builder.require_free_space", lambda f, needed: asked.append(needed)
    )
    ctgpu.build(tmp_path / "out", source=source, spec=SMALL, samples_per_shard=2, device="cpu")
    assert asked == [needed_bytes]


def test_workers_are_suggested_as_long_as_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctgpu.building.estimate.usable_cores", lambda: 8)
    monkeypatch.setattr("ctgpu.building.pipeline.usable_cores", lambda: 8)
    slow_network = {"fetch": 90.0, "decode": 10.0, "device": 1.0, "write": 10.0}
    assert _Work(slow_network, 1, on_cores=False).suggest() == 9
    slow_disk = {"fetch": 1.0, "decode": 1.0, "device": 1.0, "write": 10.0}
    assert _Work(slow_disk, 1, on_cores=False).suggest() == 1
    slow_inflate = {"fetch": 1.0, "decode": 80.0, "device": 80.0, "write": 1.0}
    assert _Work(slow_inflate, 8, on_cores=True).cores_wall_s == 20.0
    assert _Work(slow_inflate, 8, on_cores=True).suggest() == 4
    assert StageEstimate("fetch", 90.0, 9).wall_s == 10.0


def test_the_command_prints_a_table_or_json(tmp_path: Path, source: Path) -> None:
    command = [
        *(sys.executable, "-m", "ctgpu.cli", "plan", "--output-dir", str(tmp_path)),
        *("--source", str(source), "--device", "cpu", "--calibrate", "1", "--limit", "2"),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 0, shown.stderr
    for text in ("110,592,000 bytes a volume", "the bottleneck", "--num-workers"):
        assert text in shown.stdout
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["storage"]["stored_bytes"] == 2 * 110_592_000
