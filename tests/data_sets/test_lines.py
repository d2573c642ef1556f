"""The line of a TOML file that a message points to."""

from __future__ import annotations

import pytest

from ctgpu.data_sets.lines import line_of

TEXT = '''# name = "no field"
name = "x"  # key = 1
"licence" = "a"
text_separator = """
[volumes]
paths = 1
"""
class_names = [
  "a = b",  # [layout]
  "c]",
]

[ layout ]
root = '[x]'
companions = ["a",
  "hu = 1",
  "b"]

[volumes] # here
paths = ["**"]

[splits.train]
volumes = ["a"]

[splits."a b"]
'volumes' = ["b"]

[[tables]]
files.train = ["a.csv"]
files."valid" = ["b.csv"]
key = "a"

[[ tables ]]
key = "a"
label_words = { yes = 1,  "no" = 0 }
[tables.files]
train = ["c.csv"]

[[leave_out]]
files = []
'''


def number_of(line: str) -> int:
    return TEXT.splitlines().index(line) + 1


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("name", 'name = "x"  # key = 1'),
        ("licence", '"licence" = "a"'),
        ("text_separator", 'text_separator = """'),
        ("class_names", "class_names = ["),
        ("class_names[1]", "class_names = ["),
        ("layout", "[ layout ]"),
        ("layout.root", "root = '[x]'"),
        ("layout.companions[1]", 'companions = ["a",'),
        ("layout.telling", "[ layout ]"),
        ("volumes", "[volumes] # here"),
        ("volumes.paths[0]", 'paths = ["**"]'),
        ("volumes.hu", "[volumes] # here"),
        ("splits", "[splits.train]"),
        ("splits.train", "[splits.train]"),
        ("splits.train.volumes[7]", 'volumes = ["a"]'),
        ("splits.a b.volumes", "'volumes' = [\"b\"]"),
        ("splits.other", "[splits.train]"),
        ("tables", "[[tables]]"),
        ("tables[0]", "[[tables]]"),
        ("tables[0].files", 'files.train = ["a.csv"]'),
        ("tables[0].files.train", 'files.train = ["a.csv"]'),
        ("tables[0].files.valid[0]", 'files."valid" = ["b.csv"]'),
        ("tables[0].text", "[[tables]]"),
        ("tables[1]", "[[ tables ]]"),
        ("tables[1].label_words.no", 'label_words = { yes = 1,  "no" = 0 }'),
        ("tables[1].files", "[tables.files]"),
        ("tables[1].files.train", 'train = ["c.csv"]'),
        ("tables[1].through", "[[ tables ]]"),
        ("tables[2].key", "[[tables]]"),
        ("leave_out[0].files", "files = []"),
    ],
)
def test_a_field_stands_in_its_line(field: str, line: str) -> None:
    assert line_of(TEXT, field) == number_of(line)


def test_the_second_of_two_equal_lines_is_told_from_the_first() -> None:
    found = [line_of(TEXT, f"tables[{place}].key") for place in (0, 1)]
    assert found == [k for k, line in enumerate(TEXT.splitlines(), 1) if line == 'key = "a"']


@pytest.mark.parametrize("field", ["", "arrays", "arrays.axes", "x]", "a.", "[", "[...].a", "\n"])
def test_what_does_not_stand_there_has_no_line(field: str) -> None:
    assert line_of(TEXT, field) is None
    assert line_of("", field) is None


def test_lines_are_counted_as_editors_do() -> None:
    assert line_of('name = "x"\r\nlicence = 1\r\n', "licence") == 2
    # To Python's splitlines these end a line too.
    assert line_of('name = "a\u2028b\x85c"\nlicence = 1', "licence") == 2


@pytest.mark.parametrize(
    "text",
    ["a = '''x\n''' # y\nb = 1", 'a = """\\""" \n"""\nb = 1', 'a = [[1,\n 2], [\n"]"]]\nb = 1'],
)
def test_values_of_several_lines_are_passed_over(text: str) -> None:
    assert line_of(text, "b") == text.count("\n") + 1


def test_what_looks_like_a_section_or_a_field_within_a_list_is_none() -> None:
    text = 'class_names = [\n["layout"]\n]\nname = 1\n[layout]\n'
    assert (line_of(text, "name"), line_of(text, "layout")) == (4, 5)
    assert line_of("tables = [{\nkey = 1,\n}]\nkey = 2\n", "key") == 4


def test_a_long_hostile_text_is_looked_at_once() -> None:
    text = "[" * 50_000 + '"' * 50_000 + "\n" + "a." * 50_000 + "\n" + "x = '''" * 1000 + "\nb = 1"
    assert line_of(text, "volumes.paths") is None
