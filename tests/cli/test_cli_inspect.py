"""``ctgpu inspect``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctgpu.cli.commands import app
from ctgpu.errors import StorageError, UsageError
from ctgpu.installation import install_command
from support.command_line import run_here, sentence
from support.masks import with_masks


def test_json_holds_no_json(built: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(built), "--json", "--num-samples", "1"])
    facts = json.loads(result.stdout)
    assert facts["engine"]["name"] == "cpu"

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    assert not [text for text in texts(facts) if text.startswith(("{", "[", '"'))]


@pytest.mark.parametrize(
    ("preview", "code", "sentence"),
    [
        ("sheet.xyz", UsageError, r"ends in \.xyz; wanted .*\.png"),
        ("", UsageError, "is a folder; name a file in it"),
        ("none/sheet.png", StorageError, "is no folder that this account may write to"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_shown(
    tmp_path: Path, built: Path, preview: str, code: type[Exception], sentence: str
) -> None:
    pytest.importorskip("matplotlib")
    words = ["inspect", str(built), "--preview", str(tmp_path / preview)]
    result = CliRunner().invoke(app, words)
    assert result.stdout == ""
    assert isinstance(result.exception, code)
    assert re.search(sentence, str(result.exception))


def test_originals_that_are_not_there_are_refused_before_anything_is_shown(
    tmp_path: Path, built: Path
) -> None:
    sheet, none = str(tmp_path / "sheet.png"), str(tmp_path / "none")
    result = CliRunner().invoke(app, ["inspect", str(built), "--preview", sheet, "--source", none])
    assert result.stdout == ""
    assert isinstance(result.exception, UsageError)


def test_without_matplotlib_nothing_is_shown_before_it_is_said(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["inspect", str(built), "--preview", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, words)
    assert result.stdout == ""
    assert isinstance(result.exception, UsageError)
    assert install_command("preview") in str(result.exception)


def test_a_table_shows_what_is_in_a_sample(built: Path) -> None:
    result = run_here("inspect", built, "--num-samples", 1)
    assert (result.returncode, result.stderr) == (0, "")
    assert "valid_1_a_1 in shard-000000.tar" in result.stdout
    for text in ("(90, 90, 50) HWD float16", "(normalised)", "tilted by 0°", "Trachea"):
        assert text in result.stdout
    assert "valid_2_a_1" not in result.stdout


def test_originals_are_of_no_use_without_a_picture(built: Path, source: Path) -> None:
    result = run_here("inspect", built, "--source", source)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--source is what --preview draws" in sentence(result)


def test_each_sample_is_drawn_above_its_original(
    tmp_path: Path, built: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "ctgpu.cli.inspect.draw_sheet", lambda views, path: drawn.extend(v.title for v in views)
    )
    pytest.importorskip("matplotlib")
    sheet = tmp_path / "sheet.png"
    result = run_here(
        *("inspect", built, "--preview", sheet, "--source", source, "--num-samples", 2)
    )
    assert result.returncode == 0, result.stderr
    assert len(drawn) == 4
    assert "valid_1_a_1" in drawn[0]
    assert "valid_2_a_1" in drawn[2]


def test_the_labels_of_a_mask_are_shown_with_their_voxels(built: Path, tmp_path: Path) -> None:
    masked = with_masks(built, tmp_path / "masked")
    words = ["inspect", str(masked), "--num-samples", "1"]
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    shown = " ".join(CliRunner().invoke(app, words).stdout.split())
    assert all(facts["mask"].values())
    for name, count in facts["mask"].items():
        assert f"{name} {count:,}" in shown
    assert "mask" not in CliRunner().invoke(app, ["inspect", str(built)]).stdout


def test_a_compressed_sample_is_shown_as_it_is_without(tmp_path: Path, built: Path) -> None:
    small = tmp_path / "small"
    words = ("convert", "--input-pattern", built, "--output-dir", small, "--compress", "rice")
    assert run_here(*words).returncode == 0
    shown = []
    for folder in (built, small):
        result = run_here("inspect", folder, "--num-samples", 1, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        shown.append(json.loads(result.stdout))
    raw, compressed = shown
    assert raw.pop("members").keys() - {"bin"} == compressed["members"].keys() - {"ctz"}
    assert compressed.pop("members")["ctz"] < 90 * 90 * 50
    assert compressed == raw


@pytest.mark.slow
def test_compressed_samples_are_compared_with_their_originals(
    tmp_path: Path, built: Path, source: Path
) -> None:
    small = tmp_path / "small"
    words = ("convert", "--input-pattern", built, "--output-dir", small, "--compress", "pack")
    assert run_here(*words).returncode == 0
    results = [
        run_here("verify", folder, "--source", source, "--num-samples", "all")
        for folder in (built, small)
    ]
    raw, compressed = results
    assert (compressed.returncode, compressed.stderr) == (0, "")
    assert compressed.stdout == raw.stdout
    assert "3 of 3 samples passed" in compressed.stdout
