"""Tables as text: encodings, and files that are no text."""

from __future__ import annotations

import codecs
import logging
from pathlib import Path

import pytest
from ct_rate_tables import LABELS, METADATA, REPORTS, ROW, load, metadata

from ctgpu.errors import UsageError
from ctgpu.sources.text import encoding_of, no_text, text_of


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


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        (b"", "UTF-8"),
        (codecs.BOM_UTF8, "UTF-8"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
    ],
)
def test_a_byte_order_mark_names_the_encoding(mark: bytes, name: str) -> None:
    assert encoding_of(mark + b"a\0\0\0") == name


def test_lines_end_as_they_are_written() -> None:
    assert text_of(b"a\r\nb\nc\r", "strict").read() == "a\r\nb\nc\r"


def test_bytes_that_are_none_are_an_error_or_replaced_as_asked() -> None:
    with pytest.raises(UnicodeDecodeError):
        text_of(b"a\xff", "strict").read()
    assert text_of(b"a\xff", "replace").read() == "a\ufffd"


def test_text_is_text_with_any_of_its_white_space() -> None:
    for content in (b"a\tb\v\f\r\n", "Zürich".encode(), "é".encode("latin-1")):
        assert no_text(content) is None
    # A mark says that zeros are part of letters.
    assert no_text("a,b".encode("utf-16")) is None
    assert "binary data" in str(no_text(b"a\0b"))
    assert "is empty" in str(no_text(b""))
