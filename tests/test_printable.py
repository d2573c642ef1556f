"""What comes from outside is shown, and never obeyed."""

from __future__ import annotations

import ast
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest

import ctgpu
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
    assert counted(1234, "shard", grouped=True) == "1,234 shards"
    assert counted(1234, "shard") == "1234 shards"


THINGS = "samples|shards|volumes|folders|files|tars|tables|studies|columns|rows|classes|tasks|nodes"
MANY = re.compile(rf" (?:(?:planned|finished|more|other|usable) )?(?:{THINGS}|cores|GPUs)\b(?!/s)")
# What stands before them is no number, or never 1.
NEVER_ONE = {
    "building/cleaner.py": ["%s tars"],
    "building/describing.py": ["_VOLUMES"],
    "building/seen_tables.py": ["there"],
    "cli/plan.py": ["way.cores_needed"],
    "decode/dicom_stack.py": ["found"],
    "distribute/ray_driver.py": ["self._in_a_row"],
    "distribute/slurm.py": ["%d tasks"],
    "engines/ctz_on_device.py": ["len(samples)"],
    "engines/cuda.py": ["len(jobs)"],
    "loading/reading.py": ["_MOST_IN_A_ROW"],
    "machine.py": ["hard", "needed"],
    "shards/patterns.py": ["_MOST_TARS"],
    "shards/writer.py": ["len(self.pending)"],
    "sources/base.py": ["len(named)"],
    "sources/folder.py": ["f'{wanted}, or' if wanted else '; wanted'"],
    "sources/hub/source.py": ["', '.join(VOLUME_SUFFIXES)"],
}


def numbered(source: str) -> list[str]:
    """What of a module's texts has a number, or what may be one, before things in the plural."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for before, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(before, ast.FormattedValue) and isinstance(text, ast.Constant):
                    found += [ast.unparse(before.value)] * bool(MANY.match(str(text.value)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(rf"%[ds]{MANY.pattern}", node.value)
    return found


@pytest.mark.slow
def test_no_message_says_1_samples() -> None:
    assert numbered('f"{n} more samples"') == ["n"]
    assert numbered('log("%d shards", n)') == ["%d shards"]
    assert numbered('f"{counted(n)} of {size} files/s"') == []
    root = Path(ctgpu.__file__).parent
    found = {
        str(path.relative_to(root)): said
        for path in root.rglob("*.py")
        if (said := numbered(path.read_text(encoding="utf-8")))
    }
    assert found == NEVER_ONE


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
