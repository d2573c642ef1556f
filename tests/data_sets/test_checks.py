"""Descriptions whose fields are of the right types, and wrong all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from whole_description import HEAD, TABLE, WHOLE, refused

from ctgpu.data_sets import BUILT_IN, Description, built_in
from ctgpu.data_sets.checks import compiled_regex, faults_of

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
        "1 column for class_names of 2",
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


def test_of_a_whole_description_nothing_is_wrong() -> None:
    assert list(faults_of(Description.of(WHOLE))) == []
    for name in BUILT_IN:
        assert list(faults_of(built_in(name))) == []


def test_all_faults_are_found_and_not_the_first_alone() -> None:
    data_set = msgspec.structs.replace(
        Description.of(WHOLE), name=" ", default_split="c", class_names=("n", "n")
    )
    assert [field for field, _ in faults_of(data_set)] == ["name", "default_split", "class_names"]


def test_a_regular_expression_is_compiled_once_and_its_dot_is_any_character() -> None:
    assert compiled_regex("a.b") is compiled_regex("a.b")
    assert compiled_regex("a.b").fullmatch("a\nb")
