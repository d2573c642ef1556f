"""Prose at the width of a terminal."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from ctgpu.cli.wrapping import wrap

TEXT = (
    "A sample that cannot be made is left out; `ctgpu build --retry-failed` makes it again, and "
    "/a/path/that/is/rather/long/valid_1_a_1.nii.gz says more (`ctgpu presets`)."
)


@pytest.mark.parametrize("width", [1, 20, 40, 80, 1000])
def test_no_word_and_no_command_is_broken_or_lost(width: int) -> None:
    lines = wrap(TEXT, width)
    assert " ".join(lines) == TEXT
    text = "\n".join(lines)
    for whole in ("`ctgpu build --retry-failed`", "/valid_1_a_1.nii.gz", "(`ctgpu presets`)."):
        assert whole in text
    # Beyond the width goes what is too long by itself, and nothing beside it.
    for line in lines:
        assert cell_len(line) <= width or " " not in re.sub("`.*?`", "", line)


def test_lines_are_as_full_as_they_can_be() -> None:
    assert wrap("aa bb cc dd", 5) == ["aa bb", "cc dd"]
    assert wrap("aa bb cc dd", 6, " ", "- ") == ["- aa", " bb cc", " dd"]
    assert wrap("", 5, first="x") == ["x"]


def test_wide_characters_take_two_columns() -> None:
    assert wrap("肺肺 肺肺", 8) == ["肺肺", "肺肺"]
    assert wrap("肺肺 肺肺", 9) == ["肺肺 肺肺"]
