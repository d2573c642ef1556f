"""Samples of a tar read again: every byte is held against what is known of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import MASKS, make_plan, write_shard

from ctgpu.shards import reread
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry
from ctgpu.shards.reread import Rereader


def faults(tar: Path, samples: list[SampleEntry]) -> list[str | None]:
    """What is wrong with each sample."""
    with tar.open("rb", buffering=0) as file:
        rereader = Rereader(file.fileno())
        return [rereader.fault(sample) for sample in samples]


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 4 << 20])
def test_what_is_as_it_was_written_has_no_fault(
    plan: Plan, tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reread, "_CHUNK_BYTES", chunk_bytes)
    record = write_shard(tmp_path, plan)
    assert faults(tmp_path / "shard-000000.tar", list(record.samples)) == [None] * 4


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        (lambda e: e.start, "header or padding before scan_1.bin is damaged"),
        (lambda e: e.members["bin"].offset, "scan_1.bin does not have its checksum"),
        (lambda e: e.members["bin"].offset - 1, "header or padding before scan_1.bin is damaged"),
        (lambda e: e.members["seg"].offset - 1, "header or padding before scan_1.seg is damaged"),
        (lambda e: e.members["seg"].offset, "scan_1.seg does not have its checksum"),
        (lambda e: e.members["cls"].offset - 1, "header or padding before scan_1.cls is damaged"),
        (lambda e: e.members["txt"].offset, "scan_1.txt does not have its checksum"),
        (lambda e: e.members["json"].offset, "scan_1.json does not have its checksum"),
        (lambda e: e.end - 1, "header or padding after scan_1 is damaged"),
    ],
)
def test_one_byte_that_is_another_is_found_where_it_is(
    place: Callable[[SampleEntry], int], fault: str, tmp_path: Path
) -> None:
    record = write_shard(tmp_path, make_plan(masks=MASKS))
    tar = tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[place(record.samples[1])] ^= 4
    tar.write_bytes(content)
    found = faults(tar, list(record.samples))
    assert [one is None for one in found] == [True, False, True, True]
    assert str(found[1]).endswith(fault)


def test_a_tar_that_ends_too_early_has_not_its_checksums(tmp_path: Path) -> None:
    record = write_shard(tmp_path, make_plan())
    tar = tmp_path / "shard-000000.tar"
    os.truncate(tar, record.samples[2].members["bin"].offset + 10)
    found = faults(tar, list(record.samples))
    assert found[:2] == [None, None]
    assert found[2] == "scan_2.bin does not have its checksum"
    assert found[3] == "the tar header or padding before scan_3.bin is damaged"


def test_an_entry_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    (first, *_) = write_shard(tmp_path, make_plan()).samples
    with pytest.raises(ValueError, match="the entry of scan_0 contradicts itself"):
        faults(tmp_path / "shard-000000.tar", [replace(first, end=first.end + 512)])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to drop cached pages here")
def test_cached_pages_are_dropped_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write_shard(tmp_path, make_plan())
    calls: list[str] = []
    pread = os.pread
    monkeypatch.setattr(os, "posix_fadvise", lambda *advice: calls.append(f"drop {advice[1:]}"))
    monkeypatch.setattr(os, "pread", lambda *how: (calls.append("read"), pread(*how))[1])
    faults(tmp_path / "shard-000000.tar", list(record.samples))
    assert calls[0] == f"drop {(0, 0, os.POSIX_FADV_DONTNEED)}"
    assert set(calls[1:]) == {"read"}
