"""``ctgpu demo``."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command_line import run, run_here


@pytest.mark.slow
def test_demo_shows_what_came_out(tmp_path: Path) -> None:
    result = run("demo", "--output-dir", tmp_path / "demo", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "What came out" in result.stdout
    assert "valid_3_a_1" in result.stdout
    assert (tmp_path / "demo" / "shards" / "manifest.json").exists()


def test_demo_does_not_touch_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = run_here("demo", "--output-dir", tmp_path)
    assert result.returncode == 2
    assert "holds other files" in result.stderr
