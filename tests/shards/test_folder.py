"""The state of a data set's folder, from names and records alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ctgpu.errors import StorageError
from ctgpu.shards.folder import committed_shards, is_committed, remove_leftovers, summaries
from ctgpu.shards.names import record_name
from ctgpu.shards.record import ShardRecord


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


@pytest.mark.slow
def test_ten_thousand_shards(tmp_path: Path) -> None:
    record = ShardRecord(0, "0" * 16, 1024, [])
    for index in range(10_000):
        (tmp_path / record_name(index)).write_bytes(replace(record, shard_index=index).to_json())
        (tmp_path / f"shard-{index:06d}.tar").touch()
    found = summaries(tmp_path)
    assert [summary.shard_index for summary in found] == list(range(10_000))


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
