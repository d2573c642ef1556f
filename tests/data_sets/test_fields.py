"""The fields of a description: which there are, of which types, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from whole_description import HEAD, TABLE, refused

from ctgpu.data_sets.fields import AS_STORED, ArrayRule, TableRule


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


def table(**fields: Any) -> TableRule:
    return TableRule(**({"files": ("t.csv",), "key": "scan"} | fields))


def test_a_key_may_be_one_of_several() -> None:
    assert table().keys == ("scan",)
    assert table(key=("id", "scan")).keys == ("id", "scan")


@pytest.mark.parametrize(
    ("fields", "roles"),
    [
        ({}, ()),
        ({"labels": "rest"}, ("labels",)),
        ({"labels": ()}, ("labels",)),
        ({"text": ("f",), "report": "rest"}, ("text",)),
        ({"spacing_mm": ("h", "w", "d"), "rescale": ("s", "i")}, ("spacing", "rescale")),
        ({"patient": "who", "split": "cohort"}, ("patients", "splits")),
        ({"other_names": ("exam",), "carry": ("age",)}, ("other names", "columns to carry")),
        # These say nothing of their own.
        ({"shape": ("h", "w", "d"), "ignore": ("x",), "label_range": (0.0, 1.0)}, ()),
    ],
)
def test_what_a_table_says_in_words(fields: dict[str, Any], roles: tuple[str, ...]) -> None:
    assert table(**fields).roles == roles


def test_what_is_not_stated_is_not_written() -> None:
    stated = {"files": ["t.csv"], "key": "scan", "text": ["f"]}
    assert json.loads(msgspec.json.encode(table(text=("f",)))) == stated
    assert msgspec.to_builtins(AS_STORED) == {}
    assert msgspec.convert(stated, TableRule) == table(text=("f",))


def test_a_part_is_a_value() -> None:
    assert table() == table()
    assert ArrayRule() == AS_STORED
    with pytest.raises(AttributeError):
        AS_STORED.axes = "DHW"  # type: ignore[misc]
