"""The rows of tables of every format, as text."""

from __future__ import annotations

import datetime
import decimal
import io
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from ctgpu.errors import UsageError
from ctgpu.installation import install_command
from ctgpu.sources.table import Table
from ctgpu.sources.table_files import TABLE_SUFFIXES, rows_of

ROWS = [["id", "a", "b"], ["x", "1", ""], ["y", "", 'ü, "z"\nw']]


def cells_of(path: str, content: bytes) -> list[list[str]]:
    return [cells for _, cells in rows_of(path, content)]


def text_of_rows(mark: str) -> str:
    return f'id{mark}a{mark}b\nx{mark}1{mark}\ny{mark}{mark}"ü, ""z""\nw"\n'


def workbook(*sheets: Sequence[Sequence[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for place, rows in enumerate(sheets):
        sheet = book.active if place == 0 else book.create_sheet()
        for row in rows:
            sheet.append(list(row))
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file, **options)
    return file.getvalue()


def refused(path: str, content: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        list(rows_of(path, content))
    return str(caught.value)


# Text.


@pytest.mark.parametrize("suffix", ["csv", "CSV", "txt", "unknown"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_header_tells_what_is_between_cells(suffix: str, mark: str) -> None:
    assert cells_of(f"t/a.b.{suffix}", text_of_rows(mark).encode()) == ROWS


@pytest.mark.parametrize("suffix", ["tsv", "tab", "TSV"])
def test_a_suffix_may_tell_that_too(suffix: str) -> None:
    assert cells_of(f"a.{suffix}", text_of_rows("\t").encode()) == ROWS
    # Commas and semicolons are part of the text there.
    assert cells_of(f"a.{suffix}", b"a;b,c;d\te\n") == [["a;b,c;d", "e"]]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("id;Findings, short;Label", ["id", "Findings, short", "Label"]),
        ('"a;b;c",d', ["a;b;c", "d"]),
        ('"a,b,c";d', ["a,b,c", "d"]),
        ('"a;"";b",c', ['a;";b', "c"]),
        ("a\tb, c\td", ["a", "b, c", "d"]),
        ("a,b;c", ["a", "b;c"]),
        ("only", ["only"]),
    ],
)
def test_the_most_frequent_mark_outside_of_quotes_is_the_separator(
    header: str, cells: list[str]
) -> None:
    assert cells_of("a.csv", f"{header}\n".encode()) == [cells]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-le"]
)
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str, mark: str) -> None:
    begin = "\ufeff" if encoding.endswith(("be", "le")) else ""
    content = (begin + text_of_rows(mark)).encode(encoding)
    assert cells_of("a.csv", content) == ROWS
    if mark == "\t":
        assert cells_of("a.tsv", content) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_know_the_lines_that_they_begin_in(end: str) -> None:
    text = end.join(("a,b", '1,"x', 'y"', "", "2,z", ""))
    found = list(rows_of("a.csv", text.encode()))
    assert found == [(1, ["a", "b"]), (2, ["1", f"x{end}y"]), (5, ["2", "z"])]


def test_lines_without_anything_are_no_rows_not_even_above_the_header() -> None:
    assert list(rows_of("a.csv", b"\n\r\na,b\n\n1,2\n")) == [(3, ["a", "b"]), (5, ["1", "2"])]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_text_has_no_rows(content: bytes) -> None:
    assert cells_of("a.csv", content) == []


def test_bytes_that_are_no_text_are_said_or_replaced() -> None:
    with pytest.raises(UnicodeDecodeError):
        list(rows_of("a.csv", b"a,b\n\xff,1\n"))
    assert list(rows_of("a.csv", b"a,b\n\xff,1\n", "replace"))[1] == (2, ["\ufffd", "1"])


def test_a_quote_that_is_not_closed_is_named_with_its_line() -> None:
    said = refused("t/a.csv", b'a,b\n1,"' + b"x" * 200_000)
    assert said.startswith("t/a.csv is no CSV from line 2: field larger than field limit")


# Workbooks.


@pytest.mark.parametrize("suffix", ["xlsx", "xlsm", "XLSX"])
def test_cells_of_a_workbook_are_as_a_csv_would_have_them(suffix: str) -> None:
    now = datetime.datetime(2024, 1, 2, 3, 4, 5)
    content = workbook(
        [
            ["id", "number", "flag", "day", "moment", "text"],
            [12, 0.5, True, datetime.date(2024, 1, 2), now, "a\nb"],
            [12.0, 1e20, False, datetime.datetime(2024, 1, 2), datetime.time(3, 4), " é "],
            ["", None, None, None, None, "nan"],
            ["007", -1, "True", -0.0, 1e-7, "=1+"],
        ]
    )
    rows = cells_of(f"a.{suffix}", content)
    assert rows[1:] == [
        ["12", "0.5", "True", "2024-01-02", "2024-01-02T03:04:05", "a\nb"],
        ["12", "100000000000000000000", "False", "2024-01-02", "03:04:00", " é "],
        ["", "", "", "", "", "nan"],
        ["007", "-1", "True", "0", "1e-07", ""],
    ]


def test_rows_of_a_workbook_know_their_lines_and_blank_ones_are_none() -> None:
    content = workbook([[], ["id", "a", "b"], ["x", 1], [], [None, ""], ["y", None, 2]])
    assert list(rows_of("a.xlsx", content)) == [
        (2, ["id", "a", "b"]),
        (3, ["x", "1", ""]),
        (6, ["y", "", "2"]),
    ]


def test_columns_that_are_only_formatted_are_none() -> None:
    content = workbook([["id", "a", None, ""], ["x", 1, None, "", None], ["y", 1, None, "extra"]])
    assert cells_of("a.xlsx", content) == [["id", "a"], ["x", "1"], ["y", "1", "", "extra"]]


@pytest.mark.parametrize("stated", [b"A1", b"A1:B2", b"A1:XFD1048576"])
def test_a_workbook_that_states_another_size_is_read_as_it_is(stated: bytes) -> None:
    """Some exporters write a size before they know it."""
    content, changed = io.BytesIO(workbook(ROWS)), io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("sheet1.xml"):
                size = b'<dimension ref="' + stated + b'"'
                data, number = re.subn(rb'<dimension ref="[^"]*"', size, data)
                assert number == 1
            new.writestr(name, data)
    assert cells_of("a.xlsx", changed.getvalue()) == ROWS


def test_the_first_sheet_counts_and_is_named_where_it_is_empty() -> None:
    assert cells_of("a.xlsx", workbook([["a"], [1]], [["b"], [2]])) == [["a"], ["1"]]
    for content in (workbook([], [["b"], [2]]), workbook([[None], [""]])):
        said = refused("t/a.xlsx", content)
        assert said.startswith("t/a.xlsx has nothing in its first sheet, 'Sheet', and no other")


def test_a_damaged_workbook_is_named() -> None:
    content = workbook(ROWS)
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        names = book.namelist()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as book:
        book.writestr("hello", "")
    broken = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(broken, "w") as new:
        for name in names:
            new.writestr(name, old.read(name)[:200])
    cases = (content[:300], content[:-30], b"PK\3\4", b"text", other.getvalue(), broken.getvalue())
    for damaged in cases:
        said = refused("t/a.xlsx", damaged)
        assert said.startswith("t/a.xlsx is not a workbook that can be read (")
        assert said.endswith("); save it again")


def test_workbooks_before_2007_are_refused_with_a_way_out() -> None:
    assert refused("t/a.xls", b"\xd0\xcf\x11\xe0") == (
        "t/a.xls is of an Excel before 2007; save it as .xlsx or as CSV"
    )


# Parquet.


def test_cells_of_parquet_are_as_a_csv_would_have_them() -> None:
    ns = [1_704_164_645_000_000_001, None]
    content = parquet(
        {
            "id": ["x", None],
            "whole": pyarrow.array([1, None], pyarrow.int64()),
            "number": [0.5, float("nan")],
            "single": pyarrow.array([1.0, 0.5], pyarrow.float32()),
            "flag": [True, False],
            "day": [datetime.date(2024, 1, 2), None],
            "moment": pyarrow.array([datetime.datetime(2024, 1, 2, 3, 4, 5), None]),
            "finer": pyarrow.array(ns, pyarrow.timestamp("ns")),
            "spacing": [[0.75, 0.75, 1.5], None],
            "bytes": [b"caf\xc3\xa9", b"\xff"],
            "decimal": [decimal.Decimal("1.50"), None],
            "class": pyarrow.array(["a", "b"]).dictionary_encode(),
        }
    )
    assert cells_of("a.parquet", content)[1:] == [
        [
            *("x", "1", "0.5", "1", "True", "2024-01-02", "2024-01-02T03:04:05"),
            *("2024-01-02T03:04:05", "[0.75, 0.75, 1.5]", "café", "1.50", "a"),
        ],
        ["", "", "", "0.5", "False", "", "", "", "", "\ufffd", "", "b"],
    ]


def test_parquet_of_several_groups_is_read_whole() -> None:
    content = parquet({"id": [f"s{n}" for n in range(10_000)]}, row_group_size=999)
    found = list(rows_of("a.PARQUET", content))
    assert found[0] == (1, ["id"])
    assert found[1:] == [(n + 2, [f"s{n}"]) for n in range(10_000)]


def test_parquet_without_rows_or_columns_is_a_table_without_them() -> None:
    assert cells_of("a.parquet", parquet({"id": pyarrow.array([], pyarrow.string())})) == [["id"]]
    assert cells_of("a.parquet", parquet({})) == [[]]


def test_damaged_parquet_is_named() -> None:
    content = parquet({"id": [f"name {n}" for n in range(500)]})
    flipped = content[:40] + bytes(b ^ 0xFF for b in content[40:-300]) + content[-300:]
    for damaged in (content[:-20], content[20:], b"PAR1", b"text", flipped, b"PAR1" * 99):
        said = refused("t/a.parquet", damaged)
        assert said.startswith("t/a.parquet is not a Parquet file that can be read (")


# What stands in for a table.


@pytest.mark.parametrize("suffix", ["xlsx", "xlsm", "parquet"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<title>Sign in</title>", "is an HTML page"),
    ],
)
def test_a_file_that_is_something_else_is_told_what_it_is(
    suffix: str, content: bytes, fault: str
) -> None:
    said = refused(f"t/a.{suffix}", content)
    assert said.startswith(f"t/a.{suffix} is ")
    assert fault in said


@pytest.mark.parametrize(
    ("suffix", "package"), [("xlsx", "openpyxl"), ("xlsm", "openpyxl"), ("parquet", "pyarrow")]
)
def test_a_missing_extra_is_named_with_the_command_that_adds_it(
    monkeypatch: pytest.MonkeyPatch, suffix: str, package: str
) -> None:
    content = workbook(ROWS) if package == "openpyxl" else parquet({"id": ["x"]})
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    # As Python itself marks what cannot be imported.
    monkeypatch.setitem(sys.modules, package, None)
    wanted = (
        f"t/a.{suffix} is read by {package}, which is not installed; run "
        f"`{install_command('tables')}`, or save the table as CSV"
    )
    assert refused(f"t/a.{suffix}", content) == wanted
    with pytest.raises(UsageError, match=re.escape(wanted)):
        Table.read(f"t/a.{suffix}", content, ["id"])
    # The others need nothing.
    assert cells_of("a.csv", text_of_rows(",").encode()) == ROWS


# Tables of their rows.


def written(suffix: str, rows: Sequence[Sequence[str]]) -> bytes:
    """Rows of text as a file of some format."""
    if suffix == ".xlsx" or suffix == ".xlsm":
        return workbook(rows)
    if suffix == ".parquet":
        return parquet({name: [row[k] for row in rows[1:]] for k, name in enumerate(rows[0])})
    mark = "\t" if suffix in (".tsv", ".tab") else ","
    return "\n".join(mark.join(row) for row in rows).encode()


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_a_table_is_the_same_whatever_its_format(suffix: str) -> None:
    rows = [["id", "a", "b"], ["x/s1.nii.gz", "1", "n"], ["s2", "", "m"], ["", "5", "o"]]
    table = Table.read(f"t{suffix}", written(suffix, rows), ["id"], ["b", "a"])
    assert (len(table), table.key, list(table.columns)) == (2, "id", ["a", "b"])
    assert table.find("s1") == {"a": "1", "b": "n"}
    assert table.find("s2") == {"a": "", "b": "m"}
    assert table.find("s3") is None
    assert table.in_line("s2") == " in line 3"


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_a_header_alone_is_a_table_and_a_missing_column_is_named(suffix: str) -> None:
    content = written(suffix, [["id", "a"]])
    assert len(Table.read(f"t{suffix}", content, ["id"], ["a"])) == 0
    with pytest.raises(UsageError, match=rf"^t\{suffix} lacks the columns c, d; it has id, a$"):
        Table.read(f"t{suffix}", content, ["id"], ["c", "a", "d"])
    with pytest.raises(UsageError, match=rf"^t\{suffix} lacks the column key; it has id, a$"):
        Table.read(f"t{suffix}", content, ["key", "name"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx"])
def test_a_column_that_stands_there_twice_is_refused_where_it_is_wanted(suffix: str) -> None:
    content = written(suffix, [["id", "a", "b", " b "], ["x", "1", "2", "3"]])
    assert Table.read(f"t{suffix}", content, ["id"], ["a"]).find("x") == {"a": "1"}
    for columns in ({"required": ["a", "b"]}, {"optional": ["b"]}, {"optional": None}):
        with pytest.raises(UsageError, match="has more than one column of the name b; rename"):
            Table.read(f"t{suffix}", content, ["id"], **columns)
    with pytest.raises(UsageError, match="more than one column of the name b;"):
        Table.read(f"t{suffix}", content, ["b"], ["a"])


def test_columns_without_a_name_may_be_many() -> None:
    """As pandas writes its index, and a spreadsheet what is only formatted."""
    table = Table.read("t.csv", b",id,,a\n0,x,,1\n", ["id"], optional=None)
    assert table.find("x") == {"": "", "a": "1"}
