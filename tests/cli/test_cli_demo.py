"""``ctgpu demo``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctgpu.cli import demo
from ctgpu.errors import UsageError
from support.command_line import run, run_here


@pytest.mark.slow
def test_demo_shows_what_came_out(tmp_path: Path) -> None:
    result = run("demo", "--output-dir", tmp_path / "demo", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "What came out" in result.stdout
    assert "valid_3_a_1" in result.stdout
    assert (tmp_path / "demo" / "shards" / "manifest.json").exists()
    page = tmp_path / "demo" / "shards" / "view.html"
    assert result.stdout.splitlines()[-1] == f"Look at them in a browser: {page}"
    assert page.stat().st_size < 5_000_000
    assert page.read_bytes().count(b"<article") == 4


def test_without_pillow_the_demo_says_how_to_have_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(folder: Path) -> None:
        raise UsageError("the pictures of a view need Pillow: install it")

    monkeypatch.setattr(demo, "write_view", missing)
    assert demo.page_of(tmp_path) == (
        "There is no page to look at them: the pictures of a view need Pillow: install it"
    )


def test_demo_does_not_touch_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = run_here("demo", "--output-dir", tmp_path)
    assert result.returncode == 2
    assert "holds other files" in result.stderr
