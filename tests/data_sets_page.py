"""docs/data_sets.md, taken apart for its tests."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs/data_sets.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """What stands below a heading, up to the next one."""
    _, found, after = PAGE.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"\n##+ ", after)[0]


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code in a language; ``""`` for those that state none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for stated, block in found if stated == language]


def rows(text: str, number: int = 0) -> list[list[str]]:
    """The cells of a table's rows, without its header; of several tables, of one by its number."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
