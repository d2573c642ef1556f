from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import MASKS, fail, make_plan, pack, room_for, write_shard

from ctgpu.errors import StorageError
from ctgpu.shards import writer as writer_module
from ctgpu.shards.folder import is_committed
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.writer import ShardWriter


def _open(folder: Path, plan: Plan, **options: Any) -> ShardWriter:
    return ShardWriter(folder, plan, 0, **options)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_shard_is_tar_index_and_record_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    record = write_shard(tmp_path, plan, failing=("scan_3",))
    assert sorted(os.listdir(tmp_path)) == [
        "shard-000000.idx",
        "shard-000000.json",
        "shard-000000.tar",
    ]
    assert ShardRecord.load(tmp_path / "shard-000000.json") == record
    assert [s.key for s in record.samples] == ["scan_0", "scan_1", "scan_2"]
    assert [s.study_id for s in record.samples] == ["scan.0", "scan.1", "scan.2"]
    assert list(record.failures) == [fail(plan.samples[3])]
    assert record.size_bytes == (tmp_path / "shard-000000.tar").stat().st_size
    assert record.run == {"engine": "test"}


def test_nothing_has_a_final_name_before_the_commit(plan: Plan, tmp_path: Path) -> None:
    with_samples = _open(tmp_path, plan)
    with_samples.append(pack(plan, plan.samples[0]))
    with_samples.abandon()
    assert sorted(os.listdir(tmp_path)) == ["shard-000000.journal", "shard-000000.tar.partial"]
    assert not is_committed(tmp_path, 0)


def test_resume_goes_on_after_the_last_intact_sample(plan: Plan, tmp_path: Path) -> None:
    first = _open(tmp_path, plan)
    entries = [first.append(pack(plan, plan.samples[0]))]
    first.skip(fail(plan.samples[1]))
    entries.append(first.append(pack(plan, plan.samples[2])))
    first.abandon()
    second = _open(tmp_path, plan)
    assert second.done == entries
    assert second.failed == [fail(plan.samples[1])]
    assert list(second.pending) == [plan.samples[3]]
    second.abandon()


@pytest.mark.parametrize(
    ("position", "kept"),
    [
        *(("bin", 1), ("seg", 1), ("cls", 1), ("txt", 1), ("json", 1)),
        *(("header", 1), ("padding", 1), ("end", 2)),
    ],
)
def test_resume_believes_no_damaged_byte(
    position: str, kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(masks=MASKS)
    first = _open(tmp_path, plan)
    for sample in plan.samples[:2]:
        entry = first.append(pack(plan, sample))
    first.abandon()
    offset = {
        "header": entry.start + 600,
        "padding": entry.end - 1,
        "end": entry.end + 5,
        **{extension: member.offset for extension, member in entry.members.items()},
    }[position]
    with (tmp_path / "shard-000000.tar.partial").open("r+b") as file:
        file.seek(offset)
        old = file.read(1) or b"\0"
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))
    with caplog.at_level(logging.WARNING):
        second = _open(tmp_path, plan)
    assert len(second.done) == kept
    assert ("it is made again" in caplog.text) == (kept == 1)
    second.abandon()
    write_shard(tmp_path, plan)
    (undisturbed := tmp_path / "undisturbed").mkdir()
    write_shard(undisturbed, plan)
    assert (tmp_path / "shard-000000.tar").read_bytes() == (
        undisturbed / "shard-000000.tar"
    ).read_bytes()


def test_bytes_of_a_dropped_sample_are_no_part_of_the_tar(tmp_path: Path) -> None:
    plan = make_plan(2)
    first = _open(tmp_path, plan)
    first.append(pack(plan, plan.samples[0]))
    first.append(pack(plan, plan.samples[1]))
    first.abandon()
    journal = tmp_path / "shard-000000.journal"
    journal.write_bytes(journal.read_bytes()[:-1])
    record = write_shard(tmp_path, plan, failing=("scan_1",))
    assert [entry.key for entry in record.samples] == ["scan_0"]
    assert (tmp_path / "shard-000000.tar").stat().st_size == record.size_bytes


def test_samples_come_in_the_order_of_the_plan(plan: Plan, tmp_path: Path) -> None:
    shard = _open(tmp_path, plan)
    with pytest.raises(ValueError, match="not the next sample"):
        shard.append(pack(plan, plan.samples[1]))
    with pytest.raises(ValueError, match="still pending"):
        shard.commit({})
    shard.abandon()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to drop cached pages here")
def test_what_is_believed_was_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write-back, cached pages look right and are nowhere else."""
    plan = make_plan()
    first = _open(tmp_path, plan)
    first.append(pack(plan, plan.samples[0]))
    first.abandon()
    partial = tmp_path / "shard-000000.tar.partial"
    advice: list[tuple[int, int, int]] = []

    def lose(fd: int, offset: int, length: int, advised: int) -> None:
        advice.append((offset, length, advised))
        partial.write_bytes(bytes(partial.stat().st_size))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lose)
        second = _open(tmp_path, plan)
    assert advice == [(0, 0, os.POSIX_FADV_DONTNEED)]
    assert second.done == []
    second.abandon()


def test_a_committed_shard_is_not_written_by_accident(plan: Plan, tmp_path: Path) -> None:
    write_shard(tmp_path, plan)
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="is committed"):
        _open(tmp_path, plan)
    assert _files(tmp_path) == before


def test_replacing_keeps_the_old_shard_until_the_new_one_is_complete(
    plan: Plan, tmp_path: Path
) -> None:
    old = write_shard(tmp_path, plan, failing=("scan_1",))
    before = _files(tmp_path)
    shard = _open(tmp_path, plan, replace=True)
    good = {entry.key: entry for entry in old.samples}
    with ShardReader(tmp_path / "shard-000000.tar") as reader:
        for sample in shard.pending:
            if sample.key in good:
                shard.append(reader.copy_sample(good[sample.key], *room_for(good[sample.key])))
            else:
                shard.append(pack(plan, sample))
            assert {name: (tmp_path / name).read_bytes() for name in before} == before
    shard.commit({"engine": "test"})
    (whole := tmp_path / "whole").mkdir()
    write_shard(whole, plan)
    for name in before:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_record_without_its_tar_commits_nothing(plan: Plan, tmp_path: Path) -> None:
    write_shard(tmp_path, plan)
    (tmp_path / "shard-000000.tar").unlink()
    assert not is_committed(tmp_path, 0)
    shard = _open(tmp_path, plan)
    assert not (tmp_path / "shard-000000.json").exists()
    shard.abandon()


def test_labels_that_are_all_nan_are_counted(tmp_path: Path) -> None:
    plan = make_plan(2)
    shard = _open(tmp_path, plan)
    shard.append(pack(plan, plan.samples[0]))
    nothing = np.full(2, np.nan, "<f4").tobytes()
    shard.append(replace(pack(plan, plan.samples[1]), labels=nothing))
    assert shard.commit({}).summary.num_unlabelled == 1


class _WithoutDirectIo:
    """Behaves as ``os`` on a file system that refuses ``O_DIRECT`` in `where`."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._direct: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        if name == "O_DIRECT" and self._where == "system":
            raise AttributeError(name)
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if not flags & getattr(os, "O_DIRECT", 0):
            return os.open(path, flags, mode)
        if self._where == "open":
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        fd = os.open(path, flags & ~os.O_DIRECT, mode)
        self._direct.add(fd)
        return fd

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fd in self._direct:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return os.pwrite(fd, data, offset)


@pytest.mark.parametrize("where", ["system", "open", "write", "buffer"])
def test_the_same_bytes_without_direct_io(
    where: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (direct := tmp_path / "direct").mkdir()
    write_shard(direct, plan)
    (buffered := tmp_path / "buffered").mkdir()
    if where == "buffer":
        shard = _open(buffered, plan)
        for sample in plan.samples:
            packed = pack(plan, sample)
            unaligned = np.empty(packed.volume.size + 8, np.uint8)
            unaligned = unaligned[1 + (unaligned.ctypes.data % 2 == 1) :][: packed.volume.size]
            unaligned[:] = packed.volume
            assert unaligned.ctypes.data % 4096
            shard.append(replace(packed, volume=unaligned))
        shard.commit({"engine": "test"})
    else:
        stand_in = _WithoutDirectIo(where)
        monkeypatch.setattr(writer_module, "os", stand_in)
        monkeypatch.setattr(writer_module.disk, "os", stand_in)
        write_shard(buffered, plan)
    assert _files(buffered) == _files(direct)


def test_a_volume_that_is_in_a_file_already_is_copied_from_there(
    plan: Plan, tmp_path: Path
) -> None:
    for name in ("written", "copied"):
        (tmp_path / name).mkdir()
    write_shard(tmp_path / "written", plan)
    shard = _open(tmp_path / "copied", plan)
    for sample in plan.samples:
        packed = pack(plan, sample)
        (tmp_path / sample.key).write_bytes(packed.volume.tobytes() + b"and more")
        nothing = np.zeros_like(packed.volume)
        shard.append(replace(packed, volume=nothing, volume_file=tmp_path / sample.key))
    shard.commit({"engine": "test"})
    assert _files(tmp_path / "copied") == _files(tmp_path / "written")


def test_an_io_error_is_not_taken_for_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    shard = _open(tmp_path, plan)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.disk.os, "pwrite", refuse)
        with pytest.raises(StorageError, match="no space is left"):
            shard.append(pack(plan, plan.samples[0]))
    assert shard.done == []
    # Space was freed: the very same writer can go on.
    shard.append(pack(plan, plan.samples[0]))
    shard.abandon()
    again = _open(tmp_path, plan)
    assert len(again.done) == 1
    again.abandon()


@pytest.mark.parametrize("gone", [True, False], ids=["vanished", "a_file"])
def test_a_folder_that_is_not_there_is_one_sentence(gone: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if not gone:
        folder.write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        _open(folder, make_plan())


def test_a_path_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose a shorter output folder"):
        _open(tmp_path / ("x" * 300), make_plan())


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF])
def test_labels_are_nan_whatever_its_bits(bits: int, tmp_path: Path) -> None:
    plan = make_plan(2)
    labels = np.array([0x7FC00000, bits], "<u4").tobytes()
    shard = _open(tmp_path, plan)
    for sample in plan.samples:
        shard.append(replace(pack(plan, sample), labels=labels))
    record = shard.commit({})
    assert record.summary.num_unlabelled == 2
    assert not any(entry.labelled or entry.partly_labelled for entry in record.samples)
    # What is stored is what came.
    entry = record.samples[1]
    with (tmp_path / "shard-000000.tar").open("rb") as tar:
        tar.seek(entry.members["cls"].offset)
        assert tar.read(entry.members["cls"].size_bytes) == labels


def test_a_sample_of_which_some_labels_are_nan_says_so(tmp_path: Path) -> None:
    plan = make_plan(4)
    shard = _open(tmp_path, plan)
    rows: list[list[float]] = [[1, np.nan], [np.nan, np.nan], [0, 1], []]
    for sample, row in zip(plan.samples, rows, strict=True):
        shard.append(replace(pack(plan, sample), labels=np.array(row, "<f4").tobytes()))
    record = shard.commit({})
    assert record.summary.num_unlabelled == 2
    said = [(entry.labelled, entry.partly_labelled) for entry in record.samples]
    assert said == [(True, True), (False, False), (True, False), (False, False)]
    assert ShardRecord.load(tmp_path / "shard-000000.json").samples == record.samples
    # Records of others are as they were.
    lines = (tmp_path / "shard-000000.json").read_text().splitlines()
    assert ["partly_labelled" in line for line in lines if '"key"' in line] == [True] + [False] * 3
