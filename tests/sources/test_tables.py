"""The CSVs: names, joins, and everything that can be wrong with a row."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from ctgpu.data_sets import built_in
from ctgpu.errors import TableError, UsageError
from ctgpu.sources.columns import report_text
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.selection import select
from ctgpu.sources.tables import SampleRow, Tables
from ctgpu.testing.ctrate import LABEL_NAMES
from ctgpu.volume.ref import SampleRef

METADATA = (
    "VolumeName,Manufacturer,PatientSex,PatientAge,RescaleSlope,RescaleIntercept,"
    "XYSpacing,ZSpacing,Rows,Columns,NumberofSlices\n"
)
LABELS = "VolumeName," + ",".join(LABEL_NAMES) + "\n"
REPORTS = "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"


def load(
    root: Path, split: str = "valid", *, carry: tuple[str, ...] = (), **files: str | bytes
) -> Tables:
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
    metadata, *others = built_in().tables
    tables = (replace(metadata, carry=carry), *others)
    return Tables.load(FolderSource(root, data_set=replace(built_in(), tables=tables)), split)


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


def test_defect_14_nan_and_not_given_are_no_text() -> None:
    def text(findings: str, impressions: str) -> str:
        return report_text({"F": findings, "I": impressions}, ("F", "I"))

    assert text("A", "B") == "A\nB"
    assert text("A", "nan") == "A"
    assert text("NaN", "B") == "B"
    for nothing in ("", "  ", "nan", "Not given.", "not given", "Not Given. "):
        assert text(nothing, nothing) == ""
    assert report_text({}, ("F",)) == ""
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
    assert tables.row("v").carried == {}


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
    assert tables.row("v").text == "na\ufffdve \ufffd\nb\ufffd"
    assert [r.getMessage() for r in caplog.records] == [
        "dataset/radiology_text_reports/validation_reports.csv is not UTF-8; "
        "bytes that cannot be read are replaced by U+FFFD"
    ]


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"valid_predicted_labels\.csv lacks the columns Cardiomegaly, Emphysema;"
    ):
        load(tmp_path, labels=LABELS.replace(",Cardiomegaly", "").replace(",Emphysema", ""))
    with pytest.raises(UsageError, match=r"lacks the columns VolumeName.*it has a, b"):
        load(tmp_path, labels="a,b\n")
    with pytest.raises(UsageError, match=r"valid_predicted_labels\.csv is empty"):
        load(tmp_path, labels="")


def test_a_quote_that_is_not_closed_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"validation_reports\.csv is no CSV from line"):
        load(tmp_path, reports=REPORTS + 'v.npz,"' + "x\n" * 200_000)


def test_fifty_thousand_rows_are_all_there(tmp_path: Path) -> None:
    rows = "".join(f'train_{n}_a_1.nii.gz,A,F,1,1,0,"[1, 1]",{n},1,1,1\n' for n in range(50_000))
    tables = load(tmp_path, metadata=METADATA + rows)
    assert tables.metadata is not None
    assert len(tables.metadata.table) == 50_000
    assert tables.row("train_49999_a_1").spacing_mm == (1.0, 1.0, 49999.0)


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


ROW = 'valid_1_a_1.nii.gz,Zürich,F,054Y,1,-1024,"[0.34, 0.35]",1.5,512,512,300'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
def test_tables_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    tables = load(
        tmp_path,
        metadata=(mark + metadata(ROW)).encode(encoding),
        no_chest=f"{mark}valid_9_a_1.nii.gz\r\n".encode(encoding),
        carry=("Manufacturer",),
    )
    assert tables.row("valid_1_a_1").carried == {"Manufacturer": "Zürich"}
    assert tables.row("valid_1_a_1").spacing_mm == (0.34, 0.35, 1.5)
    assert tables.left_out.keys() == {"valid_9_a_1"}


def test_a_cut_utf_16_table_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = load(tmp_path, reports=f"{REPORTS}v.npz,,,a,b\nw.npz,,,c,d".encode("utf-16")[:-1])
    assert tables.row("v").report["Findings_EN"] == "a"
    assert "is not UTF-16; bytes" in caplog.text


NO_TABLES = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "HTML page": (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "is an HTML page"),
    "Excel file": (b"PK\x03\x04\x14\0\6\0\x08\0\0\0!\0" * 99, "binary data"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0" + bytes(range(256)) * 9, "binary data"),
    "UTF-16 without a mark": (METADATA.encode("utf-16-le"), "binary data"),
    "Parquet": (b"PAR1\x15\x04\x15" + bytes(range(255, 0, -1)) * 99, "binary data"),
}


@pytest.mark.parametrize("table", ["metadata", "labels", "reports", "no_chest"])
@pytest.mark.parametrize("case", NO_TABLES)
def test_what_is_no_table_is_called_what_it_is(
    tmp_path: Path, case: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, message = NO_TABLES[case]
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, **{table: content})
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("dataset/")
    assert not caplog.text


def test_a_long_header_is_not_all_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks the columns") as caught:
        load(tmp_path, labels=",".join(f"c{k}" for k in range(9999)) + "\n")
    assert len(str(caught.value)) < 999


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


def labels_of(*cells: str) -> str:
    """A CSV of labels in which each row has one of `cells` for the second class, and else zeros."""
    rest = ",0" * (len(LABEL_NAMES) - 2)
    return LABELS + "".join(f"v{n}.nii.gz,0,{cell}{rest}\n" for n, cell in enumerate(cells))


@pytest.mark.parametrize(
    "cell",
    [
        *("inf", "-inf", "Infinity", "7e30", "1e999", "2", "-1", "1.0001", "1_0", "0_1", "0x1"),
        *("１", '"1,0"', "true", "yes", "1 0", "--1", "nano", "½", "1e"),
    ],
)
def test_a_label_that_is_not_from_0_to_1_fails_its_sample_by_file_and_line(
    tmp_path: Path, cell: str
) -> None:
    tables = load(tmp_path, labels=labels_of("1", cell, "0"))
    found = re.escape(repr(cell.strip('"')))
    with pytest.raises(
        TableError,
        match=rf"valid_predicted_labels\.csv has Arterial wall calcification {found} in line 3 "
        r"for v1; wanted a number from 0 to 1, or nothing",
    ):
        tables.row("v1")
    assert tables.row("v0").labels[1] == 1
    assert tables.row("v2").labels[1] == 0


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("0", 0), ("1", 1), ("1.0", 1), ("0.25", 0.25), (" 1 ", 1), ("\u00a01", 1), ("1.", 1)),
        *((".5", 0.5), ("1e-1", 0.1), ("1E0", 1), ("+1", 1), ("-0", 0), ("01", 1)),
    ],
)
def test_labels_are_decimal_numbers(tmp_path: Path, cell: str, value: float) -> None:
    assert load(tmp_path, labels=labels_of(cell)).row("v0").labels[1] == np.float32(value)


@pytest.mark.parametrize(
    "cell", ["", " ", "nan", "NaN", "NAN", "-nan", "+NaN", "nan.", "Not given."]
)
def test_an_empty_label_is_nan(tmp_path: Path, cell: str) -> None:
    row = load(tmp_path, labels=labels_of(cell)).row("v0")
    assert math.isnan(row.labels[1])
    assert row.labels[0] == 0


def test_a_column_without_a_label_in_it_refuses_the_table(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"valid_predicted_labels\.csv has no usable value in the column Arterial wall "
        r"calcification, only such as 'yes'; wanted numbers from 0 to 1",
    ):
        load(tmp_path, labels=labels_of(*["yes", "no"] * 20))
    # One that is right shows that it is the column of labels, and empty ones are right.
    for others in (["yes"] * 40 + ["1"], [""] * 40, ["yes"] * 3):
        assert load(tmp_path, labels=labels_of(*others)).labels is not None


@pytest.mark.parametrize("number", ["1_0", "１", "inf", "-inf", "0x1", "1e999", "1 0"])
@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("XYSpacing", '1,0,"[{}, 1]",1'),
        ("XYSpacing", '1,0,"[1, {}]",1'),
        ("ZSpacing", '1,0,"[1, 1]",{}'),
        ("RescaleSlope", '{},0,"[1, 1]",1'),
        ("RescaleIntercept", '1,{},"[1, 1]",1'),
    ],
)
def test_what_only_python_takes_for_a_number_fails_the_sample(
    tmp_path: Path, column: str, row: str, number: str
) -> None:
    other = 'u.npz,A,F,1,1,0,"[1, 1]",1,1,1,1'
    tables = load(tmp_path, metadata=metadata(f"{other}\nv.npz,A,F,1,{row.format(number)},1,1,1"))
    with pytest.raises(TableError, match=rf"metadata\.csv has {column} .* in line 3 for v; wanted"):
        tables.row("v", spacing_from_header=True)
    assert tables.row("u").spacing_mm == (1.0, 1.0, 1.0)


def test_the_line_is_that_in_which_the_row_begins(tmp_path: Path) -> None:
    rows = (
        'a.npz,,,"two\nlines",\n\n,,,,\na.npz,,,"two\nlines",\nb.npz,1\nc.npz,,,x,y\nc.npz,,,x,z\n'
    )
    tables = load(tmp_path, reports=REPORTS + rows)
    assert tables.row("a").report["Findings_EN"] == "two\nlines"
    with pytest.raises(TableError, match="a row of 2 values for 5 columns for b in line 8;"):
        tables.row("b")
    with pytest.raises(TableError, match="rows that contradict each other for c in line 9;"):
        tables.row("c")
