"""What a build decides before its first sample: the split, the classes, and what is in the plan."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import read_samples
from ctgpu.building.events import ignore
from ctgpu.building.planning import make_plan
from ctgpu.building.request import Request
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.engines import arithmetic_of
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from ctgpu.sources import open_source
from ctgpu.testing.ctrate import LABEL_NAMES, Volume, lay_out_ct_rate
from support.building import builds
from support.phantoms import COARSE_SPEC, chest


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ctgpu")


@pytest.fixture(scope="module")
def phantoms() -> list[Volume]:
    return [chest((60, 56, 40), seed) for seed in (1, 2)]


@pytest.fixture
def disk(tmp_path: Path, phantoms: list[Volume]) -> Path:
    """Both splits of CT-RATE, one level down."""
    for split in ("train", "valid"):
        volumes = {f"{split}_{n}_a_1": volume for n, volume in enumerate(phantoms, 1)}
        lay_out_ct_rate(tmp_path / "disk" / "CT-RATE", volumes, split=split)  # type: ignore[arg-type]
    return tmp_path / "disk"


@pytest.fixture
def plain(tmp_path: Path, phantoms: list[Volume]) -> Path:
    """A folder of two abdomens, and nothing of CT-RATE."""
    made = lay_out_ct_rate(
        tmp_path / "made", {f"abdomen {n}": v for n, v in enumerate(phantoms)}, tables=()
    )
    (tmp_path / "plain").mkdir()
    for path in made.values():
        path.rename(tmp_path / "plain" / path.name)
    return tmp_path / "plain"


build = builds(spec=COARSE_SPEC, samples_per_shard=1)


def begun_before(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, split: str = "valid"
) -> Plan:
    """A folder with the plan that the versions made of which none looked below a source's top."""
    with monkeypatch.context() as patch:
        patch.setattr("ctgpu.building.planning.open_source", _open_top)
        patch.setattr("ctgpu.building.planning.select", _select_all)
        request = Request(source=source, spec=COARSE_SPEC, split=split, samples_per_shard=1)
        plan, *_ = make_plan(request, arithmetic_of("cpu"), ignore)
    folder.mkdir()
    return Plan.create(folder, replace(plan, class_names=LABEL_NAMES))


def _open_top(**options: Any) -> Any:
    source = open_source(**options, only_top=True)
    listing = source.list_volumes

    def list_volumes(split: Any) -> Any:
        refs = listing(split)
        source.listed_split = None
        return refs

    source.list_volumes = list_volumes  # type: ignore[method-assign]
    return source


def _select_all(refs: Any, tables: Any, *, split: Any, **options: Any) -> Any:
    from ctgpu.sources.selection import select

    return select(refs, tables, **options)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_disk_that_holds_the_data_set_further_down_gives_the_split_asked_for(
    tmp_path: Path, disk: Path, split: str
) -> None:
    report = build(tmp_path / "out", disk, split=split)
    assert report.exit_code == 0
    samples = read_samples(tmp_path / "out")
    assert list(samples) == [f"{split}_1_a_1", f"{split}_2_a_1"]
    plan = Plan.load(tmp_path / "out")
    assert plan.source["root"] == "CT-RATE"
    assert plan.class_names == LABEL_NAMES
    assert {sample.provenance for sample in plan.samples} == {"fixed"}
    # Labels, reports and spacing are those of the tables that lie in the data set.
    build(tmp_path / "direct", disk / "CT-RATE", split=split)
    direct = read_samples(tmp_path / "direct")
    for key, sample in samples.items():
        assert sample.volume == direct[key].volume
        assert sample.labels.tobytes() == direct[key].labels.tobytes()
        assert sample.text == direct[key].text != ""
        assert sample.metadata["source"]["spacing_source"] == "csv"


def test_a_build_from_further_down_goes_on_and_is_compared_with_its_originals(
    tmp_path: Path, disk: Path
) -> None:
    build(tmp_path / "out", disk, shards=range(1))
    assert build(tmp_path / "out").exit_code == 0
    for source in (None, disk, disk / "CT-RATE"):
        found = list(compare_samples(tmp_path / "out", source=source, num_samples=None))
        assert [comparison.passed for comparison in found] == [True, True]


@pytest.mark.parametrize("place", ["train_fixed", "train_fixed/train_1", "link"])
def test_a_part_of_the_other_split_is_refused(tmp_path: Path, disk: Path, place: str) -> None:
    folder = disk / "CT-RATE" / "dataset"
    (folder / "link").symlink_to("train_fixed")
    for split in ("valid", None):
        with pytest.raises(UsageError, match=rf"{place}.* split 'train'.*'valid'.*--split train"):
            build(tmp_path / "out", folder / place, split=split)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_part_of_the_split_asked_for_is_taken(tmp_path: Path, disk: Path) -> None:
    report = build(tmp_path / "out", disk / "CT-RATE/dataset/train_fixed/train_2", split="train")
    assert report.exit_code == 0
    assert list(read_samples(tmp_path / "out")) == ["train_2_a_1"]


def test_a_flat_folder_gives_the_volumes_whose_names_are_of_the_split(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flat").mkdir()
    for path in list(disk.rglob("*.nii.gz")):
        path.rename(tmp_path / "flat" / path.name)
    build(tmp_path / "out", tmp_path / "flat")
    assert list(read_samples(tmp_path / "out")) == ["valid_1_a_1", "valid_2_a_1"]
    assert "2 volumes are left out" in caplog.text
    # What was listed is the revision, so that the folder can be gone on with.
    assert build(tmp_path / "out", force=True).exit_code == 0
    for path in (tmp_path / "flat").glob("valid_*"):
        path.unlink()
    with pytest.raises(UsageError, match="--split train"):
        build(tmp_path / "other", tmp_path / "flat")


def test_a_folder_begun_with_both_splits_is_completed_and_says_so(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = begun_before(tmp_path / "out", disk, monkeypatch)
    assert "root" not in plan.source
    assert len(plan.samples) == 4
    caplog.clear()
    assert build(tmp_path / "out").exit_code == 0
    assert "of the 4 volumes planned as the split 'valid' 2 are of the other one" in caplog.text
    samples = read_samples(tmp_path / "out")
    assert list(samples) == [f"{split}_{n}_a_1" for split in ("train", "valid") for n in (1, 2)]
    for sample in samples.values():
        assert np.isnan(sample.labels).tolist() == [True] * 18
        assert sample.metadata["source"]["spacing_source"] == "header"
    assert verify_folder(tmp_path / "out").findings == []
    for source in (None, disk):
        found = list(compare_samples(tmp_path / "out", source=source, num_samples=None))
        assert [comparison.passed for comparison in found] == [True] * 4


def test_a_folder_begun_with_a_part_of_the_other_split_is_completed(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_before(tmp_path / "out", disk / "CT-RATE/dataset/train_fixed", monkeypatch)
    assert build(tmp_path / "out").exit_code == 0
    assert list(read_samples(tmp_path / "out")) == ["train_1_a_1", "train_2_a_1"]


def test_an_ordinary_folder_begun_before_goes_on_with_eighteen_classes(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun_before(tmp_path / "out", plain, monkeypatch)
    report = build(tmp_path / "out")
    assert report.manifest["num_classes"] == 18
    for sample in read_samples(tmp_path / "out").values():
        assert np.isnan(sample.labels).tolist() == [True] * 18
    assert caplog.text == ""
    found = list(compare_samples(tmp_path / "out", source=plain, num_samples=None))
    assert [comparison.passed for comparison in found] == [True, True]


def test_an_ordinary_folder_has_no_classes(
    tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("valid", "train"):
        report = build(tmp_path / split, plain, split=split)
        assert report.exit_code == 0
        assert Plan.load(tmp_path / split).class_names == ()
        assert report.manifest["num_classes"] == 0
        assert report.manifest["class_names"] == []
        assert report.manifest["total_samples"] == report.manifest["unlabelled_samples"] == 2
        assert "num_classes: 0" in report.training_yaml()
        assert [s.labels.size for s in read_samples(tmp_path / split).values()] == [0, 0]
        assert verify_folder(tmp_path / split).findings == []
    assert caplog.text == ""


def test_what_has_no_classes_is_gone_on_with_retried_and_compared(
    tmp_path: Path, plain: Path
) -> None:
    build(tmp_path / "out", plain, shards=range(1))
    build(tmp_path / "out")
    (bad,) = plain.glob("abdomen 1*")
    good = bad.read_bytes()
    bad.write_bytes(b"nothing" + bytes(len(good) - 7))
    assert build(tmp_path / "out", force=True).exit_code == 1
    bad.write_bytes(good)
    # Labels that come later change nothing: the plan decided.
    rows = "\n".join(f"abdomen {n}" + ",1" * 18 for n in (0, 1))
    table = plain / "valid_predicted_labels.csv"
    table.write_text("VolumeName," + ",".join(LABEL_NAMES) + "\n" + rows)
    assert build(tmp_path / "out", retry_failed=True).exit_code == 0
    assert [sample.labels.size for sample in read_samples(tmp_path / "out").values()] == [0, 0]
    assert verify_folder(tmp_path / "out").findings == []
    assert build(tmp_path / "out", force=True).exit_code == 0
    assert [sample.labels.size for sample in read_samples(tmp_path / "out").values()] == [0, 0]
    table.unlink()
    found = list(compare_samples(tmp_path / "out", source=plain, num_samples=None))
    assert [comparison.passed for comparison in found] == [True, True]


def test_tables_that_are_not_read_are_named_once(
    tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("labels.csv", "a.tsv", "b.xlsx", "c.json", "d.csv", "abdomen 0.json"):
        (plain / name).write_text("patient,liver\n")
    build(tmp_path / "out", plain)
    fault, warning = [record.getMessage() for record in caplog.records]
    assert fault.startswith("b.xlsx is not a workbook that can be read")
    assert warning.startswith("a.tsv, c.json, d.csv and 1 more: seen and not read, for nothing in")
    assert "the data set has no classes" in warning
    caplog.clear()
    build(tmp_path / "out", force=True)
    assert caplog.text == ""


def test_volumes_beside_a_data_set_are_named_once(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (volume,) = disk.rglob("valid_1_a_1.nii.gz")
    (disk / "abdomen.nii.gz").write_bytes(volume.read_bytes())
    build(tmp_path / "out", disk)
    assert list(read_samples(tmp_path / "out")) == ["valid_1_a_1", "valid_2_a_1"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        "abdomen.nii.gz: not taken, for only the volumes of the data set in CT-RATE are"
    )
    caplog.clear()
    build(tmp_path / "out", force=True)
    assert caplog.text == ""


def test_a_table_of_labels_gives_an_ordinary_folder_its_classes(
    tmp_path: Path, plain: Path
) -> None:
    table = plain / "valid_predicted_labels.csv"
    table.write_text("VolumeName," + ",".join(LABEL_NAMES) + "\nabdomen 1.nii.gz" + ",1" * 18)
    report = build(tmp_path / "out", plain)
    assert report.manifest["class_names"] == list(LABEL_NAMES)
    assert report.manifest["unlabelled_samples"] == 1
    assert [s.labels.size for s in read_samples(tmp_path / "out").values()] == [18, 18]


def test_only_volumes_whose_paths_fit_are_planned(
    tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    globs = {"include": "abdomen*", "exclude": "*0.nii*"}
    report = ctgpu.build(tmp_path / "shards", source=plain, spec=COARSE_SPEC, device="cpu", **globs)
    assert report.written == 1
    plan = Plan.load(tmp_path / "shards")
    assert [sample.study_id for sample in plan.samples] == ["abdomen 1"]
    assert {name: plan.selection[name] for name in globs} == globs
    # What does not fit is not missed when the source is listed again.
    caplog.clear()
    ctgpu.build(tmp_path / "shards", source=plain, device="cpu", force=True)
    assert not [record for record in caplog.records if "abdomen" in record.getMessage()]
    with pytest.raises(MismatchError, match=r"selection\.include: found 'abdomen\*'"):
        ctgpu.build(tmp_path / "shards", source=plain, device="cpu", include="*")


def test_a_plan_without_globs_does_not_state_any(tmp_path: Path, plain: Path) -> None:
    ctgpu.build(tmp_path / "shards", source=plain, spec=COARSE_SPEC, device="cpu")
    assert Plan.load(tmp_path / "shards").selection.keys().isdisjoint(("include", "exclude"))
