"""``ctgpu relabel``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.command_line import run_here, sentence
from support.tables import LABELS, all_positive, mend


@pytest.fixture
def out(tmp_path: Path, built: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "out"))


@pytest.fixture
def tables(tmp_path: Path, source: Path) -> Path:
    """The source's tables without its volumes."""
    shutil.copytree(source, tmp_path / "tables", ignore=shutil.ignore_patterns("*.nii.gz"))
    return tmp_path / "tables"


def test_the_command_says_what_it_did(out: Path, tables: Path) -> None:
    mend(tables / LABELS, "valid_3_a_1", all_positive)
    with (tables / LABELS).open("a") as table:
        table.write(all_positive("valid_1_a_1.nii.gz"))
    result = run_here("relabel", out, "--source", tables)
    assert result.returncode == 1
    *left, summary = result.stdout.splitlines()
    assert len(left) == 1
    assert left[0].startswith("valid_1_a_1: ")
    assert summary.endswith(
        "1 of 3 samples relabelled, 1 of 2 shards rewritten; 0 samples without labels; "
        "1 is not as the tables say"
    )


def test_where_nothing_differs_that_is_a_success(out: Path, tables: Path) -> None:
    result = run_here("relabel", out, "--source", tables)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{out}: 0 of 3 samples relabelled, 0 of 2 shards rewritten; 0 samples without labels"
    ]


def test_a_folder_that_is_no_data_set_is_one_sentence(tmp_path: Path) -> None:
    result = run_here("relabel", tmp_path)
    assert result.returncode == 2
    assert str(tmp_path) in sentence(result)
