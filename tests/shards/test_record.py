from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from shard_samples import MASKS, make_plan, write_shard

from ctgpu.errors import StorageError
from ctgpu.shards.record import SampleEntry, ShardRecord, ShardSummary, checksum
from ctgpu.shards.tar import END_OF_ARCHIVE
from ctgpu.volume.masks import MaskFormat


@pytest.fixture
def record(tmp_path: Path) -> ShardRecord:
    """Of a shard of four, one of which failed."""
    return write_shard(tmp_path, make_plan(), failing=("scan_1",))


def save(record: ShardRecord, folder: Path) -> None:
    """Put it where a writer would."""
    (folder / "shard-000000.json").write_bytes(record.to_json())


def test_checksum_is_xxh3_128_of_any_buffer() -> None:
    assert checksum(b"abc") == xxhash.xxh3_128(b"abc").hexdigest()
    assert checksum(memoryview(b"abc")) == checksum(b"abc")
    assert len(checksum(b"")) == 32


def test_a_record_is_one_json_object(record: ShardRecord, tmp_path: Path) -> None:
    values = json.loads((tmp_path / "shard-000000.json").read_bytes())
    assert values["num_samples"] == len(values["samples"]) == 3
    assert values["num_failed"] == len(values["failures"]) == 1
    assert values["filename"] == "shard-000000.tar"


def test_the_summary_is_its_first_line(record: ShardRecord, tmp_path: Path) -> None:
    assert ShardSummary.load(tmp_path / "shard-000000.json") == record.summary
    assert record.summary == ShardSummary(0, record.fingerprint, record.size_bytes, 3, 0, 1)


def test_orientations_are_counted_in_the_first_line(record: ShardRecord, tmp_path: Path) -> None:
    codes = ("RAS", "LPS", "RAS")
    samples = [replace(s, orientation=c) for s, c in zip(record.samples, codes, strict=True)]
    known = replace(record, samples=samples)
    assert known.summary.orientations == {"LPS": 1, "RAS": 2}
    save(known, tmp_path)
    assert ShardRecord.load(tmp_path / "shard-000000.json") == known
    assert ShardSummary.load(tmp_path / "shard-000000.json") == known.summary
    # Where nothing is known, nothing is said, as before there were orientations.
    assert b"orientation" not in record.to_json()


@pytest.mark.parametrize("said", ['"LPX"', '"LP"', "3", '["L"]', '{"LPS": -1}', '{"LPS": "1"}'])
def test_an_orientation_that_is_none_is_refused(
    record: ShardRecord, tmp_path: Path, said: str
) -> None:
    first = replace(record.samples[0], orientation="LPS")
    known = replace(record, samples=[first, *record.samples[1:]])
    old = '{"LPS":1}' if said.startswith("{") else '"orientation":"LPS"'
    new = said if said.startswith("{") else f'"orientation":{said}'
    text = known.to_json().decode()
    assert old in text
    path = tmp_path / "shard-000000.json"
    path.write_text(text.replace(old, new))
    with pytest.raises(StorageError, match="is not the record of its shard"):
        ShardRecord.load(path)


def test_only_the_run_depends_on_the_run(record: ShardRecord) -> None:
    first = replace(record, run={"engine": "a"}).to_json()
    second = replace(record, run={"engine": "b"}).to_json()
    assert first.partition(b'"run"')[0] == second.partition(b'"run"')[0]
    assert replace(record, run={}).to_json().endswith(b'"run":{}}\n')


def test_entries_round_trip(record: ShardRecord) -> None:
    for entry in record.samples:
        assert SampleEntry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"start": 100},
        {"start": 8192},
        {"end": 0},
        {"start": -1},
        {"start": 0.0},
        {"key": "x" * 200},
        {"key": None},
        {"members": {}},
        {"members": []},
        {"members": {e: [0, 10**30, ""] for e in ("bin", "cls", "txt", "json")}},
    ],
)
def test_entries_that_contradict_themselves_are_refused(
    change: dict[str, object], record: ShardRecord
) -> None:
    with pytest.raises(ValueError, match=r"."):
        SampleEntry.from_dict(record.samples[0].to_dict() | change)


def _swap(content: bytes) -> bytes:
    return content.replace(b'"shard_index":0', b'"shard_index":1')


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"{}",
        lambda content: b"[]",
        lambda content: b"\xff" * 100,
        lambda content: content.replace(b'"num_samples":3', b'"num_samples":2'),
        lambda content: content.replace(b'"end":', b'"end":1'),
        lambda content: content.replace(b"ctgpu-shard-1", b"ctgpu-plan-1"),
        lambda content: content.replace(b'"attempts":1', b'"attempts":"1"'),
        _swap,
    ],
)
def test_a_damaged_record_is_one_sentence(
    damage: Callable[[bytes], bytes], record: ShardRecord, tmp_path: Path
) -> None:
    path = tmp_path / "shard-000000.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=r"shard-000000\.json is not the record") as caught:
        ShardRecord.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"[", b'{"format":"ctgpu-shard-1",\n'])
def test_a_damaged_summary_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="is not the record"):
        ShardSummary.load(path)


def test_a_missing_record_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        ShardRecord.load(tmp_path / "shard-000000.json")


def test_the_summary_of_another_shard_is_refused(record: ShardRecord, tmp_path: Path) -> None:
    other = (tmp_path / "shard-000000.json").rename(tmp_path / "shard-000001.json")
    with pytest.raises(StorageError, match="it is the record of shard 0"):
        ShardSummary.load(other)


def test_all_samples_of_a_record_have_masks_or_none(record: ShardRecord, tmp_path: Path) -> None:
    (folder := tmp_path / "masked").mkdir()
    masked = write_shard(folder, make_plan(masks=MASKS), failing=("scan_1",))
    assert ShardRecord.load(folder / "shard-000000.json") == masked
    for entry in masked.samples:
        assert list(entry.members) == ["bin", "seg", "cls", "txt", "json"]
        members = dict(sorted(entry.members.items()))
        with pytest.raises(ValueError, match="the members of"):
            SampleEntry.from_dict(replace(entry, members=members).to_dict())
    mixed = replace(
        masked,
        samples=masked.samples[:1],
        failures=(),
        size_bytes=masked.samples[0].end + len(END_OF_ARCHIVE),
    )
    for version, of in ((3, record), (1, mixed), (2, mixed)):
        save(replace(of, version=version), tmp_path)
        with pytest.raises(StorageError, match="scan_0 has not the members of its version"):
            ShardRecord.load(tmp_path / "shard-000000.json")


def test_a_record_accounts_for_every_byte_and_sample_once(
    record: ShardRecord, tmp_path: Path
) -> None:
    first, second, third = record.samples
    failure = record.failures[0]
    for change, words in (
        ({"samples": [first, third]}, "leaves a gap before scan_3"),
        ({"samples": [second, third]}, "leaves a gap before scan_2"),
        ({"samples": [first, second]}, "its samples end at byte"),
        ({"size_bytes": record.size_bytes + 512}, "its samples end at byte"),
        ({"failures": [failure, failure]}, "it has scan_1 twice"),
        ({"failures": [replace(failure, key="scan_0")]}, "it has scan_0 twice"),
        ({"failures": [replace(failure, key="../evil")]}, "the key '../evil' holds a dot"),
    ):
        save(replace(record, **change), tmp_path)
        with pytest.raises(StorageError, match=words):
            ShardRecord.load(tmp_path / "shard-000000.json")
    save(record, tmp_path)
    assert ShardRecord.load(tmp_path / "shard-000000.json") == record


@pytest.mark.parametrize("masks", [None, MASKS], ids=["volumes", "masks"])
def test_a_record_of_compressed_samples_is_of_a_version_of_its_own(
    masks: MaskFormat | None, tmp_path: Path
) -> None:
    (folder := tmp_path / "raw").mkdir()
    raw = write_shard(folder, make_plan(masks=masks), failing=("scan_1",))
    plan = make_plan(masks=masks, compression="rice")
    small = write_shard(tmp_path, plan, failing=("scan_1",))
    assert small.version == 4
    assert ShardRecord.load(tmp_path / "shard-000000.json") == small
    for entry in small.samples:
        assert SampleEntry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry
        assert (entry.is_compressed, entry.volume_extension) == (True, "ctz")
        assert entry.mask_extension == (None if masks is None else "segz")
        payloads = list(entry.members.values())[: len(plan.payload_limits_bytes)]
        assert entry.payload_bytes == sum(member.size_bytes for member in payloads)
    # Neither fits the other's version, and no record has some of each.
    for wrong in (replace(raw, version=4), *(replace(small, version=n) for n in (1, 2, 3))):
        save(wrong, tmp_path)
        with pytest.raises(StorageError, match="scan_0 has not the members of its version"):
            ShardRecord.load(tmp_path / "shard-000000.json")
    for one, other in ((small, raw), (raw, small)):
        mixed = replace(one, samples=[*one.samples[:1], *other.samples[1:]])
        for version in (1, 3, 4):
            save(replace(mixed, version=version), tmp_path)
            with pytest.raises(StorageError, match="has not the members of its version"):
                ShardRecord.load(tmp_path / "shard-000000.json")


@pytest.mark.parametrize(
    "names",
    [
        ("bin", "ctz", "cls", "txt", "json"),
        ("bin", "segz", "cls", "txt", "json"),
        ("ctz", "seg", "cls", "txt", "json"),
        ("segz", "ctz", "cls", "txt", "json"),
        ("segz", "cls", "txt", "json"),
        ("zip", "cls", "txt", "json"),
    ],
)
def test_members_that_go_together_in_no_version_are_refused(
    names: tuple[str, ...], record: ShardRecord
) -> None:
    first = record.samples[0]
    member = first.members["bin"]
    members = {name: first.members.get(name, member) for name in names}
    with pytest.raises(ValueError, match="the members of scan_0 are not "):
        SampleEntry.from_dict(replace(first, members=members).to_dict())
