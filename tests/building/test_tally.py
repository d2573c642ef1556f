"""How the sources of a build are stored, counted, and a warning where that is mixed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import ctgpu
from ctgpu.building.events import Event, SampleWritten, ShardCommitted
from ctgpu.building.tally import OrientationTally
from stored import chest_as, save
from support.phantoms import COARSE_SPEC


def written(*codes: str | None) -> list[Event]:
    return [SampleWritten(f"scan_{n}", 0, 1, 1, code) for n, code in enumerate(codes)]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctgpu")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_every_event_goes_on_to_who_watches(tmp_path: Path) -> None:
    told: list[Event] = []
    tally = OrientationTally(tmp_path, told.append, turned=False)
    events = [*written("LPS", None), ShardCommitted(0, 2, 100)]
    for event in events:
        tally(event)
    assert told == events


def test_a_mixture_is_told_of_once_as_soon_as_it_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tally = OrientationTally(tmp_path, lambda event: None, turned=False)
    said = []
    for event in written("RAS", None, "RAS", "LPS", "SLP", "LPS"):
        tally(event)
        said.append(len(warnings(caplog)))
    assert said == [0, 0, 0, 1, 1, 1]
    assert "the source mixes orientations (LPS and RAS)" in warnings(caplog)[0]
    tally.finish({"orientations": {"LPS": 2, "RAS": 2}, "total_samples": 4})
    assert len(warnings(caplog)) == 1


def test_of_volumes_that_are_turned_no_mixture_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tally = OrientationTally(tmp_path, lambda event: None, turned=True)
    for event in written("RAS", "LPS"):
        tally(event)
    tally.finish({"orientations": {"RAS": 1, "LPS": 1}, "total_samples": 2})
    assert warnings(caplog) == []
    assert "stored as 1 RAS, 1 LPS" in caplog.text


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({"orientations": {"RAS": 2, "LPS": 7}, "total_samples": 9}, "stored as 7 LPS, 2 RAS"),
        ({"orientations": {"RAS": 2}, "total_samples": 5}, "stored as 2 RAS, 3 not known"),
        ({"total_samples": 5}, "stored as 5 not known"),
    ],
)
def test_at_the_end_all_samples_of_the_data_set_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, manifest: dict[str, object], sentence: str
) -> None:
    OrientationTally(tmp_path, lambda event: None, turned=True).finish(manifest)
    (record,) = caplog.records
    assert record.getMessage() == sentence
    assert record.__dict__["facts"]["event"] == "Orientations"
    assert sum(record.__dict__["facts"]["counts"].values()) == manifest["total_samples"]


def test_of_a_data_set_without_a_sample_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OrientationTally(tmp_path, lambda event: None, turned=False).finish({"total_samples": 0})
    assert caplog.records == []


def test_finished_shards_count_and_damaged_ones_are_left_to_be_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n, codes in enumerate(("LPS", "RAS")):
        save(tmp_path / f"source/{n}.nii", chest_as(codes, (24, 22, 16)))
    out = tmp_path / "out"
    ctgpu.build(
        out, source=tmp_path / "source", spec=COARSE_SPEC, samples_per_shard=1, device="cpu"
    )
    caplog.clear()
    OrientationTally(out, lambda event: None, turned=False)
    assert len(warnings(caplog)) == 1
    caplog.clear()
    (out / "shard-000001.json").write_text("damaged")
    tally = OrientationTally(out, lambda event: None, turned=False)
    assert warnings(caplog) == []
    tally(written("RAS")[0])
    assert len(warnings(caplog)) == 1
