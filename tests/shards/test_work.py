"""One shard's part of a run: what it still needs, and what becomes of each result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import MASKS, fail, make_plan, pack, write_shard

from ctgpu.buffers import BufferPool
from ctgpu.codec import Coding
from ctgpu.errors import StorageError
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.work import NewShard, RetriedShard, is_same, samples_to_make

PLAN = make_plan(masks=MASKS)
FAILED = ("scan_1", "scan_3")


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    """A pool that has all of its memory back at the end."""
    pool = BufferPool()
    yield pool
    assert pool.lent_bytes == 0


def held() -> None:
    """For `confirm`: the lease is ours."""


def keys(work: NewShard | RetriedShard) -> list[str]:
    return [sample.key for sample in work.todo]


def retried(folder: Path, pool: BufferPool) -> RetriedShard:
    return RetriedShard(folder, PLAN, 0, held, pool)


def whole(folder: Path) -> bytes:
    """The tar of a shard of which nothing failed."""
    folder.mkdir()
    write_shard(folder, PLAN)
    return (folder / "shard-000000.tar").read_bytes()


def test_a_shard_needs_all_of_its_samples_or_those_that_failed(tmp_path: Path) -> None:
    for retry_failed in (False, True):
        assert samples_to_make(tmp_path, PLAN, 0, force=False, retry_failed=retry_failed) == 4
    write_shard(tmp_path, PLAN, failing=FAILED)
    assert samples_to_make(tmp_path, PLAN, 0, force=False, retry_failed=True) == 2
    assert samples_to_make(tmp_path, PLAN, 0, force=True, retry_failed=True) == 4
    (tmp_path / "shard-000000.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match="is not the record of its shard"):
        samples_to_make(tmp_path, PLAN, 0, force=False, retry_failed=True)


def test_a_new_shard_takes_samples_and_failures_in_their_order(tmp_path: Path) -> None:
    work = NewShard(tmp_path, PLAN, 0, held)
    assert keys(work) == ["scan_0", "scan_1", "scan_2", "scan_3"]
    for sample in PLAN.samples[:3]:
        work.take(fail(sample) if sample.key in FAILED else pack(PLAN, sample))
    work.abandon()
    # Another run goes on from there.
    work = NewShard(tmp_path, PLAN, 0, held)
    assert keys(work) == ["scan_3"]
    work.take(fail(PLAN.samples[3]))
    record = work.finish({"engine": "test"})
    work.abandon()
    (other := tmp_path / "other").mkdir()
    assert record == write_shard(other, PLAN, failing=FAILED)


def test_a_shard_that_is_made_again_begins_with_its_first_sample(tmp_path: Path) -> None:
    write_shard(tmp_path, PLAN, failing=FAILED)
    work = NewShard(tmp_path, PLAN, 0, held, replace=True)
    assert len(work.todo) == 4
    for sample in work.todo:
        work.take(pack(PLAN, sample))
    assert work.finish({}).failures == []
    assert (tmp_path / "shard-000000.tar").read_bytes() == whole(tmp_path / "whole")


def test_failed_samples_that_come_right_are_put_in_their_places(
    tmp_path: Path, pool: BufferPool
) -> None:
    old = write_shard(tmp_path, PLAN, failing=FAILED)
    work = retried(tmp_path, pool)
    assert keys(work) == list(FAILED)
    for sample in work.todo:
        work.take(pack(PLAN, sample))
    record = work.finish({})
    with open(os.devnull, "rb"):  # may have the number that the tar had
        work.abandon()
    assert [sample.key for sample in record.samples] == [sample.key for sample in PLAN.samples]
    assert record.failures == []
    assert (tmp_path / "shard-000000.tar").read_bytes() == whole(tmp_path / "whole")
    kept = {sample.key: sample for sample in record.samples}
    assert all(is_same(sample, kept[sample.key]) for sample in old.samples)
    assert not is_same(kept["scan_0"], kept["scan_1"])


def test_what_fails_once_more_is_counted_and_no_tar_is_written(
    tmp_path: Path, pool: BufferPool
) -> None:
    write_shard(tmp_path, PLAN, failing=FAILED)
    tar = tmp_path / "shard-000000.tar"
    before = tar.stat().st_ino, tar.read_bytes()
    work = retried(tmp_path, pool)
    for sample in work.todo:
        work.take(replace(fail(sample), message="again"))
    record = work.finish({})
    assert [(f.key, f.message, f.attempts) for f in record.failures] == [
        ("scan_1", "again", 2),
        ("scan_3", "again", 2),
    ]
    assert ShardRecord.load(tmp_path / "shard-000000.json") == record
    assert (tar.stat().st_ino, tar.read_bytes()) == before


def test_one_that_fails_again_is_left_out_behind_one_that_does_not(
    tmp_path: Path, pool: BufferPool
) -> None:
    write_shard(tmp_path, PLAN, failing=FAILED)
    work = retried(tmp_path, pool)
    work.take(pack(PLAN, work.todo[0]))
    work.take(fail(work.todo[1]))
    record = work.finish({})
    assert [sample.key for sample in record.samples] == ["scan_0", "scan_1", "scan_2"]
    assert [(failure.key, failure.attempts) for failure in record.failures] == [("scan_3", 2)]


def test_a_retry_that_is_left_changes_nothing_and_the_next_goes_on(
    tmp_path: Path, pool: BufferPool
) -> None:
    write_shard(tmp_path, PLAN, failing=FAILED)
    before = {name: (tmp_path / f"shard-000000.{name}").read_bytes() for name in ("tar", "json")}
    work = retried(tmp_path, pool)
    work.take(pack(PLAN, work.todo[0]))
    work.abandon()
    for name, content in before.items():
        assert (tmp_path / f"shard-000000.{name}").read_bytes() == content
    again = retried(tmp_path, pool)
    for sample in again.todo:
        again.take(pack(PLAN, sample))
    again.finish({})
    assert (tmp_path / "shard-000000.tar").read_bytes() == whole(tmp_path / "whole")


def test_a_good_sample_that_was_damaged_is_not_copied(tmp_path: Path, pool: BufferPool) -> None:
    record = write_shard(tmp_path, PLAN, failing=FAILED)
    with (tmp_path / "shard-000000.tar").open("r+b") as tar:
        tar.seek(record.samples[0].members["bin"].offset)
        tar.write(b"\xff\xff")
    work = retried(tmp_path, pool)
    with pytest.raises(
        StorageError, match=r"checksum.*remove shard-000000\.tar and shard-000000\.js"
    ):
        work.take(pack(PLAN, work.todo[0]))
    work.abandon()


def test_compressed_samples_are_copied_as_they_are(tmp_path: Path, pool: BufferPool) -> None:
    plan = replace(PLAN, compression="rice")
    old = write_shard(tmp_path, plan, failing=FAILED)
    work = RetriedShard(tmp_path, plan, 0, held, pool)
    for sample in work.todo:
        work.take(pack(plan, sample))
    record = work.finish({})
    kept = {sample.key: sample for sample in record.samples}
    assert all(is_same(sample, kept[sample.key]) for sample in old.samples)
    (other := tmp_path / "other").mkdir()
    assert replace(write_shard(other, plan), run={}) == replace(record, run={})
    name = "shard-000000.tar"
    assert (tmp_path / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("made", [None, "pack"])
def test_a_shard_from_a_folder_of_another_compression_is_not_retried(
    made: Coding | None, tmp_path: Path, pool: BufferPool
) -> None:
    write_shard(tmp_path, replace(PLAN, compression=made), failing=FAILED)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found, wanted = ("compressed", "none") if made else ("not compressed", "rice")
    with pytest.raises(
        StorageError,
        match=rf"shard-000000\.tar holds volumes that are {found}, and the compression of the plan "
        rf"beside it is {wanted}: remove it and shard-000000\.json",
    ):
        RetriedShard(tmp_path, replace(PLAN, compression=None if made else "rice"), 0, held, pool)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_who_has_lost_the_lease_changes_no_record(tmp_path: Path, pool: BufferPool) -> None:
    def lost() -> None:
        raise StorageError("the lease is lost")

    write_shard(tmp_path, PLAN, failing=FAILED)
    record = tmp_path / "shard-000000.json"
    before = record.read_bytes()
    work = RetriedShard(tmp_path, PLAN, 0, lost, pool)
    for sample in work.todo:
        work.take(fail(sample))
    with pytest.raises(StorageError, match="the lease is lost"):
        work.finish({})
    work.abandon()
    assert record.read_bytes() == before
