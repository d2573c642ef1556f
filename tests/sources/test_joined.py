"""Which rows and labels a table has of a volume, as its description says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf, labels_of, load, load_many

from ctgpu.data_sets import Description
from ctgpu.errors import TableError, UsageError
from ctgpu.printable import counted
from ctgpu.sources.tables import Tables

# Keys.


@pytest.mark.parametrize(
    "cell",
    ["a", " a ", "a.nii.gz", "a.nii", "a.npz", "A/b/a.NII.GZ", "/data/a.nii", "./a.npz", '"a"'],
)
def test_a_volume_is_named_with_or_without_folder_and_suffix(cell: str) -> None:
    tables = load(f"scan,n\n{cell},1\nother,0\n", labels=["n"])
    assert labels_of(tables) == [1]
    assert labels_of(tables, "none") == [None]


@pytest.mark.parametrize("cell", ["", " ", ".nii.gz", "x/", "b", "A", "a.nii.gz.nii"])
def test_what_names_another_volume_or_none_is_passed_over(cell: str) -> None:
    tables = load(f"scan,n\n{cell},1\n{cell},0\na,1\n", labels=["n"])
    assert labels_of(tables) == [1]


def test_dots_and_spaces_are_part_of_a_name() -> None:
    tables = load("scan,n\na b.v2.nii.gz,1\n.hidden,0\n", labels=["n"])
    assert labels_of(tables, "a b.v2") == [1]
    assert labels_of(tables, ".hidden") == [0]
    assert labels_of(tables, "a b") == [None]


@pytest.mark.parametrize(
    ("header", "keys", "found"),
    [
        ("scan id", ["scan_id", "scan id"], "scan id"),
        ("scan_id", ["scan_id", "scan id"], "scan_id"),
        (" scan_id ", "scan_id", "scan_id"),
        ("scan id,scan_id", ["scan_id", "scan id"], "scan_id"),
        ("scan_id,scan id", ["scan id", "scan_id"], "scan id"),
    ],
)
def test_of_several_keys_the_first_that_is_there_counts(
    header: str, keys: str | list[str], found: str
) -> None:
    names = [name.strip() for name in header.split(",")]
    cells = ["a" if name == found else "other" for name in names]
    tables = load(f"{header},n\n{','.join(cells)},1\n", key=keys, labels="rest")
    # One that was not needed is no label.
    assert (tables.class_names, labels_of(tables)) == (("n",), [1])
    assert tables.joined[0].table.key == found


def test_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^t\.csv lacks the columns key, n; it has Key, x$"):
        load("Key,x\na,1\n", key=["key", "KEY"], labels=["n"])


# Which columns are labels.


def test_columns_called_as_the_classes_are_found_in_any_order() -> None:
    tables = load(
        "y,scan,more,x\n0,a,text,1\n", labels="classes", data_set={"class_names": ["x", "y"]}
    )
    assert (tables.class_names, labels_of(tables)) == (("x", "y"), [1, 0])


def test_a_column_of_a_class_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"^t\.csv lacks the columns y, z; it has scan, x"):
        load("scan,x\na,1\n", labels="classes", data_set={"class_names": ["x", "y", "z"]})


def test_a_list_of_columns_may_have_other_names_as_classes() -> None:
    table = "scan,c1,c2\na,1,0\n"
    tables = load(table, labels=["c2", "c1"], data_set={"class_names": ["Two", "One"]})
    assert (tables.class_names, labels_of(tables)) == (("Two", "One"), [0, 1])
    tables = load(table, labels=["c2", "c1"])
    assert (tables.class_names, labels_of(tables)) == (("c2", "c1"), [0, 1])
    # A plan has the names of then.
    tables = load(table, ["Two", "One"], labels=["c2", "c1"])
    assert (tables.class_names, labels_of(tables)) == (("Two", "One"), [0, 1])


def test_the_rest_is_what_nothing_else_is_said_of() -> None:
    header = "scan,image,x,who,cohort,kvp,f,g,h,w,d,s,i,nh,nw,nd,exam,junk,,y"
    cells = "a,a2,1,p,train,120,Text.,More.,1,1,2,1,0,9,9,9,E1,?,7,0"
    tables = load(
        f"{header}\n{cells}\n",
        labels="rest",
        **{"key": ["scan", "image"], "patient": "who", "split": "cohort", "carry": ["kvp"]},
        **{"text": ["f"], "report": ["f", "g"], "spacing_mm": ["h", "w", "d"]},
        **{"rescale": ["s", "i"], "shape": ["nh", "nw", "nd"], "other_names": ["exam"]},
        ignore=["junk"],
    )
    assert (tables.class_names, labels_of(tables)) == (("x", "y"), [1, 0])
    row = tables.row("a")
    assert (row.spacing_mm, row.rescale_pair, row.shape_hint) == ((1, 1, 2), (1, 0), (9, 9, 9))
    assert (row.report, row.carried) == ({"f": "Text.", "g": "More."}, {"kvp": "120"})
    assert (tables.facts_of("a", "patient"), tables.facts_of("a", "split")) == ("p", "train")


@pytest.mark.parametrize("header", ["scan", "scan,,", "scan,junk"])
def test_no_column_is_no_class(header: str) -> None:
    tables = load(f"{header}\na{',' * header.count(',')}\n", labels="rest", ignore=["junk"])
    assert (tables.class_names, tables.labels) == ((), None)
    row = tables.row("a")
    assert (row.labels.shape, row.has_labels) == ((0,), False)


@pytest.mark.slow
def test_one_class_is_enough_and_thousands_are_not_too_many() -> None:
    tables = load("scan,x\na,1\n", labels="rest")
    assert (tables.class_names, labels_of(tables)) == (("x",), [1])
    names = [f"class {n}" for n in range(5000)]
    values = [n % 2 for n in range(5000)]
    table = f"scan,{','.join(names)}\na,{','.join(map(str, values))}\n"
    tables = load(table, labels="rest")
    assert (tables.class_names, labels_of(tables)) == (tuple(names), values)
    tables = load(table, labels="classes", data_set={"class_names": names[::-1]})
    assert labels_of(tables) == values[::-1]


def test_a_class_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"t\.csv has more than one column of the name x;"):
        load("scan,x,x\na,1,0\n", labels="rest")


# What a plan has goes before what the table has.


@pytest.mark.parametrize("labels", ["classes", "rest"])
def test_the_classes_of_a_plan_are_read_in_its_order(labels: str) -> None:
    content = {"class_names": ["x", "y", "z"]} if labels == "classes" else {}
    table = "scan,x,y,z\na,0,0.5,1\n"
    tables = load(table, ["z", "x"], labels=labels, data_set=content)
    assert (tables.class_names, labels_of(tables)) == (("z", "x"), [1, 0])


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ("classes", "t.csv lacks the column v; it has scan, x, y"),
        ("rest", "t.csv has no labels for v, which the data set was planned with; bring the table"),
        (["x", "y"], "t.csv has no labels for v, which the data set was planned with"),
    ],
)
def test_a_class_of_a_plan_that_the_table_lacks_is_named(labels: Any, fault: str) -> None:
    content = {"class_names": ["x", "v"]} if labels == "classes" else {}
    with pytest.raises(UsageError, match=f"^{re.escape(fault)}"):
        load("scan,x,y\na,1,0\n", ["y", "v", "x"], labels=labels, data_set=content)


@pytest.mark.parametrize("labels", ["classes", "rest", ["x"]])
def test_a_plan_without_classes_reads_no_labels(labels: Any) -> None:
    content = {"class_names": ["x"]} if labels == "classes" else {}
    # The column may have gone, or hold what is no label.
    table = "scan,f\na,Text.\n"
    tables = load(table, [], labels=labels, text=["f"], data_set=content)
    assert (tables.class_names, tables.labels) == ((), None)
    assert tables.row("a").text == "Text."
    assert tables.row("a").labels.shape == (0,)
    assert load("other\n", [], labels=labels, data_set=content).joined == ()


def test_without_the_table_there_are_classes_only_where_the_volumes_were_found() -> None:
    content = {"class_names": ["x"]}
    assert load(None, labels="classes", data_set=content).class_names == ()
    rule = {"files": ["t.csv"], "key": "scan", "labels": "classes"}
    shelf = Shelf(Description.of({"name": "x", "tables": [rule], **content}), {}, "valid")
    assert Tables.load(shelf, "valid").class_names == ("x",)
    assert labels_of(Tables.load(shelf, "valid")) == [None]


# What cells say.


def test_words_stand_for_labels_in_any_case() -> None:
    tables = load(
        "scan,b,c,d,e,f,g\na,TRUE, absent ,Unsure,-1,,1\n",
        labels="rest",
        label_words={"True": 1, "Absent": 0, "unsure": "unknown", "-1": "unknown"},
    )
    assert labels_of(tables) == [1, 0, None, None, None, 1]
    assert tables.row("a").has_labels


def test_labels_are_any_numbers_where_no_range_is_stated() -> None:
    tables = load("scan,b,c,d,e\na,-3,0.25,1e3,+.5\n", labels="rest")
    assert labels_of(tables) == [-3, 0.25, 1000, 0.5]


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("3", "wanted a number from -1 to 2, or nothing"),
        ("-1.5", "wanted a number from -1 to 2, or nothing"),
        ("yes", "wanted a number from -1 to 2, or nothing"),
        ("1_0", "wanted a number"),
        ("inf", "wanted a number"),
        ("١", "wanted a number"),
    ],
)
def test_a_label_out_of_its_range_fails_the_sample(cell: str, wanted: str) -> None:
    tables = load(f"scan,n\nb,2\nc,-1\na,{cell}\n", labels="rest", label_range=[-1, 2])
    assert (labels_of(tables, "b"), labels_of(tables, "c")) == ([2], [-1])
    with pytest.raises(TableError) as caught:
        tables.row("a")
    assert str(caught.value).startswith(f"t.csv has n {cell!r} in line 4 for a; {wanted}")


def test_a_word_that_stands_for_nothing_is_named_beside_those_that_do() -> None:
    tables = load("scan,n\na,maybe\n", labels="rest", label_words={"Yes": 1, "no": 0})
    with pytest.raises(
        TableError, match=r"n 'maybe' in line 2 for a; wanted a number, or yes, no$"
    ):
        tables.row("a")


def test_a_column_of_many_rows_and_no_label_is_another_one() -> None:
    words = {"yes": 1, "unsure": "unknown"}
    rows = "".join(f"s{n},1,text,UNSURE,\n" for n in range(16))
    with pytest.raises(UsageError, match=r"t\.csv has no usable value in the column y, only such"):
        load(f"scan,x,y,u,v\n{rows}", labels="rest", label_words=words)
    rows += "s16,1,yes,1,\n"
    tables = load(f"scan,x,y,u,v\n{rows}", labels="rest", label_words=words)
    assert labels_of(tables, "s16") == [1, 1, 1, None]


def test_columns_that_are_the_same_up_to_a_separator_are_one_class() -> None:
    tables = load(
        "scan,n*left,m,n*right,k*1,k*2,nn*left\na,0,1,1,,x,0\nb,,0,,,,1\nc,-1,,-2,0.25,,\nd,,,1,x,0,\n",
        labels="rest",
        label_separator="*",
        label_words={"x": "unknown"},
    )
    assert tables.class_names == ("n", "m", "k", "nn")
    # What is not known counts for nothing, beside a 0 too.
    assert labels_of(tables, "a") == [1, 1, None, 0]
    assert labels_of(tables, "b") == [None, 0, None, 1]
    assert labels_of(tables, "c") == [-1, None, 0.25, None]
    assert labels_of(tables, "d") == [1, None, 0, None]


def test_a_list_of_columns_is_joined_at_the_separator_too() -> None:
    table = "scan,n*l,n*r,m*l,other*l\na,0,1,0,9\n"
    tables = load(table, labels=["n*l", "m*l", "n*r"], label_separator="*")
    assert (tables.class_names, labels_of(tables)) == (("n", "m"), [1, 0])
    with pytest.raises(UsageError, match=r"t\.csv lacks the column k\*l"):
        load(table, labels=["n*l", "k*l"], label_separator="*")


# Rows.


@pytest.mark.parametrize("cells", ["a,1", "a,1,0,9", "a"])
def test_a_row_of_another_width_fails_alone(cells: str) -> None:
    tables = load(f"scan,x,y\nb,1,0\n{cells}\n", labels="rest")
    assert labels_of(tables, "b") == [1, 0]
    values = counted(cells.count(",") + 1, "value")
    fault = rf"^t\.csv has a row of {values} for 3 columns for a in line 3; correct them$"
    with pytest.raises(TableError, match=fault):
        tables.row("a")


def test_doubled_rows_have_to_agree_in_what_is_read() -> None:
    table = "scan,x,note\na,1,first\na.nii.gz,1,second\nb,1,\nb,0,\nb,1,\n"
    tables = load(table, labels=["x"])
    assert labels_of(tables, "a") == [1]
    with pytest.raises(TableError, match="rows that contradict each other for b in line 4;"):
        tables.row("b")
    with pytest.raises(TableError, match="rows that contradict each other for a in line 2;"):
        load(table, labels=["x"], carry=["note"]).row("a")


def test_every_table_is_found_by_its_split() -> None:
    rule = {"files": {"train": ["x/a.csv", "b.csv"], "valid": ["c.csv"]}, "labels": "rest"}
    files = {"a.csv": "scan,n\na,1\n", "b.csv": "scan,m\na,0\n", "c.csv": "scan,k\na,0.5\n"}
    assert load_many(files, rule, split="train").class_names == ("m",)
    assert load_many(files, rule).class_names == ("k",)
    assert load_many(files, rule, split="test").class_names == ()
    assert load_many(files | {"x/a.csv": files["a.csv"]}, rule, split="train").class_names == ("n",)


def test_a_table_may_lie_anywhere_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rule = {"files": [str(path)], "labels": "rest"}
    with pytest.raises(UsageError, match=r"t\.csv cannot be read: No such file.*bring the table"):
        load_many({}, rule)
    path.write_text("scan,n\na,1\n")
    assert labels_of(load_many({}, rule)) == [1]


def test_tables_and_lists_find_volumes_by_their_other_names() -> None:
    rule = {"files": ["t.csv"], "key": "uid", "labels": "rest"}
    left_out = {"files": ["out.txt"], "reason": "blurred"}
    data_set = Description.of({"name": "x", "tables": [rule], "leave_out": [left_out]})
    shelf = Shelf(data_set, {"t.csv": "uid,n\n1.2,1\nb,0\n", "out.txt": "1.3\n"})
    shelf.aliases = {"1.2": "a", "1.3": "c"}
    tables = Tables.load(shelf, "valid")
    assert labels_of(tables, "a") == [1]
    assert labels_of(tables, "b") == [0]
    assert tables.left_out == {"c": "blurred"}
