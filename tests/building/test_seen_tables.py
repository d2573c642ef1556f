"""What a first description makes of tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from first_descriptions import found, named_scans, remarks, with_all_offered
from hypothesis import given, settings
from hypothesis import strategies as st

from built import read_samples
from ctgpu.building import describing, seen_tables
from ctgpu.building.describing import describe
from ctgpu.building.seen_tables import add_tables
from ctgpu.data_sets import Description
from ctgpu.data_sets.writing import Draft
from ctgpu.errors import SourceError
from ctgpu.sources.folder import FolderSource
from support.data_set_copies import build, marked, write_nifti, write_table

# Tables that are joined.


def test_it_says_how_many_volumes_a_table_knows_and_what_is_open(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a", "b", "c")
    write_table(source / "t.csv", ("id", "cyst", "age"), [("a", 1, 40), ("b", 0, 50), ("z", 1, 3)])
    said = remarks(describe(source))
    assert "2 of 3 volumes have a row, and the table has 3." in said
    assert "hold the column id against names such as 'a', 'b', 'c'" in said
    assert "Nothing is known of: age." in said
    write_table(source / "t.csv", ("id", "cyst"), [("a", 1), ("b", 0), ("c", 1)])
    said = remarks(describe(source))
    assert "3 of 3 volumes have a row" in said
    assert "hold the column" not in said
    assert "Nothing is known" not in said


def test_tables_in_other_folders_are_found(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "scans/a", "scans/b")
    write_table(source / "about/more/t.csv", ("id", "cyst"), [("a", 1), ("b", 0)])
    write_table(source / ".about/t.csv", ("id", "stone"), [("a", 1), ("b", 0)])
    write_table(source / "about/.t.csv", ("id", "stone"), [("a", 1), ("b", 0)])
    text = describe(source)
    assert [rule.files for rule in found(text).tables] == [("about/more/t.csv",)]
    assert "stone" not in text


def test_of_two_tables_of_labels_the_other_is_offered(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a", "b")
    write_table(source / "few.csv", ("id", "cyst", "Findings"), [("a", 1, "F.")])
    write_table(source / "many.csv", ("id", "stone"), [("a", 1), ("b", 0)])
    text = describe(source)
    many, few = found(text).tables
    assert (many.files, many.labels) == (("many.csv",), ("stone",))
    assert (few.files, few.labels, few.text) == (("few.csv",), None, ("Findings",))
    assert "Its labels are left to many.csv, for one table alone states them." in remarks(text)
    assert '# labels = ["cyst"]' in text
    write_table(source / "few.csv", ("id", "cyst", "patient"), [("a", 1, "p")])
    write_table(source / "many.csv", ("id", "stone", "patient"), [("a", 1, "p"), ("b", 0, "p")])
    text = describe(source)
    assert [rule.files for rule in found(text).tables] == [("many.csv",)]
    assert "few.csv is not needed, or not understood" in remarks(text)
    assert "Its patients are left to many.csv." in remarks(text)


def test_a_table_of_sizes_alone_is_offered_whole(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a")
    header = ("id", "SliceThickness", "PixelSpacing", "age")
    write_table(source / "m.csv", header, [("a", 2, "[0.7, 0.7]", 40)])
    text = describe(source)
    assert found(text).tables == ()
    (table,) = with_all_offered(text).tables
    assert (table.files, table.key) == (("m.csv",), "id")
    assert (table.spacing_mm, table.carry) == (("PixelSpacing", "SliceThickness"), ("age",))


# Splits.


def test_a_column_of_splits_is_taken_with_its_words(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    for seed, name in enumerate("abcd"):
        write_nifti(source / f"{name}.nii.gz", marked(seed), codes="LPS")
    rows = [("a", "train", 1), ("b", "val", 0), ("c", "TEST", 1), ("d", "dev", 1)]
    write_table(source / "t.csv", ("id", "split", "cyst"), rows)
    text = describe(source)
    assert {n: rule.words for n, rule in found(text).splits.items()} == {
        "test": (),
        "train": (),
        "valid": ("dev", "val"),
    }
    (table,) = found(text).tables
    assert (table.split, table.labels) == ("split", ("cyst",))
    (tmp_path / "mine.toml").write_text(text)
    for split, names in {"valid": ["b", "d"], "test": ["c"], "train": ["a"]}.items():
        build(tmp_path / split, source, dataset=tmp_path / "mine.toml", split=split)
        assert list(read_samples(tmp_path / split)) == names


def test_words_that_cannot_name_a_split_name_one_that_is_like_them(tmp_path: Path) -> None:
    source = named_scans(tmp_path, *"abcde")
    rows = [("a", "first half"), ("b", "2/2"), ("c", "first_half"), ("d", "Größe")]
    write_table(source / "t.csv", ("id", "fold"), rows)
    text = describe(source)
    assert {n: rule.words for n, rule in found(text).splits.items()} == {
        "2_2": ("2/2",),
        "größe": (),
        "first_half": ("first half",),
        "first_half_": ("first_half",),
    }
    assert "Splits: " in remarks(text)
    assert "1 volume has no word there, and no split." in remarks(text)


def test_rows_of_several_splits_do_not_spoil_what_else_a_table_says(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    for seed, name in enumerate("ab"):
        write_nifti(source / f"{name}.nii.gz", marked(seed), codes="LPS")
    rows = [("a", "train", 1), ("a", "test", 1), ("b", "train", 0)]
    write_table(source / "t.csv", ("id", "split", "cyst"), rows)
    text = describe(source)
    assert [rule.roles for rule in found(text).tables] == [("labels",), ("splits",)]
    assert "1 volume has rows of several splits, such as a, and no split." in remarks(text)
    (tmp_path / "mine.toml").write_text(text)
    build(tmp_path / "out", source, dataset=tmp_path / "mine.toml", split="train")
    assert {k: s.labels.tolist() for k, s in read_samples(tmp_path / "out").items()} == {"b": [0]}


def test_folders_of_splits_go_before_a_column(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "train/a", "val/b")
    write_table(source / "t.csv", ("id", "cohort split"), [("a", "one"), ("b", "two")])
    text = describe(source)
    assert set(found(text).splits) == {"train", "valid"}
    assert "t.csv has a column cohort split of one, two; the splits above are those of the" in (
        remarks(text)
    )


def test_a_column_of_blank_splits_tells_none(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a")
    write_table(source / "t.csv", ("id", "split", "cyst"), [("a", "", 1), ("z", "train", 1)])
    text = describe(source)
    assert not found(text).splits
    assert "Its column split, which may tell splits apart, is not used." in remarks(text)


# Tables that are not.


def test_tables_that_cannot_be_joined_are_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = named_scans(tmp_path, "a", "b")
    write_table(source / "good.csv", ("id", "cyst"), [("a", 1), ("b", 1)])
    write_table(source / "less.csv", ("id", "cyst"), [("a", 1)])
    write_table(source / "other.csv", ("who", "cyst"), [("z", 1)])
    write_table(source / "none.csv", ("id", "cyst"), [])
    write_table(source / "ragged.csv", ("id", "cyst"), [("a",), ("b",)])
    write_table(source / "empty.csv", (), [])
    write_table(source / "twice.csv", ("id", "cyst"), [("a", 1), ("a", 0)])
    write_table(source / "bare.csv", ("id", "x", "x"), [("a", "", ""), ("b", "", "")])
    write_table(source / "t.parquet", ("id", "cyst"), [("a", 1)])
    (source / "broken.xlsx").write_bytes(b"no workbook")
    (source / "binary.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (source / "old.xls").write_bytes(b"old")
    (source / "notes.json").write_text("{}")
    (source / "a.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = describe(source)
    said = remarks(text)
    assert [rule.files for rule in found(text).tables] == [("good.csv",)]
    assert (
        "other.csv: no column names a volume. The closest is who, with cells such as 'z', and "
        "volumes are called 'a', 'b'. It has 1 row and the columns who, cyst."
    ) in said
    assert "none.csv has no rows below its header: id, cyst." in said
    assert "ragged.csv has no rows as wide as its header: id, cyst." in said
    assert "empty.csv has no columns." in said
    assert "less.csv is not needed, or not understood." in said
    assert "twice.csv is not joined, as it has rows that contradict each other for a" in said
    assert "broken.xlsx" in said
    assert "binary.csv" in said
    assert "t.parquet is read by pyarrow, which is not installed; run `pip install" in said
    assert "no CSV, TSV, .xlsx or Parquet: notes.json, old.xls." in said


def test_the_closest_column_is_shown_and_the_glob_that_would_join_it(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    names = [f"case_{n}" for n in (11, 12, 13)]
    for seed, name in enumerate(names):
        write_nifti(source / f"{name}_0000.nii.gz", marked(seed), codes="LPS")
    header = ("number", "scan", "cyst")
    write_table(source / "t.csv", header, [(n, name, 1) for n, name in enumerate(names)])
    text = describe(source)
    assert found(text).tables == ()
    assert "The closest is scan, with cells such as 'case_11', 'case_12', 'case_13'" in remarks(
        text
    )
    assert "Cells of scan are names of volumes without '_0000'" in remarks(text)
    glob = '"**/{key}_0000.nii.gz"'
    assert f"# paths = [{glob}]" in text
    file = tmp_path / "mine.toml"
    table = '[[tables]]\nfiles = ["t.csv"]\nkey = "scan"\nlabels = ["cyst"]\n'
    file.write_text(f'name = "mine"\n[volumes]\npaths = [{glob}]\n{table}')
    build(tmp_path / "out", source, dataset=file)
    assert {k: s.labels.tolist() for k, s in read_samples(tmp_path / "out").items()} == {
        name: [1] for name in names
    }


def test_names_in_another_spelling_are_the_closest(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "CT-001", "CT-002")
    write_table(
        source / "t.csv", ("n", "who", "cyst"), [(7, "ct_001.dcm", 1), (8, "ct_002.dcm", 0)]
    )
    assert "The closest is who, with cells such as 'ct_001.dcm', 'ct_002.dcm'" in remarks(
        describe(source)
    )


def test_a_table_without_a_header_is_not_joined(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a", "b", "c")
    (source / "t.csv").write_text("x,a.nii.gz,1\ny,b.nii.gz,0\nz,c.nii.gz,0\n")
    text = describe(source)
    assert found(text).tables == ()
    assert "t.csv has no line of column names, for its first line names the volume a.nii.gz" in (
        remarks(text)
    )


@pytest.mark.parametrize("content", ["a\nb\n", "b\n", "name\na.nii.gz\n", "\ufeffa\r\n"])
def test_a_list_of_volumes_is_offered_to_be_left_out(tmp_path: Path, content: str) -> None:
    source = named_scans(tmp_path, "a", "b", "c")
    (source / "bad.txt").write_text(content, "utf-8")
    text = describe(source)
    assert found(text).tables == ()
    assert "bad.txt is a list of volumes." in remarks(text)
    assert with_all_offered(text).leave_out[0].files == ("bad.txt",)


def test_a_text_is_no_table(tmp_path: Path) -> None:
    source = named_scans(tmp_path, "a")
    (source / "README.txt").write_text("Scans, and more.\n\nOf lungs.\nOf a, b and c.\n")
    (source / "LICENSE.txt").write_text("Free\nas a bird\n")
    assert "In these texts no volume is named: LICENSE.txt, README.txt." in remarks(
        describe(source)
    )


def test_only_some_tables_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = named_scans(tmp_path, "x/a", "x/b")
    write_table(source / "large.csv", ("id", "cyst"), [("a", 1)] * 500)
    write_table(source / "t.csv", ("id", "cyst"), [("a", 1)])
    for n in range(3):
        write_table(source / f"x/t{n}.csv", ("id", "stone"), [("a", 1), ("b", 1)])
    monkeypatch.setattr(describing, "_MOST_TABLES", 2)
    monkeypatch.setattr(describing, "LARGEST_LOOKED_AT_BYTES", 100)
    text = describe(source)
    assert [rule.files for rule in found(text).tables] == [("t.csv",)]
    assert "large.csv was not looked at, for it has 0 MiB." in remarks(text)
    assert "3 more tables were not looked at, such as x/t0.csv." in remarks(text)


def test_a_table_that_cannot_be_opened_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = named_scans(tmp_path, "a")
    write_table(source / "t.csv", ("id", "cyst"), [("a", 1)])

    def refuse(self: FolderSource, *names: str) -> None:
        raise SourceError(f"{names[0]} cannot be read: Permission denied")

    monkeypatch.setattr(FolderSource, "read_table", refuse)
    text = describe(source)
    assert "t.csv cannot be read: Permission denied." in remarks(text)
    assert found(text).tables == ()


# Whatever a table says, the file can be read.

cells = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("\"'\\\n\r\t#[]{}=,;.\x00\x7f\u2028\u202e"),
    max_size=6,
)
words = st.sampled_from(["", "a", "b.nii.gz", "1", "0", "train", "yes", "id", "split", "Findings"])


@pytest.mark.slow
@settings(max_examples=150)
@given(
    header=st.lists(cells | words, min_size=1, max_size=5),
    rows=st.lists(st.lists(cells | words, min_size=1, max_size=5), max_size=6),
    ids=st.lists((cells | words).filter(bool), min_size=1, max_size=4, unique=True),
)
def test_what_is_written_of_any_table_can_be_read(
    header: list[str], rows: list[list[str]], ids: list[str]
) -> None:
    lines = [[f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row] for row in (header, *rows)]
    content = "\n".join(",".join(line) for line in lines).encode()
    draft = Draft(Description(name="any"))
    add_tables(draft, ["t.csv"], lambda path: content, {name: f"{name}.nii" for name in ids})
    assert found(draft.to_toml()) == draft.description


@pytest.mark.slow
def test_a_search_for_the_closest_column_ends_soon() -> None:
    ids = {f"scan-{n:05}-of-many": f"{n}.nii" for n in range(20_000)}
    columns = [f"c{n}" for n in range(300)]
    row = ",".join(f"{n}xyz" for n in range(300))
    content = "\n".join([",".join(columns), *[row] * 3000]).encode()
    asked: list[int] = []
    closeness = seen_tables._closeness

    def counted(cells: list[str], names: list[str]) -> tuple[int, int]:
        asked.append(len(cells) * len(names))
        return closeness(cells, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_tables, "_closeness", counted)
        add_tables(Draft(Description(name="any")), ["t.csv"], lambda path: content, ids)
    assert np.sum(asked) <= 200 * 2000 * 20
    assert 0 < max(asked) <= 2000 * 20
