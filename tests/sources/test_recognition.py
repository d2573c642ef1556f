"""What is recognised in a table that nobody has described, and what is left open."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

import openpyxl
import pytest

from ctgpu.data_sets import Description, built_in
from ctgpu.errors import UsageError
from ctgpu.sources.recognition import SeenTable, describe_tables, look_at_table
from ctgpu.sources.table import Table

PLAIN = built_in("plain")
IDS = {"s0", "s1", "s2", "s3"}
LONG = "No nodule and no effusion is seen, and the heart is of its usual size in every view."


def looked_at(*lines: str, key: str | None = None, path: str = "t.csv") -> SeenTable:
    return look_at_table(path, "\n".join(lines).encode(), IDS, key)


def of_column(name: str, *cells: str) -> SeenTable:
    """What is seen in a table of a key and one other column."""
    assert len(cells) <= len(IDS)
    return looked_at(f"scan,{name}", *(f's{k},"{cell}"' for k, cell in enumerate(cells)))


def role_of(name: str, *cells: str) -> str:
    seen = of_column(name, *cells)
    assert seen.key == "scan"
    roles: dict[str, Any] = {
        "labels": seen.labels,
        "text": seen.text,
        "open": seen.open,
        "patient": (seen.patient,) if seen.patient else (),
        "split": (seen.split,) if seen.split else (),
    }
    (role,) = (role for role, names in roles.items() if names == (name,))
    assert [role for role, names in roles.items() if names] == [role]
    return role


# Columns.


@pytest.mark.parametrize(
    ("name", "cells", "role"),
    [
        ("mass", ["0", "1", "0"], "labels"),
        ("mass", ["0.25", "1.0", ""], "labels"),
        ("mass", ["1e-3", ".5", "nan", "Not given."], "labels"),
        ("mass", [" 1 ", "0"], "labels"),
        ("mass", ["True", "False"], "labels"),
        ("mass", ["yes", "NO", ""], "labels"),
        ("mass", ["Positive", "negative", "1", "0.5"], "labels"),
        ("finding_mass", ["yes", "no"], "labels"),
        ("report_ok", ["0", "1"], "labels"),
        ("mass", ["0", "-1"], "open"),
        ("mass", ["0", "2"], "open"),
        ("mass", ["0", "1.01"], "open"),
        ("mass", ["yes", "maybe"], "open"),
        ("mass", ["1_0", "1"], "open"),
        ("mass", ["inf", "1"], "open"),
        ("age", ["61", "0"], "open"),
        ("sex", ["M", "F"], "open"),
        ("grade", ["low", "high"], "open"),
        ("mass", ["", "nan", "Not given."], "open"),
        ("report", ["", " "], "open"),
        ("patient_id", ["", ""], "open"),
        # Sizes are often below 1, and the slope is 1.
        ("SliceThickness", ["0.8", "1.0"], "open"),
        ("XYSpacing", ["0.75", "0.7"], "open"),
        ("RescaleSlope", ["1", "1"], "open"),
        ("Unnamed: 0", ["0", "1"], "open"),
        ("Report", ["Clear.", "A mass."], "text"),
        ("Findings_EN", ["Clear."], "text"),
        ("impression", ["Clear.", ""], "text"),
        ("CONCLUSION", ["Clear."], "text"),
        ("narrative", ["Clear."], "text"),
        ("diagnosis text", ["Clear."], "text"),
        ("notes", [LONG, ""], "text"),
        ("notes", ["x" * 80, "y"], "text"),
        ("notes", ["x" * 79, "y"], "open"),
        # Named after reports, and none.
        ("finding_count", ["3", "12"], "open"),
        ("report_id", ["R1", "R2"], "open"),
        ("ReportID", ["R1", "R2"], "open"),
        ("report_date", ["2024-01-02"], "open"),
        ("reportFile", ["a.txt"], "open"),
        # Long, and no sentence.
        ("path", [f"/data/{'x' * 80}/a.dcm"], "open"),
        ("path", [rf"D:\data\{'x' * 80}\a.dcm"], "open"),
        ("path", [f"https://example.org/{'x' * 80}"], "open"),
        ("notes", [f"{LONG} See https://example.org/x"], "text"),
        ("patient", ["a", "b"], "patient"),
        ("Patient ID", ["1", "0"], "patient"),
        ("PatientID", ["7", "8"], "patient"),
        ("subject-name", ["7", "8"], "patient"),
        ("participant_key", ["7", "8"], "patient"),
        ("person_id", ["7", "8"], "patient"),
        ("PatientAge", ["61", "58"], "open"),
        ("patients", ["61", "58"], "open"),
        ("inpatient", ["1", "0"], "labels"),
        ("split", ["train", "val"], "split"),
        ("Split", ["1", "0"], "split"),
        ("data_subset", ["a", "b"], "split"),
        ("dataSplit", ["a", "b"], "split"),
        ("fold", ["0", "1", "2", "3"], "split"),
        ("fold2", ["0", "1"], "split"),
        ("Partitions", ["a"], "split"),
        ("folder", ["0", "1"], "labels"),
        ("manifold", ["a", "b"], "open"),
        ("splitting", ["0", "1"], "labels"),
    ],
)
def test_a_column_is_what_its_cells_and_its_name_say(
    name: str, cells: list[str], role: str
) -> None:
    assert role_of(name, *cells) == role


@pytest.mark.parametrize(("number", "split"), [(8, "split"), (9, None)])
def test_a_split_has_few_values(number: int, split: str | None) -> None:
    rows = [f"s{k},v{k}" for k in range(number)]
    ids = {f"s{k}" for k in range(number)}
    seen = look_at_table("t.csv", "\n".join(["scan,split", *rows]).encode(), ids)
    assert seen.split == split


def test_words_stand_for_numbers_as_they_are_spelt() -> None:
    seen = looked_at("scan,a,b,c", "s0,True,yes,1", "s1,FALSE,No,0", "s2,true,,positive")
    assert seen.labels == ("a", "b", "c")
    assert seen.words == {
        **{"True": 1, "FALSE": 0, "true": 1, "yes": 1, "No": 0, "positive": 1},
    }
    assert list(seen.words) == sorted(seen.words)


def test_of_two_patients_or_splits_the_first_is_one() -> None:
    seen = looked_at("scan,patient,subject,split,fold", "s0,a,b,x,1", "s1,c,d,y,0")
    assert (seen.patient, seen.split) == ("patient", "split")
    assert (seen.labels, seen.open) == (("fold",), ("subject",))


def test_columns_stay_in_the_order_of_the_header() -> None:
    seen = looked_at("b,age,scan,a,impression,findings", "1,50,s0,0,x y,z w", "0,60,s1,1,x,z")
    assert (seen.labels, seen.text, seen.open) == (("b", "a"), ("impression", "findings"), ("age",))
    assert (seen.key, seen.rows, seen.volumes, seen.fault) == ("scan", 2, 2, None)


def test_columns_of_one_name_or_of_none_say_nothing() -> None:
    seen = looked_at("scan,a,a,,b,", "s0,1,0,1,1,", "s1,0,1,0,0,")
    assert (seen.labels, seen.open) == (("b",), ("a",))
    (rule,) = describe_tables(PLAIN, [seen]).tables
    content = b"scan,a,a,,b,\ns0,1,0,1,1,\n"
    assert Table.read("t.csv", content, rule.keys, ["b"]).find("s0") == {"b": "1"}
    assert looked_at("scan,scan", "s0,s1").key is None


# The key.


def test_the_column_that_names_most_volumes_is_the_key() -> None:
    seen = looked_at("before,scan,a", "s0,s1,1", "s0,s2,0", "s0,a/s3.nii.gz,1", "x,y,0")
    assert (seen.key, seen.rows, seen.volumes) == ("scan", 4, 3)
    # What else names volumes is a column like any other.
    assert seen.open == ("before",)


def test_of_several_keys_the_first_is_one() -> None:
    seen = looked_at("file,scan,a", "s0.nii,s0,1", "s1.nii,s1,0")
    assert (seen.key, seen.open) == ("file", ("scan",))


def test_the_same_volume_counts_once() -> None:
    seen = looked_at("scan,other", "s0,s1", "s0,s2", "s0.nii.gz,x")
    assert (seen.key, seen.volumes) == ("other", 2)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_normal_form(form: Any) -> None:
    content = unicodedata.normalize(form, "scan,a\né1.npz,1\n").encode()
    assert look_at_table("t.csv", content, {unicodedata.normalize("NFC", "é1")}).volumes == 1


def test_a_table_that_names_no_volume_has_no_key() -> None:
    seen = looked_at("scan,mass,report", "x,1,Clear.")
    assert (seen.key, seen.rows, seen.volumes) == (None, 1, 0)
    assert (seen.labels, seen.text, seen.open) == ((), (), ("scan", "mass", "report"))
    assert describe_tables(PLAIN, [seen]) == PLAIN


@pytest.mark.parametrize("lines", [["scan,a"], ["scan"], ["\n"]])
def test_a_header_alone_says_nothing(lines: list[str]) -> None:
    seen = looked_at(*lines)
    assert (seen.key, seen.rows, seen.volumes, seen.labels) == (None, 0, 0, ())
    assert describe_tables(PLAIN, [seen]) == PLAIN


def test_a_key_that_was_named_is_the_key() -> None:
    seen = looked_at("file,scan,a", "s0,s1,1", "s2,s1,1", key="scan")
    assert (seen.key, seen.volumes, seen.labels, seen.open) == ("scan", 1, ("a",), ("file",))
    none = looked_at("file,scan,a", "s0,x,1", "s2,y,0", key="scan")
    assert (none.key, none.volumes, none.labels) == ("scan", 0, ("a",))
    assert describe_tables(PLAIN, [none]) == PLAIN


@pytest.mark.parametrize(
    ("lines", "has"), [(["file,a", "s0,1"], "file, a"), (["\n"], "none"), (["a,key,key"], "a")]
)
def test_a_key_that_is_not_there_is_refused_with_those_that_are(lines: list[str], has: str) -> None:
    with pytest.raises(UsageError) as caught:
        looked_at(*lines, key="key")
    assert str(caught.value) == (
        f"key_column is 'key', and t.csv has no such column, only {has}; "
        "pass --key-column with one of these"
    )


# Tables that cannot be read, or contradict themselves.


@pytest.mark.parametrize(
    ("path", "content", "fault"),
    [
        ("t.csv", b"", "t.csv is empty: fetch it again"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\n", "t.csv is a Git LFS pointer"),
        ("t.tsv", b"\x1f\x8b\x08\0\0" * 99, "t.tsv is no text but binary data"),
        ("t.csv", b'scan,a\ns0,"' + b"x" * 200_000, "t.csv is no CSV from line 2"),
        ("t.xlsx", b"PK\3\4", "t.xlsx is not a workbook that can be read"),
        ("t.parquet", b"PAR1", "t.parquet is not a Parquet file that can be read"),
        ("t.xls", b"\xd0\xcf", "t.xls is"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(path: str, content: bytes, fault: str) -> None:
    seen = look_at_table(path, content, IDS)
    assert seen.fault is not None
    assert seen.fault.startswith(fault)
    assert (seen.key, seen.rows) == (None, 0)
    assert describe_tables(PLAIN, [seen]) == PLAIN


def test_bytes_that_are_no_text_spoil_no_table() -> None:
    seen = look_at_table("t.csv", b"scan,report\ns0,na\xefve text\n", IDS)
    assert (seen.fault, seen.text) == (None, ("report",))


def test_a_workbook_is_looked_at_as_a_csv_is() -> None:
    book = openpyxl.Workbook()
    for row in (["scan", "mass", "patient", "age"], ["s0", 1, 12, 50], ["s1", True, 12.0, None]):
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    seen = look_at_table("T.XLSX", file.getvalue(), IDS)
    assert (seen.labels, seen.words) == (("mass",), {"True": 1})
    assert (seen.patient, seen.open) == ("patient", ("age",))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["s0,1,x", "s1,0,y", "s0,0,x"], "rows that contradict each other for s0"),
        (["s0,1,x", "s1,0"], "a row of 2 values for 3 columns for s1"),
        (["s0,1,x", "s1,0,y,z"], "a row of 4 values for 3 columns for s1"),
        (["s0,1,x", "s0.nii.gz,1,x"], None),
        # Only what would be read has to agree, and only of volumes that are there.
        (["s0,1,x", "s0,1,y"], None),
        (["s0,1,x", "other,1", "other,1,x", "other,0,x"], None),
    ],
)
def test_a_table_of_several_rows_a_volume_is_not_joined(rows: list[str], fault: str | None) -> None:
    """Such as one of lesions: nobody asked for it, and each of its volumes would fail."""
    seen = looked_at("scan,mass,lesion", *rows)
    assert (seen.key, seen.labels, seen.contradicts) == ("scan", ("mass",), fault)
    assert (describe_tables(PLAIN, [seen]) == PLAIN) is (fault is not None)


# The description.


def table(path: str, volumes: int = 1, **says: Any) -> SeenTable:
    return SeenTable(path, "scan", volumes, volumes, **says)


def said_by(description: Description) -> dict[str, tuple[str, ...]]:
    return {str(*rule.files): rule.roles for rule in description.tables}


def test_what_was_recognised_becomes_a_description() -> None:
    seen = looked_at(
        "scan,mass,ok,report,patient,split,age", "s0,1,yes,A B.,p,train,3", "s1,0,no,C D.,q,val,4"
    )
    (rule,) = describe_tables(PLAIN, [seen]).tables
    assert (rule.files, rule.key) == (("t.csv",), "scan")
    assert (rule.labels, rule.label_words) == (("mass", "ok"), {"yes": 1, "no": 0})
    assert (rule.text, rule.patient, rule.split, rule.carry) == (("report",), "patient", None, ())
    described = describe_tables(PLAIN, [seen])
    assert Description.of(described.content) == described


def test_of_two_tables_that_say_the_same_the_one_that_knows_more_counts() -> None:
    few, many = table("a.csv", 2, labels=("a",)), table("b.csv", 3, labels=("b",))
    assert said_by(describe_tables(PLAIN, [few, many])) == {"b.csv": ("labels",)}
    assert said_by(describe_tables(PLAIN, [many, few])) == {"b.csv": ("labels",)}
    same = table("c.csv", 3, labels=("c",))
    assert said_by(describe_tables(PLAIN, [many, same])) == {"b.csv": ("labels",)}
    assert said_by(describe_tables(PLAIN, [same, many])) == {"c.csv": ("labels",)}


def test_each_role_is_taken_from_the_table_that_knows_most() -> None:
    first = table("a.csv", 3, labels=("a",), words={"yes": 1.0})
    second = table("b.csv", 2, labels=("b",), text=("t",), words={"no": 0.0})
    third = table("c.csv", 1, text=("u",), patient="p")
    described = describe_tables(PLAIN, [third, second, first])
    assert said_by(described) == {
        "a.csv": ("labels",),
        "b.csv": ("text",),
        "c.csv": ("patients",),
    }
    assert [rule.label_words for rule in described.tables] == [{"yes": 1.0}, {}, {}]
    assert Description.of(described.content) == described


def test_tables_without_a_key_a_volume_or_a_role_are_no_part_of_it() -> None:
    seen = [
        SeenTable("a.csv", labels=("a",)),
        table("b.csv", 0, labels=("a",)),
        table("c.csv", open=("a",), split="s"),
    ]
    assert describe_tables(PLAIN, seen) == PLAIN
    assert describe_tables(PLAIN, []) == PLAIN


def test_a_volume_may_have_other_names_which_no_sentence_tells() -> None:
    aliases = {"1.2.1": "s1", "1.2.2": "s2", "9.9.2": "s2"}
    content = b"uid,mass\n1.2.1,0\n9.9.2,1\n1.2.7,1\n"
    seen = look_at_table("t.csv", content, {"s1", "s2"}, aliases=aliases)
    assert (seen.key, seen.volumes, seen.labels, seen.contradicts) == ("uid", 2, ("mass",), None)
    twice = look_at_table("t.csv", content + b"1.2.2,0\n", {"s1", "s2"}, aliases=aliases)
    assert (twice.volumes, twice.contradicts) == (2, "rows that contradict each other for s2")
    assert look_at_table("t.csv", content, {"s1", "s2"}).key is None
