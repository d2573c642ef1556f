from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import fail, make_plan, write_shard

from ctgpu.errors import StorageError
from ctgpu.shards import folder as folder_module
from ctgpu.shards.folder import (
    committed_shards,
    failures,
    is_committed,
    remove_leftovers,
    summaries,
)
from ctgpu.shards.manifest import manifest, write_manifest
from ctgpu.shards.names import (
    FAILURES_NAME,
    MANIFEST_NAME,
    natural_key,
    parse_shard_name,
    record_name,
)
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Nine samples in three shards; one failed."""
    plan = make_plan(9)
    Plan.create(tmp_path, plan)
    for index in range(plan.shards):
        write_shard(tmp_path, plan, index, failing=("scan_5",))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("shard-000012.tar", (12, "tar")),
        ("shard-1234567.json", (1234567, "json")),
        ("shard-000000.tar.partial", (0, "tar.partial")),
        ("shard-000000.journal", (0, "journal")),
        ("shard-00001.tar", None),
        # Not what the shard is called; another file would be opened in its place.
        ("shard-0000001.tar", None),
        ("shard-٠٠٠٠٠١.tar", None),
        ("shard-000001.tar.gz", None),
        ("manifest.json", None),
    ],
)
def test_names(name: str, parsed: tuple[int, str] | None) -> None:
    assert parse_shard_name(name) == parsed


def test_names_of_any_number_of_digits_have_an_order() -> None:
    names = ["a" + "9" * 6000, "a10", "a9", "a" + "0" * 6000]
    assert sorted(names, key=natural_key)[:3] == ["a" + "0" * 6000, "a9", "a10"]


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.json"])
def test_what_is_no_file_is_no_finished_shard(built: Path, name: str) -> None:
    (built / name).unlink()
    (built / name).mkdir()
    with pytest.raises(StorageError, match=f"{name} is no file"):
        committed_shards(built)


def test_a_shard_is_committed_by_tar_and_record(built: Path) -> None:
    assert committed_shards(built) == [0, 1, 2]
    (built / "shard-000001.tar").unlink()
    (built / "shard-000002.json").unlink()
    assert committed_shards(built) == [0]
    assert [is_committed(built, index) for index in range(4)] == [True, False, False, False]


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


def test_ten_thousand_shards(tmp_path: Path) -> None:
    record = ShardRecord(0, "0" * 16, 1024, [])
    for index in range(10_000):
        (tmp_path / record_name(index)).write_bytes(replace(record, shard_index=index).to_json())
        (tmp_path / f"shard-{index:06d}.tar").touch()
    found = summaries(tmp_path)
    assert [summary.shard_index for summary in found] == list(range(10_000))


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


def test_only_leftovers_are_removed(built: Path) -> None:
    before = set(os.listdir(built))
    for name in ("shard-000000.journal", ".x.ctgpu-tmp", ".y.ctgpu-tmp"):
        (built / name).touch()
    os.utime(built / ".x.ctgpu-tmp", (0, 0))
    # An interrupted retry, and a shard in work.
    kept = {"shard-000001.journal", "shard-000001.tar.partial", "shard-000007.journal"}
    for name in kept:
        (built / name).touch()
    remove_leftovers(built)
    assert set(os.listdir(built)) == before | kept | {".y.ctgpu-tmp"}


def test_a_folder_that_vanished_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        committed_shards(tmp_path / "gone")


def test_a_read_only_folder_is_one_sentence(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(folder_module.disk.os, "open", refuse)
    with pytest.raises(StorageError, match="permission is denied"):
        write_manifest(built)
