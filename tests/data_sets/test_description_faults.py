"""What is wrong with a description is named by its file, its line and its field."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_description import refused

from ctgpu.data_sets import Description, named
from ctgpu.errors import UsageError

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


@pytest.mark.parametrize("text", ["", "# nothing\n", 'licence = "x"'])
def test_a_name_is_needed(tmp_path: Path, text: str) -> None:
    assert "mine.toml: name: it is missing" in refused(tmp_path, text)
