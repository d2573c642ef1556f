"""What a newer ctgpu wrote is left as it is, by every command, in one sentence that says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ctgpu.cli.commands import app
from ctgpu.errors import NewerFormatError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.manifest import write_manifest

GOLDEN = Path(__file__).parent / "golden/1ecd6b5/plain"
#: A folder whose files are all of the newest version.
NEWEST = Path(__file__).parent / "golden/version-5"

Change = Callable[[str], str]


def state_version_9(text: str) -> str:
    text = re.sub(r"ctgpu-(plan|shard|manifest)-\d", r"ctgpu-\1-9", text)
    return text.replace('"format": "webdataset"', '"manifest_format": "ctgpu-manifest-9"')


def add_unknown_field(text: str) -> str:
    return text.replace('"clip": "before"', '"clip": "before", "denoise": true')


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of the first version, half built, and the source of it."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    write_manifest(tmp_path / "old/shards")
    return tmp_path / "old"


def rewrite(folder: Path, pattern: str, change: Change) -> None:
    for path in folder.glob(pattern):
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


BUILD = "build --output-dir {out} --source {source} --device cpu"
COMMANDS = {
    "resume": BUILD,
    "force": f"{BUILD} --force",
    "retry": f"{BUILD} --retry-failed",
    "one shard": f"{BUILD} --shards 0-0",
    "verify": "verify {out}",
    "compare": "verify {out} --source {source}",
    "compare tars": "verify --preprocessed-pattern {out}/shard-*.tar --original-pattern {source}",
    "inspect": "inspect {out}",
    "manifest": "manifest {out}",
    "view": "view {out} --num-samples 0",
    "export": "export {out} --to npy --samples all --output-dir {other}",
    "index": "export {out} --to energon",
    "relabel": "relabel {out} --source {source}",
    "convert": "convert --input-pattern {out}/shard-*.tar --output-dir {other} --device cpu",
    "go on converting": "convert --input-pattern {source} --output-dir {out} --device cpu",
    "clean": "convert --input-pattern {source} --output-dir {out} --delete-after --dry-run",
}


def run(command: str, old: Path) -> None:
    places = {"out": old / "shards", "source": old / "source", "other": old / "other"}
    result = CliRunner().invoke(app, [word.format(**places) for word in command.split()])
    if result.exception is not None:
        raise result.exception


def assert_left_alone(old: Path, files: str, use: Callable[[], object]) -> None:
    before = bytes_below(old)
    with pytest.raises(NewerFormatError) as caught:
        use()
    sentence = str(caught.value)
    assert re.match(rf"\S*/shards/({files}) was written by a newer ctgpu; update ctgpu", sentence)
    assert "\n" not in sentence
    assert not re.search("remove|again|damaged|copy", sentence)
    assert bytes_below(old) == before
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("change", [state_version_9, add_unknown_field])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_touches_a_folder_of_a_newer_version(
    old: Path, command: str, change: Change
) -> None:
    rewrite(old / "shards", "plan.json", change)
    rewrite(old / "shards", "manifest.json", change)
    if change is state_version_9:
        rewrite(old / "shards", "shard-*.json", change)
    assert_left_alone(old, r"plan\.json|manifest\.json", lambda: run(COMMANDS[command], old))


@pytest.mark.parametrize(
    "command",
    ["resume", "force", "retry", "verify", "manifest", "inspect", "view", "export", "index"],
)
def test_a_record_of_a_newer_version_is_enough(old: Path, command: str) -> None:
    rewrite(old / "shards", "shard-*.json", state_version_9)
    assert_left_alone(old, r"shard-000000\.json", lambda: run(COMMANDS[command], old))


@pytest.mark.parametrize("command", ["verify", "manifest", "convert", "view", "export", "index"])
@pytest.mark.parametrize("change", [state_version_9, add_unknown_field])
def test_a_manifest_of_a_newer_version_is_enough(old: Path, command: str, change: Change) -> None:
    rewrite(old / "shards", "manifest.json", change)
    assert_left_alone(old, r"manifest\.json", lambda: run(COMMANDS[command], old))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("manifest.json", state_version_9),
        ("manifest.json", add_unknown_field),
        ("plan.json", state_version_9),
        ("plan.json", add_unknown_field),
        ("shard-*.json", state_version_9),
    ],
)
def test_a_newer_data_set_is_not_loaded(old: Path, name: str, change: Change) -> None:
    if name == "plan.json":
        (old / "shards/manifest.json").unlink()  # while it is being built
    rewrite(old / "shards", name, change)
    files = name.replace(".", r"\.").replace("*", "000000")
    assert_left_alone(old, files, lambda: VolumeDataset(old / "shards"))


def test_a_newer_data_set_without_shards_is_not_called_unfinished(old: Path) -> None:
    for path in (old / "shards").glob("shard-*"):
        path.unlink()
    (old / "shards/manifest.json").unlink()
    rewrite(old / "shards", "plan.json", state_version_9)
    assert_left_alone(old, r"plan\.json", lambda: VolumeDataset(old / "shards"))


def test_a_manifest_of_another_writer_may_say_what_it_likes(old: Path) -> None:
    path = old / "shards/manifest.json"
    path.write_text(json.dumps({"format": 3, "version": 7, "manifest_format": "other-3"}))
    write_manifest(old / "shards")
    assert json.loads(path.read_bytes())["format"] == "webdataset"


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """A finished folder of the newest version, and the source of it."""
    shutil.copytree(NEWEST / "source", tmp_path / "new/source")
    shutil.copytree(NEWEST / "pack", tmp_path / "new/shards")
    return tmp_path / "new"


@pytest.mark.parametrize("command", [*COMMANDS, "load"])
def test_a_ctgpu_without_compression_leaves_such_a_folder_alone(
    compressed: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"plan": 4, "shard": 3, "manifest": 3}
    monkeypatch.setattr("ctgpu.shards.versions._NEWEST", before)
    files = r"plan\.json|manifest\.json|shard-000000\.json"
    if command == "load":
        assert_left_alone(compressed, files, lambda: VolumeDataset(compressed / "shards"))
    else:
        assert_left_alone(compressed, files, lambda: run(COMMANDS[command], compressed))


@pytest.mark.parametrize(
    ("name", "kind", "newest"),
    [
        ("plan.json", "plan", 5),
        ("shard-000000.json", "shard", 4),
        ("manifest.json", "manifest", 4),
    ],
)
def test_the_version_after_the_newest_is_named(
    compressed: Path, name: str, kind: str, newest: int
) -> None:
    known, unknown = f"ctgpu-{kind}-{newest}", f"ctgpu-{kind}-{newest + 1}"
    rewrite(compressed / "shards", name, lambda text: text.replace(known, unknown))
    with pytest.raises(NewerFormatError) as caught:
        run(COMMANDS["verify"], compressed)
    assert str(caught.value).endswith(
        f"{name} was written by a newer ctgpu; update ctgpu to go on with it "
        f"(its format is {unknown}, and {known} is known)"
    )
