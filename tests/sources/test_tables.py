"""The CSVs: names, joins, and everything that can be wrong with a row."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from ctgpu.errors import TableError, UsageError
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.tables import LABEL_NAMES, SampleRow, Tables, report_text

METADATA = (
    "VolumeName,Manufacturer,PatientSex,PatientAge,RescaleSlope,RescaleIntercept,"
    "XYSpacing,ZSpacing,Rows,Columns,NumberofSlices\n"
)
LABELS = "VolumeName," + ",".join(LABEL_NAMES) + "\n"
REPORTS = "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"


def load(root: Path, split: str = "valid", **files: str | bytes) -> Tables:
    names = {
        "metadata": "dataset/metadata/validation_metadata.csv",
        "labels": "dataset/multi_abnormality_labels/valid_predicted_labels.csv",
        "reports": "dataset/radiology_text_reports/validation_reports.csv",
        "no_chest": "dataset/metadata/no_chest_valid.txt",
    }
    for table, content in files.items():
        path = root / names[table]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Tables.load(FolderSource(root), split)  # type: ignore[arg-type]


def metadata(row: str) -> str:
    return METADATA + row + "\n"


def test_a_full_row_is_joined(tmp_path: Path) -> None:
    values = ",".join(str(k % 2) for k in range(18))
    tables = load(
        tmp_path,
        metadata=metadata('valid_1_a_1.nii.gz,ACME,F,054Y,1,-1024,"[0.34, 0.35]",1.5,512,512,300'),
        labels=f"{LABELS}valid_1_a_1.nii.gz,{values}\n",
        reports=f'{REPORTS}valid_1_a_1.nii.gz,Not given.,CT,"a, ""b""\nc",d\n',
        no_chest="valid_9_a_1.nii.gz\n\ndataset/valid/valid_8_a_1.nii.gz\n",
    )
    row = tables.row("valid_1_a_1")
    assert row.labels.dtype == np.float32
    assert row.labels.tolist() == [k % 2 for k in range(18)]
    assert row.has_labels
    assert row.spacing_mm == (0.34, 0.35, 1.5)
    assert row.rescale_pair == (1.0, -1024.0)
    assert row.shape_hint == (512, 512, 300)
    assert row.metadata == {"Manufacturer": "ACME", "PatientSex": "F", "PatientAge": "054Y"}
    assert row.report == {
        "ClinicalInformation_EN": "Not given.",
        "Technique_EN": "CT",
        "Findings_EN": 'a, "b"\nc',
        "Impressions_EN": "d",
    }
    assert report_text(row.report) == 'a, "b"\nc\nd'
    assert tables.no_chest == {"valid_9_a_1", "valid_8_a_1"}


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
    tables = load(tmp_path, metadata=metadata('valid_1_a_1.nii.gz,A,F,1,1,0,"[1, 1]",1,1,1,1'))
    with pytest.raises(TableError, match=r"no row for valid_2_a_1.*--spacing-fallback header"):
        tables.row("valid_2_a_1")
    row = tables.row("valid_2_a_1", spacing_from_header=True)
    assert row.spacing_mm is None
    assert row.choose_spacing_mm((1.0, 2.0, 3.0)) == ((1.0, 2.0, 3.0), "header")
    assert math.isnan(row.labels[0])
    assert not row.has_labels


def test_defect_14_nan_and_not_given_are_no_text() -> None:
    def text(findings: str, impressions: str) -> str:
        return report_text({"Findings_EN": findings, "Impressions_EN": impressions})

    assert text("A", "B") == "A\nB"
    assert text("A", "nan") == "A"
    assert text("NaN", "B") == "B"
    for nothing in ("", "  ", "nan", "Not given.", "not given", "Not Given. "):
        assert text(nothing, nothing) == ""
    assert report_text({}) == ""
    assert text("Nantes. Not given. More", "") == "Nantes. Not given. More"


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
    assert tables.row("v").metadata == {}


def test_doubled_rows_may_agree_but_not_contradict(tmp_path: Path) -> None:
    row = '.nii.gz,A,F,1,1,0,"[1, 1]",1,1,1,1\n'
    other = '.nii.gz,A,F,1,1,0,"[1, 1]",2,1,1,1\n'
    tables = load(tmp_path, metadata=METADATA + "same" + row + "same" + row + "two" + row)
    assert tables.row("same").spacing_mm == (1.0, 1.0, 1.0)
    tables = load(tmp_path, metadata=METADATA + "two" + row + "two" + other + "two" + row)
    with pytest.raises(TableError, match="rows that contradict each other for two"):
        tables.row("two")


def test_a_row_of_another_width_fails_the_sample(tmp_path: Path) -> None:
    tables = load(tmp_path, reports=REPORTS + "v.npz,one,two\nw.npz,1,2,3,4,5\n,,,,\n\n")
    for study_id, count in (("v", 3), ("w", 6)):
        with pytest.raises(TableError, match=f"{count} values for 5 columns for {study_id}"):
            tables.row(study_id)


def test_a_bom_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    tables = load(tmp_path, labels=b"\xef\xbb\xbf" + LABELS.encode() + b"v.npz" + b",1" * 18)
    assert tables.row("v").labels.tolist() == [1.0] * 18


def test_bytes_that_are_not_utf8_are_replaced_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tables = load(tmp_path, reports=REPORTS.encode() + b"v.npz,,,na\xefve \xb0,b\xff\n")
    assert report_text(tables.row("v").report) == "na\ufffdve \ufffd\nb\ufffd"
    assert [r.getMessage() for r in caplog.records] == [
        "dataset/radiology_text_reports/validation_reports.csv is not UTF-8; "
        "bytes that cannot be read are replaced by U+FFFD"
    ]


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"valid_predicted_labels\.csv lacks the columns Cardiomegaly, Emphysema;"
    ):
        load(tmp_path, labels=LABELS.replace(",Cardiomegaly", "").replace(",Emphysema", ""))
    with pytest.raises(UsageError, match=r"lacks the columns VolumeName.*it has none"):
        load(tmp_path, labels="")


def test_a_quote_that_is_not_closed_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"validation_reports\.csv is no CSV from line"):
        load(tmp_path, reports=REPORTS + 'v.npz,"' + "x\n" * 200_000)


def test_fifty_thousand_rows_are_all_there(tmp_path: Path) -> None:
    rows = "".join(f'train_{n}_a_1.nii.gz,A,F,1,1,0,"[1, 1]",{n},1,1,1\n' for n in range(50_000))
    tables = load(tmp_path, metadata=METADATA + rows)
    assert tables.metadata is not None
    assert len(tables.metadata) == 50_000
    assert tables.row("train_49999_a_1").spacing_mm == (1.0, 1.0, 49999.0)
