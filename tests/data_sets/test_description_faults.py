"""What is wrong with a description is named by its file, its line and its field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_description import WHOLE

from ctgpu.data_sets import Description, named
from ctgpu.errors import UsageError

HEAD = 'name = "x"\n'
TABLE = '[[tables]]\nfiles = ["a.csv"]\nkey = "k"\n'


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(folder: Path, text: str | bytes) -> str:
    """What is said of a description that is wrong."""
    with pytest.raises(UsageError) as caught:
        Description.load(write(folder, text))
    said = str(caught.value)
    assert "\n" not in said
    return said


# Files.


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        Description.load(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.toml cannot be read: Is a directory"):
        named(tmp_path / "folder.toml")
    with pytest.raises(UsageError, match="dataset is 'ctrate'; it is one of ct-rate, inspect"):
        named("ctrate")
    with pytest.raises(UsageError, match="dataset is ''"):
        named("")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'name = "\xff"\n', "is not UTF-8; save it as that"),
        ('name = "x"\n'.encode("utf-16"), "is not UTF-8"),
        (b"#" * ((1 << 20) + 1), "has more than 1,048,576 bytes; it is no description"),
        ('name = "x', "is no TOML: "),
        ('name = "x"\nname = "y"', "is no TOML: "),
        ("name: x", "is no TOML: "),
        ('{"name": "x"}', "is no TOML: "),
        ("file,label\na,1\n", "is no TOML: "),
        (b'name = "x\0"', "is no TOML: "),
        ("name = 2024-13-01", "is no TOML: "),
        (f"name = {'9' * 5000}", "is no TOML: "),
        (f"name = {'[' * 5000}", "is no TOML: "),
    ],
)
def test_what_is_no_toml_is_refused_in_one_sentence(
    tmp_path: Path, content: str | bytes, fault: str
) -> None:
    assert fault in refused(tmp_path, content)


# Fields.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('name = "x"\nnmae = 1', "line 2: nmae"),
        ('name = "x"\n"a b" = 1', "line 2: a b"),
        ('name = "x"\n"a]" = 1', "line 2: a]"),
        ('name = "x"\n\n[volume]\npaths = []', "line 3: volume"),
        ('name = "x"\n[volumes]\npath = []', "line 3: volumes.path"),
        ('name = "x"\nvolumes = { path = [] }', "line 2: volumes.path"),
        ('name = "x"\nvolumes.path = []', "line 2: volumes.path"),
        ('name = "x"\n[layout]\nroots = ""', "line 3: layout.roots"),
        ('name = "x"\n[arrays]\nkey = ""', "line 3: arrays.key"),
        ('name = "x"\n[splits.a]\n[splits.b]\nvolume = []', "line 4: splits.b.volume"),
        ('name = "x"\n[splits]\na = {}\nb = { x = 1 }', "line 4: splits.b.x"),
        ('name = "x"\nsplits.a = {}\nsplits.b.x = 1', "line 3: splits.b.x"),
        (f'{HEAD}{TABLE}text = ["t"]\n{TABLE}texts = ["t"]', "line 9: tables[1].texts"),
        (f'{HEAD}tables = [\n{{ files = ["a"], key = "k", x = 1 }}]', "line 2: tables[0].x"),
        (f"{HEAD}[[leave_out]]\nfiles = ['a']\nx = 1", "line 4: leave_out[0].x"),
    ],
)
def test_a_field_that_is_none_is_named_with_its_line(tmp_path: Path, text: str, place: str) -> None:
    said = refused(tmp_path, text)
    assert said == (
        f"{tmp_path / 'mine.toml'}, {place}: there is no such field; "
        "docs/data_sets.md says what it takes"
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name = 1", "line 1: name: Expected 'str', got 'int'"),
        ("name = 2024-01-02", "line 1: name: Expected 'str', got 'date'"),
        ("name = true", "line 1: name: Expected 'str', got 'bool'"),
        (f"{HEAD}class_names = 'a'", "line 2: class_names: Expected 'array', got 'str'"),
        (f"{HEAD}class_names = [\n'a',\n1]", "line 2: class_names[1]: Expected 'str', got 'int'"),
        (f"{HEAD}layout = 1", "line 2: layout: Expected 'table', got 'int'"),
        (f"{HEAD}[layout]\ntelling = 'a'", "line 3: layout.telling: Expected 'array'"),
        (f"{HEAD}[layout]\nroot = []", "line 3: layout.root: Expected 'str'"),
        (f"{HEAD}[splits.a]\n[splits.b]\nvolumes = 'a'", "line 4: splits.b.volumes: Expected"),
        (f"{HEAD}[splits]\na = 1", "line 3: splits.a: Expected 'table', got 'int'"),
        (f"{HEAD}splits = ['a']", "line 2: splits: Expected 'table', got 'array'"),
        (f"{HEAD}[volumes]\nscan = 1", "line 3: volumes.scan: Expected 'str | null'"),
        (f"{HEAD}[arrays]\naxes = 'HW'", "line 3: arrays.axes: Invalid enum value 'HW'"),
        (f"{HEAD}[arrays]\nspacing_mm = [1, 2]", "line 3: arrays.spacing_mm: Expected 'array' of"),
        (f"{HEAD}[arrays]\nspacing_mm = 0.8", "line 3: arrays.spacing_mm: Expected"),
        (f"{HEAD}[arrays]\nspacing_mm = ['1', 1, 1]", "line 3: arrays.spacing_mm[0]: Expected"),
        (f"{HEAD}tables = 1", "line 2: tables: Expected 'array', got 'int'"),
        (f"{HEAD}[tables]\nkey = 'a'", "line 2: tables: Expected 'array', got 'table'"),
        (f"{HEAD}[[tables]]\nkey = 'a'", "line 2: tables[0].files: it is missing"),
        (f"{HEAD}[[tables]]\nfiles = ['a']", "line 2: tables[0].key: it is missing"),
        (f"{HEAD}[[tables]]\nkey='k'\nfiles='a'", "line 4: tables[0].files: Expected 'table | arr"),
        (f"{HEAD}[[tables]]\nkey='k'\nfiles.a='a'", "line 4: tables[0].files.a: Expected 'array'"),
        (
            f"{HEAD}[[tables]]\nkey='k'\nfiles.a=['a']\nfiles.b=[1]",
            "line 5: tables[0].files.b[0]: Expected 'str'",
        ),
        (
            f"{HEAD}[[tables]]\nkey='k'\n[tables.files]\na = ['a']\nb = 'x'",
            "line 6: tables[0].files.b: Expected 'array', got 'str'",
        ),
        (f"{HEAD}{TABLE}labels = 'all'", "line 5: tables[0].labels: Invalid enum value 'all'"),
        (f"{HEAD}{TABLE}report = 'all'", "line 5: tables[0].report: Invalid enum value 'all'"),
        (f"{HEAD}{TABLE}text = 't'", "line 5: tables[0].text: Expected 'array', got 'str'"),
        (f"{HEAD}{TABLE}rescale = ['a']", "line 5: tables[0].rescale: Expected 'array' of length"),
        (f"{HEAD}{TABLE}shape = ['a', 'b']", "line 5: tables[0].shape: Expected 'array' of length"),
        (f"{HEAD}{TABLE}label_range = [0]", "line 5: tables[0].label_range: Expected 'array' of"),
        (
            f"{HEAD}{TABLE}label_words = {{ a = 1, b = 'none' }}",
            "line 5: tables[0].label_words.b: Invalid enum value 'none'",
        ),
        (
            f"{HEAD}{TABLE}[tables.label_words]\na = 1\nb = true",
            "line 7: tables[0].label_words.b: Expected",
        ),
        (f"{HEAD}[[leave_out]]\nreason = 'a'", "line 2: leave_out[0].files: it is missing"),
        (
            f"{HEAD}[[leave_out]]\nfiles = ['a']\nreason = 1",
            "line 4: leave_out[0].reason: Expected",
        ),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(
    tmp_path: Path, text: str, place: str
) -> None:
    assert f"mine.toml, {place}" in refused(tmp_path, text)


@pytest.mark.parametrize("text", ["", "# nothing\n", 'licence = "x"'])
def test_a_name_is_needed(tmp_path: Path, text: str) -> None:
    assert "mine.toml: name: it is missing" in refused(tmp_path, text)


#: By a change of a whole description what is then wrong with it.
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "no name": (lambda d: d.update(name=" "), "name", "it is empty"),
    "no such default": (
        lambda d: d.update(default_split="c"),
        "default_split",
        "'c' is none of the splits",
    ),
    "a split's name": (
        lambda d: d["splits"].update({"c d": {}}),
        "splits.c d",
        "a split's name takes letters",
    ),
    "a path as a split": (
        lambda d: d["splits"].update({"../c": {}}),
        "splits.../c",
        "a split's name takes letters",
    ),
    "a split's globs": (
        lambda d: d["splits"]["a"].update(volumes=["/a"]),
        "splits.a.volumes",
        "leads out of the source",
    ),
    "a split's other globs": (
        lambda d: d["splits"]["a"].update(fallback=["a", "[b-a]"]),
        "splits.a.fallback",
        "brackets that are no set",
    ),
    "a split's regex": (
        lambda d: d["splits"]["a"].update(names="("),
        "splits.a.names",
        "'(' is no regular expression: missing )",
    ),
    "globs of volumes": (
        lambda d: d["volumes"].update(paths=["{study}"]),
        "volumes.paths",
        "says {study}",
    ),
    "globs of HU": (lambda d: d["volumes"].update(hu=["a/"]), "volumes.hu", "no path has"),
    "globs without": (
        lambda d: d["volumes"].update(needs_rescale=[".."]),
        "volumes.needs_rescale",
        "leads out",
    ),
    "a scan without its number": (
        lambda d: d["volumes"].update(scan="(?P<scan>.*)"),
        "volumes.scan",
        "has no group recon; write it as (?P<recon>…)",
    ),
    "a scan's regex": (
        lambda d: d["volumes"].update(scan="(?P<scan>.*)_(?P<recon>*)"),
        "volumes.scan",
        "is no regular expression: nothing to repeat",
    ),
    "a patient's regex": (
        lambda d: d["volumes"].update(patient="(.*)"),
        "volumes.patient",
        "has no group patient",
    ),
    "brackets within brackets": (
        lambda d: d["volumes"].update(patient="(" * 5000),
        "volumes.patient",
        "is no regular expression",
    ),
    "too many": (
        lambda d: d["volumes"].update(patient="a{99999999999999999999}"),
        "volumes.patient",
        "is no regular expression",
    ),
    "an orientation": (
        lambda d: d["volumes"].update(orientation="LPP"),
        "volumes.orientation",
        "it is three letters",
    ),
    "a spacing of 0": (
        lambda d: d["arrays"].update(spacing_mm=[0.8, 0, 1]),
        "arrays.spacing_mm",
        "wanted three numbers above 0",
    ),
    "a spacing without end": (
        lambda d: d["arrays"].update(spacing_mm=[0.8, 1, float("inf")]),
        "arrays.spacing_mm",
        "wanted three numbers above 0",
    ),
    "no spacing": (
        lambda d: d["arrays"].update(spacing_mm=[float("nan"), 1, 1]),
        "arrays.spacing_mm",
        "wanted three numbers above 0",
    ),
    "a class twice": (
        lambda d: d.update(class_names=["n", "n"]),
        "class_names",
        "a name stands there twice",
    ),
    "a file of no split": (
        lambda d: d["tables"][1]["files"].update(c=["x.csv"]),
        "tables[1].files.c",
        "there is no such split",
    ),
    "a file out of the source": (
        lambda d: d["tables"][0].update(files=["a/../../b.csv"]),
        "tables[0].files",
        "'a/../../b.csv' is no path below the source",
    ),
    "a file without a name": (
        lambda d: d["tables"][0].update(files=[""]),
        "tables[0].files",
        "'' is no path",
    ),
    "a file with NUL": (
        lambda d: d["leave_out"][0].update(files=["a\0"]),
        "leave_out[0].files",
        "is no path",
    ),
    "no file": (lambda d: d["tables"][0].update(files=[]), "tables[0].files", "names no file"),
    "no file of any split": (
        lambda d: d["leave_out"][0].update(files={}),
        "leave_out[0].files",
        "names no file",
    ),
    "nothing said": (
        lambda d: d["tables"].append({"files": ["x.csv"], "key": "k"}),
        "tables[3].files",
        "nothing is said about its columns",
    ),
    "labels twice": (
        lambda d: d["tables"][2].update(labels=["a", "b"]),
        "tables[2]",
        "tables[1] states labels too; one table may",
    ),
    "text twice": (
        lambda d: d["tables"][1].update(text=["t"]),
        "tables[2]",
        "tables[1] states text too",
    ),
    "spacing twice": (
        lambda d: d["tables"][1].update(spacing_mm=["t"]),
        "tables[1]",
        "tables[0] states spacing too",
    ),
    "patients twice": (
        lambda d: d["tables"][1].update(patient="t"),
        "tables[1]",
        "tables[0] states patients too",
    ),
    "splits twice": (
        lambda d: d["tables"][1].update(split="t"),
        "tables[1]",
        "tables[0] states splits too",
    ),
    "classes without names": (
        lambda d: d.pop("class_names"),
        "tables[1].labels",
        "the data set has no class_names",
    ),
    "a class too few": (
        lambda d: d["tables"][1].update(labels=["n"]),
        "tables[1].labels",
        "1 columns for 2 class_names",
    ),
    "names for the rest": (
        lambda d: d["tables"][1].update(labels="rest"),
        "tables[1].labels",
        "it is 'rest', whose names are its header's: no class_names",
    ),
    "no key": (lambda d: d["tables"][0].update(key=[]), "tables[0].key", "it names no column"),
    "an empty key": (lambda d: d["tables"][1].update(key=""), "tables[1].key", "names no column"),
    "nothing leads there": (
        lambda d: d["tables"][1].update(through="other"),
        "tables[1].through",
        "no other table has 'other' in other_names",
    ),
    "it leads to itself": (
        lambda d: d["tables"][0].update(through="exam"),
        "tables[0].through",
        "no other table has 'exam'",
    ),
    "a way over two tables": (
        lambda d: d["tables"][2].update(other_names=["more"]),
        "tables[2].through",
        "a table with other_names names volumes by their own",
    ),
    "four columns of spacing": (
        lambda d: d["tables"][0].update(spacing_mm=["a", "b", "c", "d"]),
        "tables[0].spacing_mm",
        "wanted one to three columns",
    ),
    "a range upside down": (
        lambda d: d["tables"][1].update(label_range=[1, 0]),
        "tables[1].label_range",
        "wanted the lowest and then the highest value",
    ),
    "a range of one": (
        lambda d: d["tables"][1].update(label_range=[1, 1]),
        "tables[1].label_range",
        "wanted the lowest",
    ),
    "a report without text": (
        lambda d: d["tables"][0].update(report="rest"),
        "tables[0].report",
        "it keeps columns of a report, and text names none",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_contradicts_itself_is_refused_by_its_field(name: str) -> None:
    content = json.loads(json.dumps(WHOLE))
    change, field, fault = FAULTS[name]
    change(content)
    with pytest.raises(ValueError, match=r".") as caught:
        Description.of(content)
    found, _, said = str(caught.value).partition(": ")
    assert found == field
    assert fault in said


def test_the_rest_is_either_labels_or_a_report(tmp_path: Path) -> None:
    both = f"{HEAD}{TABLE}labels = 'rest'\ntext = ['t']\nreport = 'rest'"
    assert "line 7: tables[0].report: labels is 'rest' too" in refused(tmp_path, both)


def test_what_contradicts_itself_is_named_with_its_line(tmp_path: Path) -> None:
    text = f'{HEAD}[splits.a]\n[splits.b]\nvolumes = [\n"ok",\n"/no"]\n'
    assert "mine.toml, line 4: splits.b.volumes: '/no' leads out" in refused(tmp_path, text)
    text = f"{HEAD}{TABLE}text = ['t']\n{TABLE}text = ['t']"
    assert "mine.toml, line 6: tables[1]: tables[0] states text too" in refused(tmp_path, text)


def test_no_value_that_json_has_not_is_taken(tmp_path: Path) -> None:
    """A plan would come back without it."""
    for text in ("label_range = [0, inf]", "label_range = [-inf, 1]", "label_range = [nan, 1]"):
        said = refused(tmp_path, f'{HEAD}{TABLE}labels = ["a"]\n{text}\n')
        assert "mine.toml, line 6: tables[0].label_range: wanted the lowest and then" in said
    for value in ("nan", "inf", "-inf"):
        said = refused(tmp_path, f'{HEAD}{TABLE}labels = ["a"]\nlabel_words = {{ a = {value} }}\n')
        assert "line 6: tables[0].label_words.a: wanted a number, or 'unknown'" in said


def test_a_word_stands_for_one_split(tmp_path: Path) -> None:
    text = f'{HEAD}[splits.train]\n[splits.valid]\nwords = ["val", "Train"]\n'
    assert "line 4: splits.valid.words: 'Train' stands for the split train already" in refused(
        tmp_path, text
    )
