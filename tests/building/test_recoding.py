"""Finished shards with another compression: the files of a build that had it from the start."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_compressed_builds import SPEC, assert_same_files, build

from built import read_samples, tar_bytes
from ctgpu.buffers import Bytes, allocate_pages
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, Planned, ShardCommitted, ShardResumed
from ctgpu.checking.compare import compare_samples
from ctgpu.codec import Coding
from ctgpu.errors import MismatchError, StorageError, UsageError
from ctgpu.shards.lease import LeaseHeld, LeaseSession
from ctgpu.shards.names import record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.writer import PackedSample, ShardWriter
from ctgpu.spec import Spec
from ctgpu.testing.masks import lay_out_with_masks
from support.data_set_copies import marked, stop_after
from support.phantoms import SPACING_MM

#: The third sample, which has failed.
FAILED = "valid_2_a_1"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, laid_out: Path) -> Path:
    """A data set without compression, and in both: six samples in three shards, one failed."""
    home = tmp_path_factory.mktemp("built")
    source = home / "source"
    shutil.copytree(laid_out, source)
    next(source.rglob(f"{FAILED}.nii.gz")).write_bytes(b"nothing")
    for compress in ("none", "pack", "rice"):
        build(home / compress, source, limit=6, compress=compress)
    return home


@pytest.fixture
def home(tmp_path: Path, built: Path) -> Path:
    """A copy of the one without compression."""
    return Path(shutil.copytree(built / "none", tmp_path / "home"))


@pytest.mark.parametrize(
    ("before", "after"), [("none", "rice"), ("rice", "none"), ("pack", "rice"), ("rice", "pack")]
)
def test_what_comes_out_is_what_a_build_makes(
    tmp_path: Path, built: Path, before: str, after: str
) -> None:
    events: list[Event] = []
    report = convert_tars(built / before, tmp_path / "out", compress=after, watch=events.append)
    # Of one that has failed there is nothing but its line in the ledger.
    assert (report.written, report.exit_code, report.data_set) == (5, 1, "CT-RATE")
    assert [failure["key"] for failure in report.failures] == [FAILED]
    assert_same_files(tmp_path / "out", built / after)
    (planned,) = (event for event in events if isinstance(event, Planned))
    assert (planned.samples, planned.pending_samples, planned.data_set) == (6, 5, "CT-RATE")
    assert [e.shard for e in events if isinstance(e, ShardCommitted)] == [0, 1, 2]
    # Again: there is nothing to do, whether it is asked for once more or not.
    for options in ({}, {"compress": after}):
        assert convert_tars(built / before, tmp_path / "out", **options).written == 0
    assert_same_files(tmp_path / "out", built / after)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, layout="DHW", dtype="int16"),
        replace(SPEC, dtype="uint8"),
        replace(SPEC, layout="DHW", dtype="bfloat16"),
        replace(SPEC, layout="DHW", precision="2^-10"),
    ],
    ids=["int16", "uint8", "bfloat16", "precision"],
)
def test_volumes_of_every_type_and_layout_are_recoded(
    tmp_path: Path, laid_out: Path, spec: Spec
) -> None:
    for compress in ("none", "rice"):
        build(tmp_path / compress, laid_out, spec=spec, limit=2, compress=compress)
    for before, after in (("none", "rice"), ("rice", "none")):
        convert_tars(tmp_path / before, tmp_path / f"{after} again", compress=after)
        assert_same_files(tmp_path / f"{after} again", tmp_path / after)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_masks_are_recoded_with_their_volumes(tmp_path: Path, layout: Any) -> None:
    scans = {name: marked(seed, (40, 36, 30)) for seed, name in enumerate("abc")}
    dataset = lay_out_with_masks(tmp_path / "source", scans, SPACING_MM)
    spec = replace(SPEC, layout=layout)
    for compress in ("none", "pack"):
        options: dict[str, Any] = {"dataset": dataset, "split": "train", "spec": spec}
        build(tmp_path / compress, tmp_path / "source", compress=compress, **options)
    for before, after in (("none", "pack"), ("pack", "none")):
        convert_tars(tmp_path / before, tmp_path / f"{after} again", compress=after)
        assert_same_files(tmp_path / f"{after} again", tmp_path / after)
    # Without that, masks would be lost.
    with pytest.raises(UsageError, match=r"holds a\.segz, a mask.*--compress alone makes a copy"):
        convert_tars(tmp_path / "pack", tmp_path / "other")


def test_more_than_another_compression_is_refused(tmp_path: Path, built: Path) -> None:
    for options in ({"samples_per_shard": 3}, {"split": "train"}, {"retry_failed": True}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}: "):
            convert_tars(built / "none", tmp_path / "out", compress="rice", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--delete-after is for tars of another kind"):
        convert_tars(built / "none", tmp_path / "out", compress="rice", delete_after=True)
    with pytest.raises(UsageError, match=r"range\(1, 9\); the plan of .*none has shards 0 to 2"):
        convert_tars(built / "none", tmp_path / "out", compress="rice", shards=range(1, 9))
    with pytest.raises(UsageError, match=r"none itself holds tars that .*none/\*\.tar names"):
        convert_tars(built / "none", built / "none", compress="rice")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_begun_otherwise_is_left_alone(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    convert_tars(built / "none", out, compress="rice", shards=range(1))
    for compress in ("pack", "none"):
        with pytest.raises(MismatchError, match=f"compression: found 'rice', wanted '{compress}'"):
            convert_tars(built / "none", out, compress=compress)
    for compress in ("rice", None):
        other = build(tmp_path / "other", built / "source", limit=2).folder
        with pytest.raises(
            UsageError,
            match=r"other is another data set than .*, which differs in selection\.limit",
        ):
            convert_tars(built / "none", other, compress=compress)
    assert [path.name for path in out.glob("*.tar")] == ["shard-000000.tar"]


def test_parts_and_damage(tmp_path: Path, built: Path, home: Path) -> None:
    out = tmp_path / "out"
    assert convert_tars(home, out, compress="rice", shards=range(1)).written == 2
    tar = home / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[20_000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(
        StorageError,
        match=r"does not have its checksum.*remove .*shard-000001\.tar and shard-000001\.json, and "
        "run the build there again",
    ):
        convert_tars(home, out)
    shutil.copy(built / "none/shard-000001.tar", tar)
    assert convert_tars(home, out).written == 3
    assert_same_files(out, built / "rice")


def test_what_is_finished_later_is_added_later(
    tmp_path: Path, built: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = (home / "shard-000001.json").rename(tmp_path / "record")
    with caplog.at_level(logging.INFO, "ctgpu"):
        assert convert_tars(home, tmp_path / "out", compress="rice").written == 4
    assert "1 of the plan's 3 shards are not there: `ctgpu build` makes the rest, of" in caplog.text
    record.rename(home / "shard-000001.json")
    assert convert_tars(home, tmp_path / "out").written == 1
    assert_same_files(tmp_path / "out", built / "rice")


def test_a_build_makes_of_the_originals_what_was_not_there(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    convert_tars(built / "none" / "shard-000001.tar", out, compress="rice")
    assert build(out, built / "source").written == 4
    assert_same_files(out, built / "rice")


def test_one_that_was_stopped_goes_on_where_it_was(tmp_path: Path, built: Path) -> None:
    out, events = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        convert_tars(built / "none", out, compress="pack", watch=stop_after(4))
    assert not (out / "shard-000002.tar").exists()
    report = convert_tars(built / "none", out, watch=events.append)
    # The fourth sample is the first of the last shard.
    assert report.written == 1
    assert [event for event in events if isinstance(event, ShardResumed)] == [ShardResumed(2, 1)]
    assert_same_files(out, built / "pack")


def test_what_changed_before_it_goes_on_is_made_again(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert_tars(built / "none", out, compress="pack", watch=stop_after(4))
    home = Path(shutil.copytree(built / "none", tmp_path / "home"))
    relabelled(home)
    assert convert_tars(home, out).written == 2
    assert read_samples(out)["valid_10_a_1"].text == "Another."
    convert_tars(home, tmp_path / "at once", compress="pack")
    assert_same_files(out, tmp_path / "at once")


def relabelled(home: Path) -> None:
    """Write the last shard of a folder again, its first sample with another report."""
    plan = Plan.load(home)
    old = ShardRecord.load(home / record_name(2))
    with ShardReader(home / shard_name(2)) as reader:
        writer = ShardWriter(home, plan, 2, replace=True)
        for number, entry in enumerate(old.samples):
            sample = reader.copy_sample(entry, *rooms_of(plan))
            writer.append(sample if number else replace(sample, text=b"Another."))
        writer.commit({})


def test_a_shard_that_is_written_again_meanwhile_is_read_when_that_is_done(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_it(path: Path) -> ShardReader:
        opened.append(path)
        if path.name == shard_name(2) and opened.count(path) == 1:
            relabelled(home)
        return ShardReader(path)

    monkeypatch.setattr("ctgpu.building.recoding.ShardReader", open_it)
    with pytest.raises(StorageError, match=r"shard-000002\.tar was written again while it was op"):
        convert_tars(home, tmp_path / "out", compress="rice")
    assert convert_tars(home, tmp_path / "out").exit_code == 1
    assert read_samples(tmp_path / "out")["valid_10_a_1"].text == "Another."


def test_a_defect_is_no_reason_to_remove_a_shard(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compress(sample: PackedSample, *rest: Any) -> PackedSample:
        if sample.key == "valid_2_a_2":
            raise ZeroDivisionError("by zero")
        return compress_sample(sample, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("ctgpu.building.in_flight.compress_sample", compress)
        with pytest.raises(
            StorageError,
            match=r"none/shard-000001\.tar: valid_2_a_2 cannot be compressed otherwise "
            r"\(ZeroDivisionError: by zero\), which is a defect of ctgpu; .*none is as it was$",
        ):
            convert_tars(built / "none", tmp_path / "out", compress="rice")
    assert convert_tars(built / "none", tmp_path / "out").written == 3
    assert_same_files(tmp_path / "out", built / "rice")


def test_everything_is_written_again_where_that_is_asked_for(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    convert_tars(built / "none", out, compress="rice")
    before = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert convert_tars(built / "pack", out, force=True, shards=range(1, 3)).written == 3
    after = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert [name for name, inode in before.items() if after[name] == inode] == ["shard-000000.tar"]
    assert_same_files(out, built / "rice")


def test_a_budget_that_holds_no_sample_takes_them_one_after_the_other(
    tmp_path: Path, built: Path
) -> None:
    report = convert_tars(built / "none", tmp_path / "out", compress="rice", memory_limit_bytes=1)
    plan = Plan.load(tmp_path / "out")
    assert report.pipeline is not None
    # As it is read, and compressed, with what a decoder may read behind either.
    most_bytes = 2 * (sum(plan.payload_limits_bytes) + 2 * 4096)
    assert report.pipeline.peak_reserved_bytes == most_bytes
    assert_same_files(tmp_path / "out", built / "rice")


def test_a_shard_that_another_process_works_on_is_left_to_it(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    convert_tars(built / "none", out, compress="rice", shards=range(1))
    with LeaseSession(out) as other:
        other.acquire(2)
        with pytest.raises(LeaseHeld, match=r"shard-000002\.tar is being written by process"):
            convert_tars(built / "none", out)
    assert convert_tars(built / "none", out).exit_code == 1
    assert_same_files(out, built / "rice")


def test_other_tars_beside_the_shards_are_named_and_left_out(
    tmp_path: Path, built: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(home / "shard-000000.tar", home / "mine.tar")
    convert_tars(home, tmp_path / "out", compress="rice")
    assert f"mine.tar: no shards of {home}, and left out" in caplog.text
    assert_same_files(tmp_path / "out", built / "rice")


def test_shards_of_both_kinds_become_those_of_one(tmp_path: Path, built: Path, home: Path) -> None:
    for name in ("shard-000001.tar", "shard-000001.json", "shard-000001.idx"):
        shutil.copy(built / "rice" / name, home / name)
    convert_tars(home, tmp_path / "out", compress="pack")
    assert_same_files(tmp_path / "out", built / "pack")


def rooms_of(plan: Plan) -> list[Bytes]:
    return [allocate_pages(n)[:n] for n in plan.payload_limits_bytes]


def rewritten(home: Path, out: Path, coding: Coding | None, **changes: Any) -> Path:
    """The shards of a folder as if its plan had been another, beside the plan that it has."""
    out.mkdir()
    plan = Plan.load(home)
    shutil.copy(home / "plan.json", out / "plan.json")
    other = replace(plan, compression=coding, **changes)
    for index in range(plan.shards):
        old = ShardRecord.load(home / record_name(index))
        writer = ShardWriter(out, other, index)
        with ShardReader(home / shard_name(index)) as reader:
            for ref in list(writer.pending):
                if ref.key == FAILED:
                    writer.skip(old.failures[0])
                    continue
                entry = next(entry for entry in old.samples if entry.key == ref.key)
                sample = reader.copy_sample(entry, *rooms_of(plan))
                if coding is not None:
                    sample = compress_sample(sample, other, *rooms_of(other))
                writer.append(sample)
        writer.commit({})
    return out


def test_compressed_volumes_of_another_contract_are_refused(tmp_path: Path, built: Path) -> None:
    """Whole, as far as record and tiles tell: only the head says that they are int16."""
    spec = replace(SPEC, dtype="int16")
    home = rewritten(built / "none", tmp_path / "home", "pack", spec=spec)
    with pytest.raises(
        StorageError,
        match=r"valid_1_a_\d: it holds int16, and float16 was wanted; remove .*shard-000000\.tar "
        r"and shard-000000\.json",
    ):
        convert_tars(home, tmp_path / "out", compress="none")
    assert not tar_bytes(tmp_path / "out")


@pytest.mark.parametrize("other", ["fingerprint", "samples", "sizes"])
def test_shards_of_another_plan_are_refused(tmp_path: Path, built: Path, other: str) -> None:
    home = rewritten(built / "none", tmp_path / "home", None)
    plan = Plan.load(home)
    changed = {
        "fingerprint": replace(plan, fingerprint="0" * 16),
        "samples": replace(plan, samples=list(reversed(plan.samples))),
        "sizes": replace(plan, spec=replace(SPEC, shape_hwd=(44, 52, 36))),
    }[other]
    (home / "plan.json").write_bytes(changed.to_json())
    with pytest.raises(
        StorageError, match=r"shard-000000\.json is not of the plan beside it; `ctgpu verify"
    ):
        convert_tars(home, tmp_path / "out", compress="rice")


def test_without_compress_shards_are_tars_like_any(tmp_path: Path, built: Path) -> None:
    adopted = {}
    for before in ("none", "rice"):
        report = convert_tars(built / before, tmp_path / before)
        assert (report.written, report.exit_code) == (5, 0)
        adopted[before] = read_samples(tmp_path / before)
    original = read_samples(built / "none")
    assert adopted["none"].keys() == adopted["rice"].keys() == original.keys()
    record = ShardRecord.load(built / "rice" / "shard-000000.json")
    for key, sample in adopted["rice"].items():
        assert sample.volume == adopted["none"][key].volume == original[key].volume
        assert sample.text == original[key].text
        assert sample.labels.tobytes() == original[key].labels.tobytes()
    source = adopted["rice"]["valid_1_a_1"].metadata["source"]
    assert source["path"] == "shard-000000.tar/valid_1_a_1.ctz"
    assert source["members"]["volume"] == record.samples[0].members["ctz"].xxh3_128


def test_what_is_adopted_is_compressed_where_that_is_asked_for(tmp_path: Path, built: Path) -> None:
    spec = replace(Spec(), precision="2^-10")
    for compress in ("none", "rice"):
        convert_tars(built / "pack", tmp_path / compress, spec=spec, compress=compress)
    one, other = read_samples(tmp_path / "none"), read_samples(tmp_path / "rice")
    assert {k: s.volume for k, s in one.items()} == {k: s.volume for k, s in other.items()}
    assert Plan.load(tmp_path / "rice").compression == "rice"
    # Shards of two folders are tars like any too, though they say the same of each other.
    pattern = built / "{pack,rice}" / "shard-000000.tar"
    with pytest.raises(UsageError, match="would both be 'valid_1_a_1' in the shards"):
        convert_tars(pattern, tmp_path / "both", compress="none")


@pytest.mark.slow
def test_compressed_samples_are_compared_with_their_originals(built: Path) -> None:
    (compared,) = compare_samples(built / "rice", source=built / "source", num_samples=1)
    assert (compared.faults, compared.passed) == ((), True)
