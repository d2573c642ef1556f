"""The manifest and the list of failures, derived from plan and records."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import fail, make_plan, write_shard

from ctgpu.errors import StorageError
from ctgpu.shards import folder as folder_module
from ctgpu.shards.folder import failures
from ctgpu.shards.manifest import manifest, write_manifest
from ctgpu.shards.names import FAILURES_NAME, MANIFEST_NAME
from ctgpu.shards.plan import Plan


def test_a_finished_build_is_checked_without_reading_a_tar(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tar in built.glob("*.tar"):
        tar.chmod(0)
    opened: list[str] = []
    real_open = os.open

    def noting(path: object, *args: int, **options: object) -> int:
        opened.append(Path(str(path)).name)
        return real_open(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", noting)
    write_manifest(built)
    assert "shard-000002.json" in opened
    assert not [name for name in opened if name.endswith(".tar")]


def test_the_manifest_has_the_old_fields_and_the_new(built: Path) -> None:
    card = write_manifest(built)
    assert card == json.loads((built / MANIFEST_NAME).read_bytes())
    plan = Plan.load(built)
    assert card["dataset"] == "phantoms"
    assert card["split"] == "valid"
    assert card["format"] == "webdataset"
    assert card["preprocessed"] is True
    assert card["total_shards"] == 3
    assert card["total_samples"] == 8
    assert card["sample_shape"] == [6, 7, 15]
    assert card["layout"] == "HWD"
    assert card["sample_dtype"] == "float16"
    assert card["num_classes"] == 2
    assert card["class_names"] == ["Nodule", "Effusion"]
    assert card["failed_samples"] == 1
    assert card["spec"] == plan.spec.to_dict()
    assert card["fingerprint"] == plan.fingerprint
    assert card["source"] == plan.source
    assert card["shards"][1] == {
        "shard_index": 1,
        "filename": "shard-000001.tar",
        "num_samples": 3,
        "size_bytes": (built / "shard-000001.tar").stat().st_size,
    }


def test_the_shape_is_in_stored_order(tmp_path: Path) -> None:
    plan = make_plan()
    turned = replace(plan, spec=replace(plan.spec, layout="DHW"))
    card = manifest(tmp_path, turned)
    assert (card["sample_shape"], card["layout"]) == ([15, 6, 7], "DHW")


def test_defect_5_a_second_run_does_not_zero_the_manifest(built: Path) -> None:
    write_manifest(built)
    before = {name: (built / name).read_bytes() for name in (MANIFEST_NAME, FAILURES_NAME)}
    write_manifest(built)
    assert {name: (built / name).read_bytes() for name in before} == before


def test_failures_are_derived_from_the_records(built: Path) -> None:
    planned = make_plan(9).samples[5]
    assert failures(built) == [(1, fail(planned))]
    write_manifest(built)
    (line,) = (built / FAILURES_NAME).read_text().splitlines()
    assert json.loads(line) == {
        "shard_index": 1,
        "key": "scan_5",
        "path": "valid/scan.5.npz",
        "stage": "decode",
        "error_class": "DecodeError",
        "message": "not a volume",
        "attempts": 1,
    }
    write_shard(built, make_plan(9), 1, replacing=True)
    assert write_manifest(built)["failed_samples"] == 0
    assert (built / FAILURES_NAME).read_bytes() == b""


def test_a_read_only_folder_is_one_sentence(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(folder_module.disk.os, "open", refuse)
    with pytest.raises(StorageError, match="permission is denied"):
        write_manifest(built)
