"""``ctgpu manifest``."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.command_line import run_here, sentence


def test_a_manifest_is_made_again_of_plan_and_records(tmp_path: Path, built: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    before = {name: (folder / name).read_bytes() for name in ("manifest.json", "failures.jsonl")}
    for name in before:
        (folder / name).unlink()
    result = run_here("manifest", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{folder}: 3 of 3 samples in 2 of 2 shards, 0 failed\n"
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_what_is_not_made_yet_is_counted(tmp_path: Path, built: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    for path in folder.glob("shard-000001.*"):
        path.unlink()
    result = run_here("manifest", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 of 3 samples in 1 of 2 shards, 0 failed" in result.stdout


def test_a_folder_that_is_no_data_set_is_one_sentence(tmp_path: Path) -> None:
    result = run_here("manifest", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert str(tmp_path) in sentence(result)
    assert list(tmp_path.iterdir()) == []
