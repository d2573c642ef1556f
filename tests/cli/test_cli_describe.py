"""``ctgpu describe``."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ctgpu.cli import describe as describe_command
from ctgpu.cli.commands import app
from ctgpu.data_sets import BUILT_IN, Description, built_in, path_of_built_in
from ctgpu.errors import StorageError, UsageError
from ctgpu.testing.hub import LocalHub
from support.data_set_copies import marked, write_nifti, write_table


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["describe", *map(str, words)])


def refusal(*words: object) -> str:
    result = run(*words)
    assert isinstance(result.exception, UsageError)
    assert result.stdout == ""
    return str(result.exception)


LABEL = "grüße \"\u2028\u202e'\\ 𝄞"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "scans/a.nii.gz", marked(0), codes="LPS")
    write_table(tmp_path / "scans/t.csv", ("id", LABEL), [("a", 1)])
    return tmp_path / "scans"


def test_what_it_prints_can_be_read_and_shows_nothing_raw(source: Path) -> None:
    result = run(source)
    assert result.exit_code == 0
    assert result.stdout.replace("\n", "").isprintable()
    (table,) = Description.of(tomllib.loads(result.stdout)).tables
    assert table.labels == (LABEL,)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "utf-8-sig"])
def test_its_output_is_toml_whatever_the_encoding_of_the_stream(
    source: Path, tmp_path: Path, encoding: str
) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ctgpu.cli", "describe", str(source)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    (tmp_path / "mine.toml").write_bytes(shown.stdout)
    assert Description.load(tmp_path / "mine.toml").tables[0].labels == (LABEL,)


def test_it_writes_a_file_and_never_over_one(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "my own.toml"
    result = run(source, "--output", file)
    assert (result.exit_code, "pass it to --dataset" in result.stdout) == (0, True)
    assert Description.load(file).tables[0].labels == (LABEL,)
    assert f"--dataset '{file}' --output-dir shards" in file.read_text("utf-8")
    before = file.read_bytes()
    assert "is there already" in refusal(source, "--output", file)
    assert file.read_bytes() == before
    (tmp_path / "link.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert "is there already" in refusal(source, "--output", tmp_path / "link.toml")
    assert "let its name end in .toml" in refusal(source, "--output", tmp_path / "mine.txt")
    result = run(source, "--output", tmp_path / "nowhere/mine.toml")
    assert isinstance(result.exception, StorageError)
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "my own.toml", "link.toml"}


def test_a_file_that_came_in_between_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"

    def describe(*_: object, **__: object) -> str:
        file.write_text("another's")
        return "name = 'mine'\n"

    monkeypatch.setattr(describe_command, "describe", describe)
    assert "is there already" in refusal(source, "--output", file)
    assert file.read_text() == "another's"


def test_a_disk_that_is_full_leaves_no_part_of_a_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Any = Path.open

    def open_full(self: Path, mode: str = "r", **options: str) -> object:
        if mode != "x":
            return opened(self, mode, **options)
        self.touch(exist_ok=False)
        return opened(Path("/dev/full"), "w", encoding="utf-8")

    monkeypatch.setattr(Path, "open", open_full)
    result = run(source, "--output", tmp_path / "mine.toml")
    assert isinstance(result.exception, StorageError)
    assert "mine.toml cannot be written: No space left" in str(result.exception)
    assert not (tmp_path / "mine.toml").exists()


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_name_shows_that_file_as_it_is(name: str, tmp_path: Path) -> None:
    packaged = path_of_built_in(name).read_text("utf-8")
    result = run(name)
    assert (result.exit_code, result.stdout) == (0, packaged)
    assert Description.of(tomllib.loads(result.stdout)) == built_in(name)
    assert run(name, "--output", tmp_path / "mine.toml").exit_code == 0
    assert (tmp_path / "mine.toml").read_text("utf-8") == packaged


def test_a_folder_of_a_built_in_name_is_looked_at_and_a_file_is_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("merlin").write_text("a file")
    assert 'name = "Merlin"' in run("merlin").stdout
    Path("merlin").unlink()
    source.rename("merlin")
    assert 'files = ["t.csv"]' in run("merlin").stdout


def test_a_place_that_is_none_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing is not a folder" in refusal(tmp_path / "nothing")
    assert "there is no folder ctrate here, and no description of that name" in refusal("ctrate")
    Path("a.nii.gz").write_bytes(b"a volume")
    assert "a.nii.gz is a file and not a folder" in refusal("a.nii.gz")
    assert "one of the two" in refusal()
    assert "one of the two" in refusal("merlin", "--repo-id", "a/b")
    assert "merlin is built in" in refusal("merlin", "--revision", "main")
    assert "a folder was named" in refusal(tmp_path, "--revision", "main")


def test_a_repository_is_described(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalHub(source, "someone/lungs") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = run("--repo-id", "someone/lungs", "--revision", "main")
        assert result.exit_code == 0
        refused = run("--repo-id", "someone/lungs", "--revision", "nothing")
        assert isinstance(refused.exception, UsageError)
    assert Description.of(tomllib.loads(result.stdout)).repository == "someone/lungs"
    assert "--repo-id someone/lungs --revision main --dataset my-data.toml" in result.stdout
