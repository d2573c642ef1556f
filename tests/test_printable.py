"""What comes from outside is shown, and never obeyed."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from ctgpu.printable import counted, printable, printable_lines, to_json

REPORT = "Lungs are clear.\u00a0Größe 中文 λ μ ☃ 12 × 8 mm"


def test_numbers_of_things_are_words_of_one_or_of_many() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2, 11)] == [
        "0 shards",
        "1 shard",
        "2 shards",
        "11 shards",
    ]
    assert (counted(1, "axis", "axes"), counted(3, "axis", "axes")) == ("1 axis", "3 axes")


def test_what_can_be_seen_stays_as_it_is() -> None:
    assert printable(REPORT) == REPORT
    assert printable(r"C:\new [b] $x^2$ :smile:") == r"C:\new [b] $x^2$ :smile:"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]8;;http://x\x07", r"\x1b]8;;http://x\x07"),
        ("\x00\x7f", r"\x00\x7f"),
        ("\x9b31m\x85", r"\u009b31m\u0085"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\u200b\u200f\ufeff\u061c", r"\u200b\u200f\ufeff\u061c"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\udcff\udc80", r"\xff\x80"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_or_a_reader_of_lines_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.slow
def test_nothing_that_is_not_printable_is_left_in_all_of_unicode() -> None:
    for first in range(0, sys.maxunicode + 1, 1 << 12):
        shown = printable("".join(map(chr, range(first, first + (1 << 12)))))
        left = {c for c in shown if not c.isprintable()}
        assert all(unicodedata.category(c) == "Zs" for c in left)


def test_a_block_keeps_its_lines_and_each_is_indented() -> None:
    text = "one\r\ntwo\x1b[31m\n2026-01-01 INFO forged\x0b\u2028"
    shown = printable_lines(text, indent="    ")
    assert shown.split("\n") == [
        "    one",
        r"    two\x1b[31m",
        r"    2026-01-01 INFO forged\x0b\u2028",
    ]


def test_json_is_ascii_that_gives_back_what_was_put_in() -> None:
    value = {"a\x1b": [REPORT, "\x7f\x9b\u202e\n", 1, 2.5, None, True], "t": ("x",)}
    line = to_json(value)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == value | {"t": ["x"]}


def test_what_json_does_not_have_is_null_or_text() -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    line = to_json({"m": float("nan"), "n": [-float("inf")], "name": "x\udcff", "\udcfe": 1})
    assert json.loads(line, parse_constant=refuse) == {
        "m": None,
        "n": [None],
        "name": r"x\xff",
        r"\xfe": 1,
    }
