"""The dry run, and the figures that the old guide had wrong."""

from __future__ import annotations

import io
import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal

import ctgpu
from ctgpu.building.calibration import WAYS, Calibration
from ctgpu.building.estimate import Estimate, Storage, estimate_build
from ctgpu.building.feeding import Training
from ctgpu.cli.plan import _show
from ctgpu.cli.terminal import Console
from ctgpu.errors import UsageError
from ctgpu.machine import usable_cores
from ctgpu.shards.plan import LEAST_EXPECTED_RATIO
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from ctgpu.volume.masks import MaskFormat
from support.phantoms import chests, study_ids

SMALL = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = chests(study_ids(5), first_seed=1)
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
    with_mask = Storage.of(3, spec=Spec(dtype="uint8"), masks=MaskFormat("uint16"))
    assert with_mask.sample_bytes == 3 * 55_296_000
    assert with_mask.stored_bytes == 9 * 55_296_000


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
    facts = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert list(facts["readings"]) == list(WAYS)
    assert facts["readings"]["none"]["stored_bytes"] == facts["storage"]["stored_bytes"]


def test_a_compressed_data_set_takes_what_was_measured(tmp_path: Path, source: Path) -> None:
    plain, rice = (
        estimate_build(tmp_path, **request(source), device="cpu", calibrate=2, compress=way)
        for way in ("none", "rice")
    )
    assert [stage.name for stage in rice.stages][-2:] == ["compress", "write"]
    # One way to compress a volume, whatever the trial began with.
    assert rice.readings["rice"].sample_bytes == plain.readings["rice"].sample_bytes
    assert rice.storage.sample_bytes == round(rice.readings["rice"].sample_bytes)
    assert rice.storage.sample_bytes < plain.storage.sample_bytes == SMALL.size_bytes
    # What a build asks for is no less than what it expects of any volumes.
    assert 1.05 < plain.storage.needed_bytes / rice.storage.needed_bytes < LEAST_EXPECTED_RATIO
    assert (plain.compression, rice.compression) == (None, "rice")
    assert rice.to_dict()["compression"] == "rice"


@pytest.fixture(scope="module")
def rice(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    home = tmp_path_factory.mktemp("home")
    return estimate_build(home, **request(source), device="cpu", calibrate=1, compress="rice")


def shown(estimate: Estimate) -> list[str]:
    """The lines of a terminal of the usual width."""
    table = io.StringIO()
    _show(estimate, Console(file=table, width=80))
    return table.getvalue().splitlines()


def test_each_way_to_store_has_a_line_of_sizes_and_rates(rice: Estimate) -> None:
    lines = shown(rice)
    assert max(map(len, lines)) <= 80
    rows = [line.strip("│").split("│") for line in lines if line.count("│") == 6]
    assert [row[0].strip() for row in rows] == list(WAYS)
    for way, to_store, one_thread, all_cores, decides in rows:
        reading = rice.readings[way.strip()]
        assert to_store.strip() == decimal(round(5 * reading.sample_bytes))
        assert float(one_thread) == pytest.approx(1 / reading.thread_s, rel=0.01)
        assert float(all_cores) == pytest.approx(min(reading.limits(usable_cores()).values()), 0.01)
        assert decides.strip() in ("cores", "disk")


def test_it_says_what_was_measured_and_what_was_not(
    rice: Estimate, tmp_path: Path, source: Path
) -> None:
    def said(estimate: Estimate) -> str:
        return " ".join(" ".join(shown(estimate)).split())

    from_disk = said(replace(rice, read_from_disk=True))
    assert f"{rice.storage.sample_bytes:,} bytes a volume by rice, measured" in from_disk
    assert "Measured: 1 volume, built, stored in each way and read by one thread" in from_disk
    assert "from this disk. All else is projected" in from_disk
    from_memory = said(replace(rice, read_from_disk=False, calibrated_on=3))
    assert "Measured: 3 volumes, built" in from_memory
    assert "from memory: a disk may be slower. All else" in from_memory
    how: dict[str, Any] = {"device": "cpu", "calibrate": 0, "compress": "rice"}
    unmeasured = said(estimate_build(tmp_path, **request(source), **how))
    assert "by rice, not measured" in unmeasured
    assert "--compress" not in unmeasured


def test_without_a_calibration_nothing_is_built(tmp_path: Path, source: Path) -> None:
    estimate = estimate_build(tmp_path, **request(source), device="cpu", calibrate=0)
    assert estimate.stages == ()
    assert estimate.bottleneck is None
    assert estimate.readings == {}
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


def test_an_estimate_answers_for_a_named_machine(tmp_path: Path, source: Path) -> None:
    here = estimate_build(tmp_path, **request(source), device="cpu", calibrate=1)
    assert here.elsewhere is None
    assert "elsewhere" not in here.to_dict()
    there = estimate_build(
        tmp_path, **request(source), device="cpu", calibrate=1, cores=64, network_gbit=1e-6
    )
    assert there.elsewhere is not None
    assert there.elsewhere.machine.cores == 64
    # 125 bytes a second.
    assert there.elsewhere.wall_s == pytest.approx(there.source_bytes / 125, rel=0.01)
    assert there.elsewhere.bottleneck == "network"
    assert json.loads(json.dumps(there.to_dict()))["elsewhere"]["machine"]["cores"] == 64
    assert there.wall_s < there.elsewhere.wall_s
    table = io.StringIO()
    _show(there, Console(file=table, width=120))
    assert "cores: 64, 1e-06 Gbit/s" in table.getvalue()
    assert "what decides: network, then " in table.getvalue()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"cores": 0}, "cores is 0; it takes a whole number from 1"),
        ({"network_gbit": 0.0}, "network_gbit is 0.0; it takes Gbit/s, more than 0"),
        ({"network_gbit": float("nan")}, "network_gbit is nan"),
        ({"gpus": -1}, "gpus is -1; it takes a whole number from 0"),
        (
            {"gpus": 2, "calibrate": 0},
            "calibrate is 0, and what is asked is projected from what is measured on this machine",
        ),
    ],
)
def test_a_machine_of_nothing_is_refused(
    tmp_path: Path, source: Path, named: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        estimate_build(tmp_path, **request(source), device="cpu", **named)


def test_where_nothing_could_be_measured_no_machine_is_projected(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.building.estimate.calibrate_in", lambda *_: Calibration())
    for asked in ({"cores": 4}, {"online": True, "step_ms": 379}):
        with pytest.raises(UsageError, match="none of 3 volumes could be built"):
            estimate_build(tmp_path, **request(source), device="cpu", **asked)


def test_an_estimate_answers_for_training(tmp_path: Path, source: Path) -> None:
    asked = {"online": True, "step_ms": 379.0, "batch_size": 2, "gpus": 8, "cores": 64}
    estimate = estimate_build(tmp_path, **request(source), device="cpu", calibrate=2, **asked)
    assert estimate.elsewhere is None
    assert estimate.online is not None
    assert estimate.online.training == Training(379.0, 2, 8)
    assert estimate.online.cores == 64
    facts = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))["online"]
    assert facts["raw"]["sample_bytes"] == pytest.approx(estimate.source_bytes / 5)
    assert facts["shards"]["sample_bytes"] == SMALL.size_bytes
    packed = estimate_build(
        tmp_path, **request(source), device="cpu", calibrate=1, compress="pack", **asked
    )
    assert packed.online is not None
    assert packed.online.shards.sample_bytes == packed.storage.sample_bytes < SMALL.size_bytes
    assert packed.online.shards.core_s == packed.readings["pack"].core_s
    table = io.StringIO()
    _show(estimate, Console(file=table, width=200))
    for text in ("take 42.2/s; cores: 64", "from raw", "from shards", estimate.online.advice):
        assert text in table.getvalue()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"online": True}, "online needs step_ms"),
        ({"step_ms": 379.0}, r"step_ms is 379.0, which is of training: it goes with online"),
        ({"batch_size": 2}, r"batch_size is 2, which is of training: it goes with online"),
        ({"online": True, "step_ms": -1.0}, "step_ms is -1.0"),
        ({"online": True, "step_ms": 1.0, "calibrate": 0}, "calibrate is 0"),
    ],
)
def test_half_of_a_training_is_refused(
    tmp_path: Path, source: Path, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        estimate_build(tmp_path, **request(source), device="cpu", **asked)
