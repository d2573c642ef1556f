from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import pack, room_for, write_shard

from ctgpu.buffers import allocate_pages
from ctgpu.errors import FetchError, StorageError
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import Member


@pytest.fixture
def tar(plan: Plan, tmp_path: Path) -> Path:
    """A shard of four."""
    write_shard(tmp_path, plan)
    return tmp_path / "shard-000000.tar"


def test_every_member_is_read_by_the_record(tar: Path, plan: Plan) -> None:
    buffer = allocate_pages(plan.spec.size_bytes)[: plan.spec.size_bytes]
    with ShardReader(tar) as reader:
        for entry, planned in zip(reader.record.samples, plan.samples, strict=True):
            expected = pack(plan, planned)
            reader.read_into(entry, "bin", buffer.data)
            assert (buffer == expected.volume).all()
            assert reader.read(entry, "cls") == expected.labels
            assert reader.read(entry, "txt") == expected.text
            assert reader.read(entry, "json") == expected.metadata
            payloads = room_for(entry)
            copy = reader.copy_sample(entry, *payloads)
            assert copy.members() == expected.members()
            assert copy.volume is payloads[0]
            assert copy.mask is (payloads[1] if plan.masks else None)
            with pytest.raises(ValueError, match="argument"):
                reader.copy_sample(entry, *payloads[1:])


def test_the_buffer_has_the_size_of_the_member(tar: Path) -> None:
    with ShardReader(tar) as reader, pytest.raises(ValueError, match="the member has 8"):
        reader.read_into(reader.record.samples[0], "cls", memoryview(bytearray(9)))


def test_a_flipped_bit_is_never_handed_on(tar: Path, plan: Plan) -> None:
    good = tar.read_bytes()
    with ShardReader(tar) as reader:
        first, entry, *_ = reader.record.samples
        for extension, member in entry.members.items():
            content = bytearray(good)
            content[member.offset + member.size_bytes // 2] ^= 16
            tar.write_bytes(content)
            with pytest.raises(
                FetchError, match=rf"scan_1\.{extension} does not have its checksum"
            ):
                reader.copy_sample(entry, *room_for(entry))
            reader.copy_sample(first, *room_for(first))
            unverified = memoryview(bytearray(member.size_bytes))
            reader.read_into(entry, extension, unverified, verify=False)
            assert unverified == content[member.offset : member.offset + member.size_bytes]


def test_a_truncated_tar_is_one_sentence(tar: Path) -> None:
    with ShardReader(tar) as reader:
        entry = reader.record.samples[-1]
        with tar.open("r+b") as file:
            file.truncate(entry.members["json"].offset + 1)
        with pytest.raises(FetchError, match=r"ends within scan_3\.json"):
            reader.read(entry, "json")


def test_what_is_missing_is_one_sentence(tar: Path, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        ShardReader(tmp_path / "shard-000009.tar")
    other = tar.rename(tmp_path / "volumes.tar")
    with ShardReader(other) as reader:
        assert len(reader.scan()) == (20 if plan.masks else 16)
        with pytest.raises(StorageError, match="not named as a shard"):
            _ = reader.record


def test_what_is_no_file_is_one_sentence(tar: Path) -> None:
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(StorageError, match=r"shard-000000\.tar cannot be opened: it is a pipe"):
        ShardReader(tar)


def test_no_more_memory_is_taken_than_the_tar_has_bytes(tar: Path) -> None:
    with ShardReader(tar) as reader:
        entry = reader.record.samples[0]
        huge = Member(entry.members["txt"].offset, 1 << 60, "0" * 32)
        claims = replace(entry, members={**entry.members, "txt": huge})
        with pytest.raises(FetchError, match=r"ends within scan_0\.txt"):
            reader.read(claims, "txt")
