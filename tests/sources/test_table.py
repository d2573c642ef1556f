"""One table: its header, and its rows by the volumes that they are about."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from ct_rate_tables import LABELS, METADATA, REPORTS, label_rows, load

from ctgpu.errors import TableError, UsageError
from ctgpu.sources.table import Table, read_first, study_id_in


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


@pytest.mark.slow
def test_fifty_thousand_rows_are_all_there(tmp_path: Path) -> None:
    rows = "".join(f'train_{n}_a_1.nii.gz,A,F,1,1,0,"[1, 1]",{n},1,1,1\n' for n in range(50_000))
    tables = load(tmp_path, metadata=METADATA + rows)
    assert tables.metadata is not None
    assert len(tables.metadata.table) == 50_000
    assert tables.row("train_49999_a_1").spacing_mm == (1.0, 1.0, 49999.0)


def test_a_long_header_is_not_all_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks the columns") as caught:
        load(tmp_path, labels=",".join(f"c{k}" for k in range(9999)) + "\n")
    assert len(str(caught.value)) < 999


def test_a_column_without_a_label_in_it_refuses_the_table(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"valid_predicted_labels\.csv has no usable value in the column Arterial wall "
        r"calcification, only such as 'yes'; wanted numbers from 0 to 1",
    ):
        load(tmp_path, labels=label_rows(*["yes", "no"] * 20))
    # One that is right shows that it is the column of labels, and empty ones are right.
    for others in (["yes"] * 40 + ["1"], [""] * 40, ["yes"] * 3):
        assert load(tmp_path, labels=label_rows(*others)).labels is not None


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


def test_a_table_keeps_the_columns_that_are_asked_for_in_the_order_of_its_header() -> None:
    content = b"n,scan,m,k\n1,a.nii.gz,2,3\n"
    assert Table.read("t.csv", content, ("scan",), ("k", "n")).find("a") == {"n": "1", "k": "3"}
    everything = Table.read("t.csv", content, ("id", "scan"), optional=None)
    assert (everything.key, list(everything.columns)) == ("scan", ["n", "m", "k"])
    assert Table.read("t.csv", content, ("scan",), optional=("m", "z")).find("a") == {"m": "2"}
    assert (everything.find("b"), "b" in everything, len(everything)) == (None, False, 1)


@pytest.mark.parametrize("cell", ["a", " a.npz ", "x/y/a.nii.gz", "/a.NII"])
def test_a_cell_names_a_study_with_or_without_folders_and_suffix(cell: str) -> None:
    assert study_id_in(cell) == "a"


def test_words_stand_for_numbers_before_numbers_are_looked_for() -> None:
    table = Table("t.csv", ["n"], {"a": ["Yes"], "b": ["-1"], "c": ["maybe"]}, (2, 3, 4))
    words = {"yes": 1.0, "-1": math.nan}

    def number(study_id: str) -> float:
        return table.number(table.find(study_id) or {}, study_id, "n", (0, 1), words)

    assert number("a") == 1
    assert math.isnan(number("b"))
    with pytest.raises(
        TableError,
        match=r"^t\.csv has n 'maybe' in line 4 for c; wanted .* or nothing, or yes, -1$",
    ):
        number("c")
    assert table.in_line("d") == ""


def test_the_first_table_that_exists_is_read_and_a_whole_path_lies_on_this_machine(
    tmp_path: Path,
) -> None:
    asked: list[tuple[str, ...]] = []

    def read(*names: str) -> tuple[str, bytes] | None:
        asked.append(names)
        return None

    path = tmp_path / "t.csv"
    assert read_first(read, ()) is None
    assert read_first(read, ("a.csv", "b.csv")) is None
    assert asked == [("a.csv", "b.csv")]
    with pytest.raises(UsageError, match=r"t\.csv cannot be read: No such file.*bring the table"):
        read_first(read, (str(path),))
    path.write_bytes(b"x")
    assert read_first(read, ("a.csv", str(path))) == (str(path), b"x")
    assert len(asked) == 1


def test_a_table_is_renamed_row_by_row_and_keeps_its_lines() -> None:
    content = b"uid,x\n1.2,1\n1.3,2\n1.4,3\n9.2,1\n9.3,5\nkey-6,6\n"
    aliases = {"1.2": "key-2", "9.2": "key-2", "1.3": "key-3", "9.3": "key-3", "7.7": "key-7"}
    table = Table.read("t.csv", content, ["uid"], ["x"]).renamed(aliases)
    assert (table.path, table.key, table.columns, len(table)) == ("t.csv", "uid", ["x"], 4)
    assert table.find("key-2") == {"x": "1"}  # two rows that say the same
    assert (table.find("1.4"), table.find("key-6")) == ({"x": "3"}, {"x": "6"})
    assert (table.find("1.2"), table.find("key-7")) == (None, None)
    assert [table.in_line(name) for name in ("key-2", "1.4", "key-6")] == [
        *(" in line 2", " in line 4", " in line 7"),
    ]
    with pytest.raises(TableError, match="rows that contradict each other for key-3 in line 3;"):
        table.find("key-3")
