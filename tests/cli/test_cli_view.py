"""``ctgpu view``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ctgpu.cli.view import lines_about
from ctgpu.viewing import Viewed
from support.command_line import run_here, sentence

pytest.importorskip("PIL.Image")

REPORT = "Trachea"


@pytest.fixture
def folder(tmp_path: Path, built: Path) -> Path:
    return shutil.copytree(built, tmp_path / "out")


def test_it_says_what_it_wrote(folder: Path) -> None:
    result = run_here("view", folder)
    page = folder / "view.html"
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{page}: ")
    assert result.stdout.endswith("; open it in a browser\n")
    assert "in pictures" in result.stdout
    assert page.stat().st_size < 5_000_000


def test_reports_are_in_the_page_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    pages = tmp_path / "without.html", tmp_path / "with.html"
    for page, flags in zip(pages, ((), ("--reports",)), strict=True):
        assert (
            run_here("view", folder, "--output", page, "--num-samples", 1, *flags).returncode == 0
        )
    assert [REPORT in page.read_text("utf-8") for page in pages] == [False, True]
    assert not (folder / "view.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (["{tmp}/none"], 2, "is not there, and the folder of a data set is wanted"),
        (["{tmp}"], 2, "is no data set of ctgpu"),
        (["{out}", "--output", "{out}/plan.json"], 2, "is no page of `ctgpu view`"),
        (["{out}", "--output", "{tmp}/none/x.html"], 2, "there is no folder"),
        (
            ["{out}", "--num-samples", "-1"],
            2,
            "--num-samples is -1; it takes a whole number from 0",
        ),
        (["{out}", "--num-samples", "x"], 2, "--num-samples"),
        ([], 2, "DIR"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, folder: Path, words: list[str], code: int, wanted: str
) -> None:
    result = run_here("view", *(word.format(tmp=tmp_path, out=folder) for word in words))
    assert result.returncode == code
    assert wanted in sentence(result)
    assert result.stdout == ""


def test_what_there_was_no_room_for_and_what_is_damaged_is_said() -> None:
    viewed = Viewed(
        Path("x.html"), 4_900_000, 90, 100, read=88, shown=7, asked=40, slices=8, damaged=2
    )
    assert lines_about(viewed) == [
        "x.html: 90 of 100 planned samples, 7 of them in pictures, 4.9 MB; open it in a browser",
        "there was no room for 40 samples, as was asked for",
        "damaged samples: 2, as the page says; `ctgpu verify` finds all damage",
    ]
