"""Descriptions as files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_description import WHOLE

from ctgpu.data_sets import BUILT_IN, Description, built_in
from ctgpu.data_sets.writing import Draft, ascii_only, field_line, to_toml

PLACES = (
    *("", "top", "layout", "splits", "splits.a", "splits.train", "volumes", "arrays", "tables"),
    *("tables[0]", "tables[1]", "leave_out", "leave_out[0]", "end"),
)


def read_back(text: str) -> Description:
    return Description.of(tomllib.loads(text))


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_written_reads_back_the_same(name: str, tmp_path: Path) -> None:
    remarks = {place: [f"of {place}", 'orientation = "LPS"'] for place in PLACES}
    for text in (to_toml(built_in(name)), to_toml(built_in(name), remarks)):
        (tmp_path / "mine.toml").write_text(text, "utf-8")
        assert Description.load(tmp_path / "mine.toml") == built_in(name)


def test_every_field_is_written() -> None:
    whole = Description.of(WHOLE)
    assert read_back(to_toml(whole)) == whole
    remarks = {place: [f"of {place}"] for place in PLACES}
    text = to_toml(whole, remarks)
    assert read_back(text) == whole
    # Of all that there is in this description a remark stands somewhere, once.
    places = [place for place in PLACES if place != "splits.train"]
    assert sorted(line for line in text.splitlines() if line.startswith("# of ")) == sorted(
        f"# of {place}" for place in places
    )


def test_remarks_stand_where_they_belong() -> None:
    content = {"name": "mine", "tables": [{"files": ["a.csv"], "key": "k", "labels": "rest"}]}
    remarks = {
        **{"": ["begin"], "top": ["of all"], "tables[0]": ["of a"], "tables": ["of others"]},
        **{"arrays": ["of arrays"], "leave_out": ["of lists"], "end": ["last"]},
    }
    lines = to_toml(Description.of(content), remarks).splitlines()
    found = [line for line in lines if line.startswith(("#", "[", "name"))]
    assert found == [
        *("# begin", 'name = "mine"', "# of all", "# [arrays]", "# of arrays"),
        *("[[tables]]", "# of a", "# of others", "# of lists", "# last"),
    ]


def test_a_long_list_takes_a_line_for_each() -> None:
    names = [f"class {k}" for k in range(30)]
    lines = to_toml(Description.of({"name": "a", "class_names": names})).splitlines()
    assert sum("class " in line for line in lines) == 30


def test_a_sentence_takes_several_lines_and_what_is_offered_one() -> None:
    draft = Draft(Description(name="mine"))
    name = "a-name-that-is-not-broken/" * 6
    draft.say("top", f"{'word ' * 40}{name}\nis here.")
    for words in range(60, 80):
        draft.say("top", f"{'a ' * (words // 2)}`ctgpu describe ct-rate` shows it.")
    draft.offer("top", field_line("carry", ["x" * 200]))
    lines = draft.to_toml().splitlines()
    assert all(len(line) <= 80 for line in lines if "word" in line)
    assert f"# {name}\\nis" in lines
    assert sum("`ctgpu describe ct-rate`" in line for line in lines) == 20
    assert f'# carry = ["{"x" * 200}"]' in lines
    assert read_back(draft.to_toml()) == draft.description
    draft.change(licence="free")
    assert read_back(draft.to_toml()).licence == "free"


texts = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("\"'\\\n\r\t#[]{}=,.\x00\x1b\x7f\x85\xa0\u2028\u202e\ufeff\U000e0001"),
    min_size=1,
    max_size=12,
)
split_names = st.from_regex(r"[\w.-]{1,6}", fullmatch=True)


@pytest.mark.slow
@given(
    key=texts,
    labels=st.lists(texts, min_size=1, max_size=4, unique=True),
    remark=texts,
    splits=st.lists(split_names, max_size=3, unique_by=str.casefold),
)
def test_odd_names_and_remarks_are_kept_apart(
    key: str, labels: list[str], remark: str, splits: list[str]
) -> None:
    table = {"files": ["t.csv"], "key": key, "labels": labels, "label_words": {key: 1.0}}
    content = {"name": f"a{key}", "tables": [table], "splits": {name: {} for name in splits}}
    description = Description.of(content)
    draft = Draft(description, {place: [remark] for place in PLACES})
    draft.say("end", remark)
    text = draft.to_toml()
    assert text.replace("\n", "").isprintable()
    assert read_back(text) == description
    assert ascii_only(text).isascii()
    assert read_back(ascii_only(text)) == description


@pytest.mark.slow
@given(texts)
def test_a_field_that_is_offered_is_one_line_of_toml(value: str) -> None:
    line = field_line("carry", [value, value])
    assert line.isprintable()
    assert tomllib.loads(line) == {"carry": [value, value]}
