"""What docs/data_sets.md tells of the fields of a description, and of the built-in ones."""

from __future__ import annotations

import json
import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from ctgpu.data_sets import BUILT_IN, Description, built_in
from ctgpu.data_sets.fields import Part, TableRule
from data_sets_page import PAGE, rows, section


def type_in_words(kind: Any) -> str:
    """A field's type, as the page calls it."""
    words = choices(kind)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def choices(kind: Any) -> list[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [word for one in arguments if one is not type(None) for word in choices(one)]
    if origin is Literal:
        return [f'`"{value}"`' for value in arguments]
    if origin is tuple:
        (word,) = choices(arguments[0])
        return [f"{word}s" if arguments[-1] is ... else f"{len(arguments)} {word}s"]
    if origin is dict:
        first, *more = choices(arguments[1])
        return [" or ".join([f"{first.removesuffix('s')}s", *more]) + " by name"]
    if isinstance(kind, type) and issubclass(kind, Part):
        return ["section"]
    return [{str: "text", float: "number", int: "whole number"}[kind]]


def default_in_words(one: msgspec.structs.FieldInfo) -> str:
    """A field's default, as the page writes it."""
    if one.required:
        return "needed"
    value = one.default_factory() if one.default is msgspec.NODEFAULT else one.default  # type: ignore[misc]
    if value is None:
        return "none"
    is_section = "section" in type_in_words(one.type)
    return "–" if is_section else f"`{json.dumps(value)}`"


def parts_of(kind: type[Part]) -> dict[str, type[Part]]:
    """Sections of a description by the name of their field."""
    found = {}
    for one in msgspec.structs.fields(kind):
        for inner in (one.type, *get_args(one.type)):
            if isinstance(inner, type) and issubclass(inner, Part):
                found[one.name] = inner
    return found


def test_every_field_stands_there_with_its_type_and_default() -> None:
    kinds: dict[str, type[Part]] = {"Description": Description, **parts_of(Description)}
    assert list(kinds)[1:] == [
        "layout",
        "splits",
        "volumes",
        "arrays",
        "masks",
        "tables",
        "leave_out",
    ]
    for name, kind in kinds.items():
        hints = get_type_hints(kind)
        wanted = [
            [f"`{one.name}`", type_in_words(hints[one.name]), default_in_words(one)]
            for one in msgspec.structs.fields(kind)
        ]
        table = rows(section(f"### {name}"))
        assert [row[:3] for row in table] == wanted, name
        assert all(len(row) == 4 and len(row[3]) > 8 for row in table), name


def test_no_class_of_a_description_is_without_a_table() -> None:
    def reached(kind: type[Part]) -> set[type[Part]]:
        inner = set(parts_of(kind).values())
        return inner.union(*map(reached, inner)) if inner else inner

    assert reached(Description) | {Description} == set(Part.__subclasses__())


def test_the_built_in_ones_are_listed_and_no_others() -> None:
    text = PAGE.partition("\n## The built-in ones\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^### (\S+)$", text, re.MULTILINE)) == sorted(BUILT_IN)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "plain"])
def test_a_built_in_one_is_as_the_page_has_it(name: str) -> None:
    data_set, text = built_in(name), section(f"### {name}")
    for split in data_set.splits:
        assert f"`{split}`" in text, split
    for rule in data_set.rules_of_files:
        files = rule.files.values() if isinstance(rule.files, dict) else [rule.files]
        for path in (paths[0] for paths in files):
            file = path.rsplit("/", 1)[-1]
            # "imgvalid_…" stands for the rest of a name that was spelt out before.
            assert file in text or f"{file.partition('_')[0]}_…" in text, path
        if isinstance(rule, TableRule):
            columns = {*rule.text, *rule.spacing_mm, *(rule.rescale or ()), *(rule.shape or ())}
            columns |= {*rule.other_names, rule.patient, rule.split, rule.keys[0]} - {None}
            for column in columns:
                assert f"`{column}`" in text, column
    licence = re.split(r"[;,]", data_set.licence)[0]
    assert licence in text or "see the record" in text


def test_what_it_says_of_single_ones_holds() -> None:
    assert f"the {len(built_in().class_names)} abnormalities" in section("### ct-rate")
    merlin, inspect, rad = (built_in(name) for name in ("merlin", "inspect", "rad-chestct"))
    (labels,) = [table for table in merlin.tables if table.labels]
    assert f"Labels: {len(merlin.class_names)} findings" in section("### merlin")
    assert labels.label_words["-1"] == "unknown"
    for column in inspect.class_names:
        assert f"`{column}`" in section("### inspect")
    (labels,) = [table for table in inspect.tables if table.labels]
    assert labels.label_words["censored"] == "unknown"
    text = section("### rad-chestct")
    assert f"(`{rad.volumes.orientation}`)" in text
    assert f"`{rad.arrays.member}` has axes {', '.join(rad.arrays.axes)}" in text
    assert rad.arrays.spacing_mm == (0.8, 0.8, 0.8)
    assert rad.tables[0].label_separator == "*"
    assert all(one.repository is None for one in (merlin, inspect, rad))
