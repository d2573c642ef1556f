"""Every byte of a data set once more: whatever was changed is found and named."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import MASKS, NEW_SPEC, make_plan, pack, write_shard

from ctgpu.checking.verify import verify_folder
from ctgpu.shards.findings import Finding, shard_findings
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.shards.writer import PackedSample, ShardWriter


@pytest.fixture(params=[None, MASKS], ids=["plain", "masks"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Six samples in three shards, without or with masks; one failed."""
    plan = make_plan(6, samples_per_shard=2, masks=request.param)
    Plan.create(tmp_path, plan)
    for index in range(plan.shards):
        write_shard(tmp_path, plan, index, failing=("scan_3",))
    write_manifest(tmp_path)
    return tmp_path


def _compressed(
    folder: Path, change: Callable[[PackedSample], PackedSample] = lambda sample: sample
) -> Path:
    """Four samples with masks in two shards, compressed; some are changed before they go in."""
    plan = replace(make_plan(samples_per_shard=2, masks=MASKS), compression="rice")
    folder.mkdir()
    Plan.create(folder, plan)
    for index in range(plan.shards):
        writer = ShardWriter(folder, plan, index)
        for planned in writer.pending:
            writer.append(change(pack(plan, planned)))
        writer.commit({})
    write_manifest(folder)
    return folder


def _entry(folder: Path, key: str) -> tuple[Path, SampleEntry]:
    for path in folder.glob("shard-*.json"):
        for entry in ShardRecord.load(path).samples:
            if entry.key == key:
                return path.with_suffix(".tar"), entry
    raise KeyError(key)


def _damage(folder: Path, key: str, extension: str, at: int) -> None:
    tar, entry = _entry(folder, key)
    content = bytearray(tar.read_bytes())
    content[entry.members[extension].offset + at] ^= 4
    tar.write_bytes(content)


def _named(folder: Path) -> dict[str, str]:
    return {finding.file: finding.problem for finding in verify_folder(folder).findings}


def test_a_good_folder_has_no_findings(built: Path) -> None:
    assert verify_folder(built).findings == []


@pytest.mark.slow
def test_any_flipped_bit_of_a_tar_is_found(built: Path) -> None:
    tar = built / "shard-000001.tar"
    content = tar.read_bytes()
    chance = random.Random(5)
    for _ in range(200):
        bit = chance.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        tar.write_bytes(flipped)
        findings = verify_folder(built).findings
        assert [finding.file for finding in findings] == ["shard-000001.tar"]
        assert findings[0].damaged


@pytest.mark.parametrize("cut", [1, 512, 1024, 5000])
def test_a_truncated_tar_is_found(cut: int, built: Path) -> None:
    tar = built / "shard-000002.tar"
    os.truncate(tar, tar.stat().st_size - cut)
    problems = [finding.problem for finding in verify_folder(built).findings]
    assert f"and its record says {tar.stat().st_size + cut}" in problems[0]


def test_bytes_after_the_end_are_found(built: Path) -> None:
    with (built / "shard-000002.tar").open("ab") as file:
        file.write(b"\0")
    assert set(_named(built)) == {"shard-000002.tar"}


def test_swapped_records_are_found(built: Path) -> None:
    one, two = built / "shard-000000.json", built / "shard-000002.json"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    named = _named(built)
    assert "it is the record of shard 2" in named["shard-000000.json"]
    assert "it is the record of shard 0" in named["shard-000002.json"]


def test_swapped_shards_are_found(built: Path) -> None:
    for kind in ("tar", "json", "idx"):
        content = (built / f"shard-000002.{kind}").read_bytes()
        if kind == "json":
            content = content.replace(b'"shard_index":2', b'"shard_index":0')
        (built / f"shard-000000.{kind}").write_bytes(content)
    assert "not those that the plan has" in _named(built)["shard-000000.json"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shard-000001.idx", "No such file"),
        ("shard-000001.tar", "it is gone"),
        ("shard-000001.json", "it is missing"),
        ("manifest.json", "No such file"),
        ("failures.jsonl", "No such file"),
        ("plan.json", r"holds no plan"),
    ],
)
def test_a_missing_file_is_named(name: str, problem: str, built: Path) -> None:
    (built / name).unlink()
    assert problem in _named(built)[name]


@pytest.mark.parametrize("name", ["shard-000001.idx", "manifest.json", "failures.jsonl"])
def test_a_changed_file_is_named(name: str, built: Path) -> None:
    with (built / name).open("ab") as file:
        file.write(b" ")
    assert set(_named(built)) == {name}


def test_the_record_of_another_spec_is_found(built: Path) -> None:
    path = built / "shard-000001.json"
    own = make_plan().fingerprint.encode()
    path.write_bytes(path.read_bytes().replace(own, b"0" * 16))
    assert "its fingerprint is" in _named(built)["shard-000001.json"]


def test_a_shard_beyond_the_plan_is_found(built: Path) -> None:
    shutil.copy(built / "shard-000000.tar", built / "shard-000009.tar")
    assert _named(built) == {"shard-000009.tar": "the plan ends with shard 2"}


def test_what_is_not_built_yet_is_not_damaged(tmp_path: Path) -> None:
    plan = make_plan(6, samples_per_shard=2)
    Plan.create(tmp_path, plan)
    write_shard(tmp_path, plan, 0)
    writer = ShardWriter(tmp_path, plan, 1)
    writer.append(pack(plan, plan.samples_of(1)[0]))
    writer.abandon()
    write_manifest(tmp_path)
    assert verify_folder(tmp_path).findings == [
        Finding("shard-000001.tar.partial", "the shard is not finished", damaged=False),
        Finding("shard-000002.tar", "it has not been made yet", damaged=False),
    ]


def test_a_record_of_the_other_version_is_found(tmp_path: Path) -> None:
    plan = make_plan(spec=NEW_SPEC)
    Plan.create(tmp_path, plan)
    record = write_shard(tmp_path, plan)
    (tmp_path / "shard-000000.json").write_bytes(replace(record, version=1).to_json())
    (finding,) = shard_findings(tmp_path, plan, 0)
    assert finding.problem == (
        "its format is ctgpu-shard-1, and that of this plan's records is ctgpu-shard-2"
    )


def test_compressed_members_are_decoded(tmp_path: Path) -> None:
    folder = _compressed(tmp_path / "out")
    assert verify_folder(folder).findings == []
    _damage(folder, "scan_2", "ctz", 64 + 2 * 24 + 5)
    _damage(folder, "scan_3", "segz", 3)
    _damage(folder, "scan_1", "txt", 0)
    found = [(finding.file, finding.problem) for finding in verify_folder(folder).findings]
    anew = "; remove the shard and its record and run the build again, which rebuilds both"
    assert found == [
        ("shard-000000.tar", "scan_1.txt does not have its checksum"),
        (
            "shard-000001.tar",
            "scan_2.ctz is damaged: tile 0 (planes 0 to 7 of D, columns 0 to 6 of W) does not have "
            f"its checksum{anew}",
        ),
        (
            "shard-000001.tar",
            f"scan_3.segz cannot be decoded: it is a .ctz of version 5, and 1 is known{anew}",
        ),
    ]


@pytest.mark.slow
def test_any_flipped_bit_of_a_compressed_tar_is_found(tmp_path: Path) -> None:
    folder = _compressed(tmp_path / "out")
    tar = folder / "shard-000001.tar"
    content = tar.read_bytes()
    chance = random.Random(6)
    for _ in range(150):
        bit = chance.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        tar.write_bytes(flipped)
        (finding,) = verify_folder(folder).findings
        assert (finding.file, finding.damaged) == (tar.name, True)


@pytest.mark.parametrize("what", ["volume", "mask"])
def test_a_json_that_tells_of_other_voxels_is_found(tmp_path: Path, what: str) -> None:
    """Every member has its checksum: it was the writer that was wrong."""

    def change(sample: PackedSample) -> PackedSample:
        if sample.key != "scan_2":
            return sample
        stated = json.loads(sample.metadata)
        of_it = stated if what == "volume" else stated.setdefault("mask", {})
        of_it["xxh3_128"] = "0" * 32
        return replace(sample, metadata=json.dumps(stated).encode())

    extension = {"volume": "ctz", "mask": "segz"}[what]
    (finding,) = verify_folder(_compressed(tmp_path / "out", change)).findings
    assert finding.file == "shard-000001.tar"
    assert finding.problem.startswith(f"scan_2.{extension} holds what has the checksum ")
    assert f", and scan_2.json says {'0' * 32}; remove the shard" in finding.problem


@pytest.mark.parametrize("text", [b"[1]", b"{", b"[" * 100_000, b'{"mask": 3}'])
def test_a_json_that_says_nothing_contradicts_nothing(tmp_path: Path, text: bytes) -> None:
    folder = _compressed(tmp_path / "out", lambda sample: replace(sample, metadata=text))
    assert verify_folder(folder).findings == []


def test_a_compressed_tar_that_was_cut_off_is_found(tmp_path: Path) -> None:
    folder = _compressed(tmp_path / "out")
    tar, entry = _entry(folder, "scan_3")
    os.truncate(tar, entry.members["ctz"].offset + 100)
    problems = [finding.problem for finding in verify_folder(folder).findings]
    assert "and its record says" in problems[0]
    assert problems[1:] == ["scan_3.ctz does not have its checksum", "its end mark is damaged"]
