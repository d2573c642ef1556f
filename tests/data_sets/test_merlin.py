"""Merlin as its release is laid out: NIfTI, a workbook of reports, a CSV of findings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import read_samples
from ctgpu.data_sets import built_in
from ctgpu.errors import UsageError
from ctgpu.loading import make_loader
from support.data_set_copies import (
    MERLIN_REPORTS,
    SHAPE_HWD,
    SPACING_MM,
    build,
    check,
    lay_out_merlin,
    marked,
    nothing_to_do,
    relabelled,
    write_nifti,
    write_table,
)

CLASSES = built_in("merlin").class_names
SPLITS = {
    "AC421363f": "train",
    "AC4213640": "train",
    "AC4213641": "train",
    "AC4213642": "val",
    "AC4213643": "test",
}
#: The second has no row, as 43 of the release.
FINDINGS: Mapping[str, list[object]] = {
    "AC421363f": [(-1, 0, 1)[k % 3] for k in range(30)],
    "AC4213641": [(0, 1, -1)[k % 3] for k in range(30)],
    "AC4213642": [1] * 30,
    "AC4213643": [-1] * 30,
}


def wanted_labels(name: str) -> bytes:
    cells = np.array(FINDINGS.get(name, [-1] * 30), "<f4")
    return np.where(cells == -1, np.float32("nan"), cells).astype("<f4").tobytes()


def lay_out(root: Path, **options: Any) -> Path:
    volumes = {name: marked(seed) for seed, name in enumerate(SPLITS)}
    return lay_out_merlin(root, volumes, SPLITS, FINDINGS, CLASSES, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("merlin") / "merlinabdominalctdataset")


def made(folder: Path, source: Path, **options: Any) -> ctgpu.BuildReport:
    return build(folder, source, dataset="merlin", **options)


@pytest.mark.parametrize(
    ("split", "word"), [("train", "train"), ("valid", "val"), ("test", "test")]
)
def test_each_split_is_told_by_the_workbook(
    tmp_path: Path, source: Path, split: str, word: str
) -> None:
    report = made(tmp_path / "out", source, split=split)
    own = [name for name, stated in SPLITS.items() if stated == word]
    samples = read_samples(tmp_path / "out")
    assert list(samples) == own
    assert report.exit_code == 0
    assert report.manifest["class_names"] == list(CLASSES)
    assert len(CLASSES) == 30
    for name, sample in samples.items():
        # Not mentioned is not known, and no 0.
        assert sample.labels.tobytes() == wanted_labels(name)
        text = f"FINDINGS: Of {name}.\nIMPRESSION: Nothing."
        assert (sample.text, sample.metadata["report"]) == (text, {"Findings": text})
        facts = sample.metadata["source"]
        assert (facts["spacing_source"], facts["spacing_mm"]) == ("header", list(SPACING_MM))
        assert (facts["orientation"], facts["affine_source"]) == ("LPS", "header")
        assert facts["shape"] == list(SHAPE_HWD)
    check(tmp_path / "out", source, len(own))


def test_the_voxels_are_those_of_a_folder_without_a_description(
    tmp_path: Path, source: Path
) -> None:
    made(tmp_path / "out", source, split="train")
    for seed, name in enumerate([*SPLITS][:3]):
        write_nifti(tmp_path / "plain" / f"{name}.nii.gz", marked(seed), codes="LPS")
    build(tmp_path / "other", tmp_path / "plain")
    found, wanted = read_samples(tmp_path / "out"), read_samples(tmp_path / "other")
    assert list(found) == list(wanted)
    for name, sample in found.items():
        assert sample.volume == wanted[name].volume
        assert sample.metadata["affine"] == wanted[name].metadata["affine"]


@pytest.mark.parametrize(
    "options",
    [
        {"reports": "reports_final.csv"},
        {"reports": "reports_final.csv", "suffix": ".nii"},
        {"suffix": ".nii"},
    ],
)
def test_a_csv_serves_in_place_of_the_workbook_and_nii_of_nii_gz(
    tmp_path: Path, source: Path, options: dict[str, str]
) -> None:
    made(tmp_path / "out", lay_out(tmp_path / "copy", **options), split="train")
    made(tmp_path / "first", source, split="train")
    found, wanted = read_samples(tmp_path / "out"), read_samples(tmp_path / "first")
    assert list(found) == list(wanted)
    for name, sample in found.items():
        assert sample.volume == wanted[name].volume
        assert sample.text == wanted[name].text
        assert sample.labels.tobytes() == wanted[name].labels.tobytes()


def test_findings_may_be_keyed_as_the_reports_are(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy")
    table = root / "zero_shot_findings_disease_cls.csv"
    table.write_text(table.read_text().replace("study_id", "study id", 1))
    made(tmp_path / "out", root, split="train")
    first = read_samples(tmp_path / "out")["AC421363f"]
    assert first.labels.tobytes() == wanted_labels("AC421363f")


def test_a_study_with_two_reports_fails_alone_and_the_others_are_built(tmp_path: Path) -> None:
    """Three of the release have two; which one is right nobody says."""
    root = lay_out(tmp_path / "copy")
    rows: list[tuple[object, ...]] = [
        (name, f"Of {name}.", split, 0) for name, split in SPLITS.items()
    ]
    rows.append(("AC4213640", "Of AC4213640, at greater length.", "train", 0))
    # The same row twice contradicts nothing.
    rows.append(rows[0])
    write_table(root / "reports_final.xlsx", MERLIN_REPORTS, rows)
    report = made(tmp_path / "out", root, split="train")
    (failure,) = report.failures
    assert failure["key"] == "AC4213640"
    assert "reports_final.xlsx has rows that contradict each other" in failure["message"]
    assert list(read_samples(tmp_path / "out")) == ["AC421363f", "AC4213641"]
    # Of its split there is no doubt.
    assert made(tmp_path / "valid", root, split="valid").failures == []


def test_a_study_in_two_splits_is_in_none_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = lay_out(tmp_path / "copy")
    rows: list[tuple[object, ...]] = [
        (name, f"Of {name}.", split, 0) for name, split in SPLITS.items()
    ]
    rows.append(("AC4213640", "Of AC4213640.", "test", 0))
    write_table(root / "reports_final.xlsx", MERLIN_REPORTS, rows)
    for split, own in (("train", ["AC421363f", "AC4213641"]), ("test", ["AC4213643"])):
        caplog.clear()
        assert made(tmp_path / split, root, split=split).exit_code == 0
        assert list(read_samples(tmp_path / split)) == own
        assert "contradict each other for AC4213640 in line 3" in caplog.text
        assert "the volume is in no split" in caplog.text


def test_a_volume_without_a_row_of_the_workbook_belongs_to_no_split(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy")
    write_nifti(root / "merlin_data" / "AC42zzzzz.nii.gz", marked(9), codes="LPS")
    for split, own in (("train", 3), ("valid", 1), ("test", 1)):
        made(tmp_path / split, root, split=split)
        assert len(read_samples(tmp_path / split)) == own


def test_without_the_workbook_nothing_says_which_split_a_volume_is_of(tmp_path: Path) -> None:
    """Else every scan would be in each of the splits, and a test would be no test."""
    root = lay_out(tmp_path / "copy")
    (root / "reports_final.xlsx").unlink()
    with pytest.raises(UsageError, match=r"column Split of reports_final\.xlsx or .*not have"):
        made(tmp_path / "out", root, split="train")
    assert not (tmp_path / "out/plan.json").exists()


def test_the_folder_of_volumes_alone_is_not_enough(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match=r"column Split of reports_final\.xlsx or .*not have"):
        made(tmp_path / "out", source / "merlin_data", split="train")


def test_patients_are_not_known_and_its_splits_are(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="Merlin has splits of its own, train, valid, test"):
        made(tmp_path / "out", source, split="train", split_by="patient", fractions="0.5,0.5")


def test_findings_that_changed_are_written_again(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy")
    made(tmp_path / "out", root, split="train")
    nothing_to_do(tmp_path / "out", source=root, dataset="merlin", split="train")
    table = root / "zero_shot_findings_disease_cls.csv"
    rows: dict[str, list[object]] = {**FINDINGS, "AC4213640": [0] * 30}
    del rows["AC421363f"]
    write_table(
        table,
        ("study_id", *CLASSES),
        [(name, *cells) for name, cells in rows.items()],
    )
    assert sorted(relabelled(tmp_path / "out").relabelled) == ["AC421363f", "AC4213640"]
    samples = read_samples(tmp_path / "out")
    assert np.isnan(samples["AC421363f"].labels).all()
    assert samples["AC4213640"].labels.tobytes() == np.zeros(30, "<f4").tobytes()
    assert samples["AC4213641"].labels.tobytes() == wanted_labels("AC4213641")
    check(tmp_path / "out", root, 3)


def test_a_loader_gives_its_labels_and_reports(tmp_path: Path, source: Path) -> None:
    made(tmp_path / "out", source, split="train")
    batches = list(make_loader(tmp_path / "out", 2))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(2, 30), (1, 30)]
    assert batches[0]["report"][0].startswith("FINDINGS: Of AC421363f.")


def test_the_summary_says_what_was_joined(tmp_path: Path, source: Path) -> None:
    report = made(tmp_path / "out", source, split="train")
    assert report.data_set == "Merlin"
    assert [str(table) for table in report.tables] == [
        "reports_final.xlsx (text), joined by study id: 3 of 3 volumes have a row",
        "reports_final.xlsx (splits), joined by study id: 3 of 3 volumes have a row",
        "zero_shot_findings_disease_cls.csv (labels), joined by study_id: 2 of 3 volumes have a "
        "row",
    ]
