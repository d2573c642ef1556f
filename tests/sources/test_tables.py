"""The CSVs: names, joins, and everything that can be wrong with a row."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from ct_rate_tables import LABELS, METADATA, REPORTS, ROW, load, metadata

from ctgpu.errors import TableError
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.selection import select
from ctgpu.sources.tables import SampleRow
from ctgpu.testing.ctrate import LABEL_NAMES
from ctgpu.volume.ref import SampleRef


def test_a_full_row_is_joined(tmp_path: Path) -> None:
    values = ",".join(str(k % 2) for k in range(18))
    tables = load(
        tmp_path,
        metadata=metadata('valid_1_a_1.nii.gz,ACME,F,054Y,1,-1024,"[0.34, 0.35]",1.5,512,512,300'),
        labels=f"{LABELS}valid_1_a_1.nii.gz,{values}\n",
        reports=f'{REPORTS}valid_1_a_1.nii.gz,Not given.,CT,"a, ""b""\nc",d\n',
        no_chest="valid_9_a_1.nii.gz\n\ndataset/valid/valid_8_a_1.nii.gz\n",
        carry=("Manufacturer", "PatientAge"),
    )
    row = tables.row("valid_1_a_1")
    assert row.labels.dtype == np.float32
    assert row.labels.tolist() == [k % 2 for k in range(18)]
    assert row.has_labels
    assert row.spacing_mm == (0.34, 0.35, 1.5)
    assert row.rescale_pair == (1.0, -1024.0)
    assert row.shape_hint == (512, 512, 300)
    assert row.carried == {"Manufacturer": "ACME", "PatientAge": "054Y"}
    assert row.report == {
        "ClinicalInformation_EN": "Not given.",
        "Technique_EN": "CT",
        "Findings_EN": 'a, "b"\nc',
        "Impressions_EN": "d",
    }
    assert row.text == 'a, "b"\nc\nd'
    assert tables.left_out.keys() == {"valid_9_a_1", "valid_8_a_1"}


def test_train_tables_have_their_own_names(tmp_path: Path) -> None:
    for name in (
        "dataset/metadata/train_metadata.csv",
        "dataset/multi_abnormality_labels/train_predicted_labels.csv",
        "dataset/radiology_text_reports/train_reports.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"m": METADATA, "l": LABELS, "r": REPORTS}[path.stem.split("_")[-1][0]]
        path.write_text(head)
    tables = load(tmp_path, "train")
    assert tables.metadata is not None
    assert tables.labels is not None
    assert tables.reports is not None


def test_tables_beside_the_volumes_are_found(tmp_path: Path) -> None:
    (tmp_path / "valid_predicted_labels.csv").write_text(LABELS)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "validation_metadata.csv").write_text(METADATA)
    tables = load(tmp_path)
    assert tables.labels is not None
    assert tables.metadata is not None
    assert tables.reports is None


def test_defect_10_a_missing_row_is_noticed_before_any_download(tmp_path: Path) -> None:
    known = metadata('valid_1_a_1.nii.gz,A,F,1,1,0,"[1, 1]",1,1,1,1')
    tables = load(tmp_path, metadata=known, labels=LABELS)
    with pytest.raises(TableError, match=r"no row for valid_2_a_1.*--spacing-fallback header"):
        tables.row("valid_2_a_1")
    row = tables.row("valid_2_a_1", spacing_from_header=True)
    assert row.spacing_mm is None
    assert row.choose_spacing_mm((1.0, 2.0, 3.0)) == ((1.0, 2.0, 3.0), "header")
    assert math.isnan(row.labels[0])
    assert not row.has_labels


@pytest.mark.parametrize(
    "spacing", ['"[nan, nan]",1.5', '"[0.5, 0.5]",nan', '"[0.5, 0.5]",', ",1.5", "nan,1.5"]
)
def test_a_nan_spacing_fails_the_sample_unless_the_header_may_serve(
    tmp_path: Path, spacing: str
) -> None:
    tables = load(tmp_path, metadata=metadata(f"v.nii.gz,A,F,1,1,0,{spacing},1,1,1"))
    with pytest.raises(TableError, match="a row without a spacing for v"):
        tables.row("v")
    assert tables.row("v", spacing_from_header=True).spacing_mm is None


@pytest.mark.parametrize(
    "cells",
    [
        '1,0,"[0.5]",1',
        '1,0,"[0.5, 0.5, 0.5]",1',
        "1,0,\"__import__('os')\",1",
        '1,0,"[0.5, 0.5]",thick',
        'one,0,"[0.5, 0.5]",1',
    ],
)
def test_a_value_that_is_no_number_fails_the_sample(tmp_path: Path, cells: str) -> None:
    tables = load(tmp_path, metadata=metadata(f"v.npz,A,F,1,{cells},1,1,1"))
    with pytest.raises(TableError, match=r"validation_metadata\.csv has .* for v; wanted"):
        tables.row("v", spacing_from_header=True)


def test_zero_and_negative_spacing_is_left_to_the_geometry(tmp_path: Path) -> None:
    tables = load(tmp_path, metadata=metadata('v.npz,A,F,1,1,0,"[0, -1]",1,x,1,1'))
    row = tables.row("v")
    assert row.spacing_mm == (0.0, -1.0, 1.0)
    assert row.shape_hint is None


def test_without_a_metadata_csv_the_header_serves(tmp_path: Path) -> None:
    row = load(tmp_path).row("v")
    assert row.choose_spacing_mm((1.0, 1.0, 2.0)) == ((1.0, 1.0, 2.0), "header")
    assert row.rescale_pair is None
    with pytest.raises(TableError, match="no spacing is stated"):
        row.choose_spacing_mm(None)


def test_the_csv_goes_before_the_header() -> None:
    row = SampleRow(np.zeros(18, np.float32), spacing_mm=(1.0, 2.0, 3.0))
    assert row.choose_spacing_mm((9.0, 9.0, 9.0)) == ((1.0, 2.0, 3.0), "csv")


def test_rescale_pair_is_none_where_it_is_not_stated(tmp_path: Path) -> None:
    tables = load(tmp_path, metadata='VolumeName,XYSpacing,ZSpacing\nv.npz,"[1, 1]",1\n')
    assert tables.row("v").rescale_pair is None
    assert tables.row("v").carried == {}


@pytest.mark.parametrize(
    ("volume", "classes"),
    [
        ("abdomen.npz", ()),
        ("scans/train/abdomen.npz", ()),
        ("imagesTr/abdomen_0000.nii.gz", ()),
        ("valid_1_a_1.nii.gz", ()),
        ("dataset/valid_fixed/x.npz", LABEL_NAMES),
        ("dataset/valid/x.npz", LABEL_NAMES),
        ("copy/valid_fixed/x.npz", LABEL_NAMES),
    ],
)
def test_a_source_without_labels_has_ct_rates_classes_in_ct_rates_folders_alone(
    tmp_path: Path, volume: str, classes: tuple[str, ...]
) -> None:
    (tmp_path / volume).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / volume).touch()
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    tables = source.tables("valid")
    assert tables.class_names == classes
    row = tables.row("x")
    assert row.labels.shape == (len(classes),)
    assert row.labels.dtype == np.float32
    assert np.isnan(row.labels).all()
    assert not row.has_labels


def test_a_table_of_labels_makes_any_folder_have_classes(tmp_path: Path) -> None:
    (tmp_path / "abdomen.npz").touch()
    (tmp_path / "valid_predicted_labels.csv").write_text(LABELS + "abdomen" + ",1" * 18)
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    assert source.tables("valid").class_names == LABEL_NAMES
    assert source.tables("valid").row("abdomen").labels.tolist() == [1.0] * 18
    assert list(source.unused_tables) == []


def test_the_classes_that_a_plan_has_are_kept_whatever_the_source_has(tmp_path: Path) -> None:
    (tmp_path / "abdomen.npz").touch()
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    old = source.tables("valid", LABEL_NAMES)
    assert np.isnan(old.row("abdomen").labels).tolist() == [True] * 18
    # A table that came later adds no classes to a data set that was begun without.
    (tmp_path / "valid_predicted_labels.csv").write_text(LABELS + "abdomen" + ",1" * 18)
    assert source.tables("valid", ()).row("abdomen").labels.shape == (0,)
    assert source.tables("valid", LABEL_NAMES[2:4]).row("abdomen").labels.tolist() == [1.0, 1.0]


def test_names_in_both_normal_forms_are_one_study(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Müller_é") for form in ("NFC", "NFD"))
    assert nfc != nfd
    for written, asked in ((nfc, nfd), (nfd, nfc), (nfd, nfd)):
        tables = load(
            tmp_path,
            labels=f"{LABELS}{written}.nii.gz{',1' * 18}\n",
            reports=f"{REPORTS}{written}.nii.gz,,,fine,\n",
            metadata=metadata(ROW.replace("valid_1_a_1", written)),
            no_chest=f"{written}.nii.gz\n",
        )
        row = tables.row(asked)
        assert (row.has_labels, row.report["Findings_EN"]) == (True, "fine")
        assert row.spacing_mm == (0.34, 0.35, 1.5)
        chosen = select([SampleRef.of_file(f"{asked}.nii.gz", 9)], tables, keep_no_chest=True)
        assert chosen.samples[0].study_id == chosen.samples[0].key == asked
        assert chosen.counts["without labels"] == chosen.counts["without metadata"] == 0
        assert select([SampleRef.of_file(f"{asked}.nii.gz", 9)], tables).samples == []
    both = f"{LABELS}{nfc}.npz{',1' * 18}\n{nfd}.npz{',0' * 18}\n"
    with pytest.raises(TableError, match="contradict each other"):
        load(tmp_path, labels=both).row(nfc)
