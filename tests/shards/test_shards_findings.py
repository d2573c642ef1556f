"""Every byte of a data set once more: whatever was changed is found and named."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import MASKS, NEW_SPEC, make_plan, pack, write_shard

from ctgpu.checking.verify import verify_folder
from ctgpu.shards.findings import Finding, shard_findings
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.shards.writer import ShardWriter


@pytest.fixture(params=[None, MASKS], ids=["plain", "masks"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Six samples in three shards, without or with masks; one failed."""
    plan = make_plan(6, samples_per_shard=2, masks=request.param)
    Plan.create(tmp_path, plan)
    for index in range(plan.shards):
        write_shard(tmp_path, plan, index, failing=("scan_3",))
    write_manifest(tmp_path)
    return tmp_path


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
