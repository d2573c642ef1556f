"""What a folder holds, without opening a tar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from view_cases import BROKEN, SCANS, build, members

from ctgpu.errors import NewerFormatError, UsageError
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.viewing.inventory import Inventory, finished_words


def test_of_a_finished_data_set(made: Path) -> None:
    inventory = Inventory.of(made)
    assert [entry.key for _, entry in inventory.entries] == list(SCANS)
    assert [failure.key for failure in inventory.failures] == [BROKEN]
    assert inventory.size_bytes == sum(p.stat().st_size for p in made.glob("*.tar"))
    sizes: dict[str, int] = {}
    for sample in members(made).values():
        for extension, content in sample.items():
            sizes[extension] = sizes.get(extension, 0) + len(content)
    assert inventory.member_bytes() == sizes
    assert inventory.provenance["dataset"] == Plan.load(made).dataset
    assert inventory.provenance["description"] == "study"
    assert inventory.is_finished
    assert list(finished_words(inventory)) == []


def test_no_tar_is_opened(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = os.open

    def noted(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return really(path, *rest, **more)

    monkeypatch.setattr(os, "open", noted)
    Inventory.of(made)
    assert [path for path in opened if path.endswith(".json")]
    assert [path for path in opened if path.endswith(".tar")] == []


def test_a_folder_that_is_not_finished_says_what_is_there(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source, shards=range(1))
    (folder / "shard-000001.tar.partial").touch()
    (words,) = finished_words(Inventory.of(folder))
    assert "holds 1 of 3 planned shards, and 2 of 6 planned samples;" in words
    assert "shards that are begun: 1." in words
    (folder / "manifest.json").unlink()
    assert list(finished_words(Inventory.of(folder))) == [words]


def test_without_the_plan_the_manifest_tells(folder: Path) -> None:
    whole = Inventory.of(folder)
    (folder / "plan.json").unlink()
    inventory = Inventory.of(folder)
    for name in ("dataset", "split", "arithmetic", "source", "selection"):
        assert inventory.provenance[name] == whole.provenance[name]
    assert inventory.entries == whole.entries


def test_a_damaged_plan_or_record_is_a_problem_and_the_rest_is_shown(folder: Path) -> None:
    fingerprint = Plan.load(folder).fingerprint
    (folder / "plan.json").write_text("{")
    (folder / "shard-000001.json").write_text("{")
    record = (folder / "shard-000002.json").read_text()
    (folder / "shard-000002.json").write_text(record.replace(fingerprint, "0" * 16))
    inventory = Inventory.of(folder)
    assert [shard.path.name for shard in inventory.shards] == ["shard-000000.tar"]
    assert not inventory.is_finished
    record_, other, plan = inventory.problems
    assert "shard-000001.json is not the record of its shard" in record_
    assert "has the fingerprint 0000000000000000" in other
    assert "plan.json is damaged" in plan
    assert list(finished_words(inventory))[1:] == [record_, other, plan]


def test_one_of_a_newer_ctgpu_is_refused(folder: Path) -> None:
    card = json.loads((folder / "manifest.json").read_text())
    card["manifest_format"] = "ctgpu-manifest-99"
    (folder / "manifest.json").write_text(json.dumps(card))
    with pytest.raises(NewerFormatError, match=r"manifest\.json"):
        Inventory.of(folder)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none is not there, and the folder of a data set"):
        Inventory.of(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file, and the folder of a data set"):
        Inventory.of(tmp_path / "file")
    with pytest.raises(UsageError, match=r"holds neither plan\.json nor manifest\.json.*build"):
        Inventory.of(tmp_path)
    (tmp_path / "a.tar").touch()
    with pytest.raises(UsageError, match=r"`ctgpu inspect .*` looks at tars of other writers"):
        Inventory.of(tmp_path)


def test_a_data_set_without_a_finished_sample(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source, shards=range(1))
    for path in folder.glob("shard-*"):
        path.unlink()
    write_manifest(folder)
    inventory = Inventory.of(folder)
    assert (inventory.entries, inventory.failures, inventory.size_bytes) == ([], [], 0)
