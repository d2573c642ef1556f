"""DALI's index of a shard."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from shard_samples import make_plan, pack, write_shard

from ctgpu.shards.index import index_text
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord


def test_the_index_of_a_shard_without_samples(tmp_path: Path) -> None:
    plan = make_plan(1)
    record = write_shard(tmp_path, plan, failing=("scan_0",))
    assert index_text(record) == b"v1.2 0\n"
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getnames() == []
    assert ShardRecord.load(tmp_path / "shard-000000.json") == record
    assert os.path.getsize(tmp_path / "shard-000000.tar") == 1024


def test_every_member_has_its_extension_place_size_and_name(plan: Plan, tmp_path: Path) -> None:
    record = write_shard(tmp_path, plan, failing=("scan_1",))
    text = index_text(record)
    assert text == (tmp_path / "shard-000000.idx").read_bytes()
    head, *lines = text.decode().splitlines()
    assert head == "v1.2 3"
    tar = (tmp_path / "shard-000000.tar").read_bytes()
    left = [sample for sample in plan.samples if sample.key != "scan_1"]
    for sample, line in zip(left, lines, strict=True):
        packed = pack(plan, sample).members()
        words = iter(line.split())
        members = list(zip(words, words, words, words, strict=True))
        assert [extension for extension, *_ in members] == list(packed)
        data = [tar[int(offset) : int(offset) + int(size)] for _, offset, size, _ in members]
        assert data == [member for member, _ in packed.values()]
        assert [name for *_, name in members] == [f"{sample.key}.{e}" for e, *_ in members]
