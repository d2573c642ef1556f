"""Text, spacings and facts of a volume, also through another table, and splits by a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shelf import labels_of, load, load_many

from ctgpu.data_sets import Description
from ctgpu.errors import TableError, UsageError
from ctgpu.sources.columns import report_text
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.selection import select
from ctgpu.sources.tables import SampleRow, Tables
from ctgpu.volume.ref import SampleRef

# Text.


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ("F.,I.", "I. / F."),
        ("F.,", "F."),
        (",I.", "I."),
        (",", ""),
        ("Not given.,I.", "I."),
        ("nan, NOT GIVEN ", ""),
        (" F. ,I.", "I. /  F. "),
        ('"a,\n""b""",I.', 'I. / a,\n"b"'),
    ],
)
def test_a_report_is_its_columns_in_their_order(cells: str, text: str) -> None:
    tables = load(f"scan,f,i\na,{cells}\n", text=["i", "f"], data_set={"text_separator": " / "})
    row = tables.row("a")
    assert row.text == text
    assert list(row.report) == ["i", "f"]
    assert (tables.row("b").text, tables.row("b").report) == ("", {})


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({}, ["f"]),
        ({"report": ["technique", "f"]}, ["technique", "f"]),
        ({"report": []}, ["f"]),
        ({"report": "rest"}, ["technique", "f", "age", "x", "y", "junk", ""]),
        ({"report": "rest", "ignore": ["junk", "age", "f"]}, ["technique", "f", "x", "y", ""]),
        (
            {"report": "rest", "labels": ["x", "y"], "patient": "age"},
            ["technique", "f", "junk", ""],
        ),
        (
            {"report": "rest", "labels": "classes", "carry": ["age"]},
            ["technique", "f", "y", "junk", ""],
        ),
    ],
)
def test_the_columns_of_a_report_that_are_kept(rule: dict[str, Any], kept: list[str]) -> None:
    names = {"class_names": ["x"]} if rule.get("labels") == "classes" else {}
    table = "technique,f,scan,age,x,y,junk,\nCT,Clear.,a,50,1,0,?,7\n"
    row = load(table, text=["f"], data_set=names, **rule).row("a")
    cells = dict(zip(table.split("\n")[0].split(","), table.split("\n")[1].split(","), strict=True))
    assert row.report == {name: cells[name] for name in kept}
    assert list(row.report) == kept
    assert row.text == "Clear."


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


# Other columns.


def test_cells_that_are_carried_are_kept_as_they_are_unless_blank() -> None:
    files = {"t.csv": "scan,kvp,age\na,120, 50Y \nb,nan,\n", "u.csv": "scan,vendor\na,ACME\n"}
    rules = [
        {"files": ["t.csv"], "carry": ["kvp", "age"]},
        {"files": ["u.csv"], "carry": ["vendor"]},
    ]
    tables = load_many(files, *rules)
    assert tables.row("a").carried == {"kvp": "120", "age": " 50Y ", "vendor": "ACME"}
    assert tables.row("b").carried == tables.row("c").carried == {}
    with pytest.raises(UsageError, match=r"u\.csv lacks the column vendor"):
        load_many(files | {"u.csv": "scan\n"}, *rules)


@pytest.mark.parametrize(
    ("columns", "cells", "spacing_mm"),
    [
        (["p"], '"[0.5, 0.75, 2]"', (0.5, 0.75, 2)),
        (["p"], "0.5 0.75 2", (0.5, 0.75, 2)),
        (["p"], '"(0.5,0.75,2)"', (0.5, 0.75, 2)),
        (["p"], '"[nan, 1, 1]"', None),
        (["p"], "", None),
        (["p"], "Not given.", None),
        (["p", "q"], '"[0.5, 0.75]",2', (0.5, 0.75, 2)),
        (["p", "q"], '"[0.5, 0.75]",', None),
        (["p", "q"], ",2", None),
        (["p", "q", "r"], "0.5,0.75,2", (0.5, 0.75, 2)),
        (["r", "q", "p"], "0.5,0.75,2", (2, 0.75, 0.5)),
        (["p", "q", "r"], "0.5,nan,2", None),
        (["p", "q", "r"], "0.5,,2", None),
        # A voxel size of one number, as of isotropic volumes.
        (["p", "p", "p"], "0.8", (0.8, 0.8, 0.8)),
        (["p", "p", "q"], "0.8,2", (0.8, 0.8, 2)),
    ],
)
def test_a_spacing_is_in_one_two_or_three_columns(
    columns: list[str], cells: str, spacing_mm: tuple[float, float, float] | None
) -> None:
    names = sorted(set(columns))
    tables = load(f"scan,{','.join(names)}\na,{cells}\n", spacing_mm=columns)
    row = tables.row("a", spacing_from_header=True)
    assert row.spacing_mm == spacing_mm
    if spacing_mm is None:
        with pytest.raises(TableError, match=r"t\.csv has a row without a spacing for a;"):
            tables.row("a")
        assert row.choose_spacing_mm((1, 2, 3)) == ((1, 2, 3), "header")
    else:
        assert row.choose_spacing_mm((1, 2, 3)) == (spacing_mm, "csv")
    with pytest.raises(TableError, match=r"t\.csv has no row for b; .*--spacing-fallback header"):
        tables.row("b")


@pytest.mark.parametrize(
    ("columns", "cells", "wanted"),
    [
        (["p"], "0.8", "three numbers such as [0.75, 0.75, 1.5]"),
        (["p"], '"[1, 1]"', "three numbers"),
        (["p"], '"[1, 1, 1, 1]"', "three numbers"),
        (["p"], '"[1, 1, thick]"', "three numbers"),
        (["p", "q"], '"[1, 1, 1]",1', "two numbers such as [0.75, 0.75]"),
        (["p", "q"], "1,1", "two numbers"),
        (["p", "q"], '"[1, 1]","[1, 1]"', "a number"),
        (["p", "q", "r"], "1,1,thick", "a number"),
    ],
)
def test_a_spacing_of_another_kind_fails_the_sample(
    columns: list[str], cells: str, wanted: str
) -> None:
    tables = load(f"scan,{','.join(columns)}\na,{cells}\n", spacing_mm=columns)
    with pytest.raises(
        TableError, match=r"^t\.csv has [pqr] '.*' in line 2 for a; wanted "
    ) as caught:
        tables.row("a", spacing_from_header=True)
    assert str(caught.value).partition("wanted ")[2].startswith(wanted)


def test_the_description_says_a_spacing_where_nothing_else_does() -> None:
    row = load(None, text=["f"], data_set={"arrays": {"spacing_mm": [0.8, 0.8, 1.5]}}).row("a")
    assert row.choose_spacing_mm(None) == ((0.8, 0.8, 1.5), "description")
    assert row.choose_spacing_mm((1, 2, 3)) == ((1, 2, 3), "header")
    with pytest.raises(TableError, match=r"no spacing is stated.*arrays\.spacing_mm"):
        load(None, text=["f"]).row("a").choose_spacing_mm(None)


def test_slope_and_intercept_may_be_there_or_not() -> None:
    rule = {"rescale": ["s", "i"]}
    assert load("scan,s,i\na,2,-1024\n", **rule).row("a").rescale_pair == (2, -1024)
    for table in ("scan,s,i\na,,-1024\n", "scan,s\na,2\n", "scan\na\n", "scan,s,i\nb,1,0\n"):
        assert load(table, **rule).row("a").rescale_pair is None
    with pytest.raises(TableError, match="has s 'two' in line 2 for a; wanted a number"):
        load("scan,s,i\na,two,0\n", **rule).row("a")


def test_spacing_and_slope_may_be_of_two_tables() -> None:
    files = {"t.csv": "scan,p\na,0.5 0.5 2\n", "u.csv": "scan,s,i\na,2,-1024\nb,1,x\n"}
    rules = [{"files": ["u.csv"], "rescale": ["s", "i"]}, {"files": ["t.csv"], "spacing_mm": ["p"]}]
    for order in (rules, rules[::-1]):
        row = load_many(files, *order).row("a")
        assert (row.spacing_mm, row.rescale_pair) == ((0.5, 0.5, 2), (2, -1024))
    with pytest.raises(TableError, match=r"u\.csv has i 'x' in line 3 for b"):
        load_many(files, *rules).row("b", spacing_from_header=True)
    row = load_many({"u.csv": files["u.csv"]}, *rules).row("a")
    assert (row.spacing_mm, row.rescale_pair) == (None, (2, -1024))


def test_the_number_of_voxels_is_a_hint() -> None:
    rule = {"rescale": ["s", "i"], "shape": ["h", "w", "d"]}
    assert load("scan,h,w,d\na,5,6,7.0\n", **rule).row("a").shape_hint == (5, 6, 7)
    for table in ("scan,h,w\na,5,6\n", "scan,h,w,d\na,5,6,many\n", "scan,h,w,d\na,5,6,\n"):
        assert load(table, **rule).row("a").shape_hint is None


# Tables that name volumes by what another one says.

MAPPING = "image,exam\na.nii.gz,E1\nb,E1\nc, \nd,E9\ne,x/E2.nii\nf,E3\n"
LEADS = {"files": ["m.csv"], "key": "image", "other_names": ["exam"]}
LABELS = {"files": ["t.csv"], "key": "exam", "through": "exam", "labels": "rest"}


def through(labels: str, mapping: str = MAPPING, **rule: Any) -> Tables:
    return load_many({"m.csv": mapping, "t.csv": labels}, {**LABELS, **rule}, LEADS)


def test_a_table_is_joined_through_another_one() -> None:
    tables = through("exam,n\nE1,1\nE2,0\nE3,\na,0\n")
    # Two images of one exam have its labels both.
    assert [labels_of(tables, name) for name in "abe"] == [[1], [1], [0]]
    # A blank name, one without a row, a label that is blank, and an image that is not mapped.
    assert [tables.row(name).has_labels for name in "cdfg"] == [False, False, True, False]
    assert tables.labels is not None
    assert [name in tables.labels for name in "abcdefg"] == [
        *(True, True, False, False, True, True, False),
    ]
    assert tables.labels.name_of("e") == "E2"


def test_what_is_wrong_there_is_named_as_the_table_names_it() -> None:
    tables = through("exam,n,m\nE1,1,x\nE2,0\nE3,1,1\nE3,0,1\n")
    with pytest.raises(TableError, match=r"^t\.csv has m 'x' in line 2 for E1; wanted a number$"):
        tables.row("a")
    with pytest.raises(TableError, match=r"row of 2 values for 3 columns for E2 in line 3"):
        tables.row("e")
    with pytest.raises(TableError, match=r"rows that contradict each other for E3 in line 4"):
        tables.row("f")


def test_a_mapping_that_contradicts_itself_fails_the_volume() -> None:
    labels = "exam,n\nE1,1\nE2,0\n"
    tables = through(labels, "image,exam\na,E1\na,E2\nb,E1\nb.nii.gz,E1\n")
    assert labels_of(tables, "b") == [1]
    with pytest.raises(
        TableError, match=r"^m\.csv has rows that contradict each other for a in li"
    ):
        tables.row("a")
    assert tables.labels is not None
    assert "a" not in tables.labels
    assert "b" in tables.labels


def test_without_the_mapping_no_row_would_be_found() -> None:
    """A build that went on without it would have labels for nobody, and say nothing."""
    fault = (
        r"^t\.csv names volumes by exam, which m\.csv is to explain and the source does not have; "
        "bring that table there$"
    )
    with pytest.raises(UsageError, match=fault):
        load_many({"t.csv": "exam,n\nE1,1\n"}, LABELS, LEADS)
    assert load_many({"m.csv": MAPPING}, LABELS, LEADS).labels is None
    assert load_many({}, LABELS, LEADS).joined == ()


def test_a_mapping_without_its_column_is_refused() -> None:
    with pytest.raises(UsageError, match=r"m\.csv lacks the column exam; it has image"):
        through("exam,n\nE1,1\n", "image\na\n")


def test_spacing_text_and_facts_are_found_through_it_too() -> None:
    files = {
        "m.csv": MAPPING,
        "t.csv": "exam,p,f,who,cohort,kvp,s,i\nE1,1 1 2,Clear.,P1,train,120,2,-5\n"
        "E2,x,,P2,,,,\nE3,1 1 1,,,,,2,y\n",
    }
    rule = {
        **{"files": ["t.csv"], "key": "exam", "through": "exam", "spacing_mm": ["p"]},
        **{"text": ["f"], "patient": "who", "split": "cohort", "carry": ["kvp"]},
        "rescale": ["s", "i"],
    }
    tables = load_many(files, LEADS, rule)
    for name in "ab":
        row = tables.row(name)
        assert (row.spacing_mm, row.text, row.carried) == ((1, 1, 2), "Clear.", {"kvp": "120"})
        assert row.rescale_pair == (2, -5)
        assert (tables.facts_of(name, "patient"), tables.facts_of(name, "split")) == ("P1", "train")
    with pytest.raises(TableError, match="has p 'x' in line 3 for E2; wanted three numbers"):
        tables.row("e", spacing_from_header=True)
    with pytest.raises(TableError, match=r"has i 'y' in line 4 for E3; wanted a number$"):
        tables.row("f")
    assert (tables.facts_of("e", "patient"), tables.facts_of("e", "split")) == ("P2", None)
    assert tables.facts_of("g", "patient") is None


# Splits that a column tells.

SPLITS = {"train": {"words": ["Training", "tuning"]}, "valid": {}, "test": {"words": ["TEST"]}}
COHORTS = "scan,cohort\na,Training\nb,TUNING\nc,Valid\nd,Test\ne,\nf, valid \ng,nan\n"


def chosen(split: str) -> tuple[list[str], dict[str, int]]:
    tables = load(COHORTS, split="cohort", data_set={"splits": SPLITS})
    refs = [SampleRef.of_file(f"x/{name}.nii", 1) for name in "abcdefgh"]
    selection = select(refs, tables, split=split)
    return [ref.study_id for ref in selection.samples], selection.counts


@pytest.mark.parametrize(
    ("split", "own"), [("train", ["a", "b"]), ("valid", ["c", "f"]), ("test", ["d"])]
)
def test_words_of_a_column_tell_the_splits_and_a_blank_or_no_row_is_none(
    split: str, own: list[str]
) -> None:
    names, counts = chosen(split)
    assert names == own
    assert counts["of the other split"] == 8 - len(own)


# A folder.


def test_a_folder_of_a_description_is_joined_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "scans/p1").mkdir(parents=True)
    for name in ("s1", "s2"):
        (tmp_path / "scans/p1" / f"ct_{name}.npz").touch()
    (tmp_path / "labels.tsv").write_text("scan\tnodule\ns1\tyes\nscans/p1/s2.npz\tNO\n")
    (tmp_path / "skip.txt").write_text("s2\n")
    description = Description.of(
        {
            "name": "Ours",
            "volumes": {"paths": ["scans/{patient}/ct_{key}.npz"]},
            "tables": [
                {
                    **{"files": ["tables/labels.tsv"], "key": "scan", "labels": "rest"},
                    "label_words": {"yes": 1, "no": 0},
                }
            ],
            "leave_out": [{"files": ["skip.txt"], "reason": "blurred"}],
        }
    )
    source = FolderSource(tmp_path, data_set=description)
    refs = source.list_volumes("any")
    tables = source.tables("any")
    assert [ref.study_id for ref in refs] == ["s1", "s2"]
    assert (tables.class_names, dict(tables.left_out)) == (("nodule",), {"s2": "blurred"})
    assert [labels_of(tables, ref.study_id) for ref in refs] == [[1], [0]]
    assert isinstance(tables.row("s1"), SampleRow)
    assert select(refs, tables, split="any").counts["blurred"] == 1
