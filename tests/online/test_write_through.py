"""What an epoch makes is kept, as a build would write it."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from online_cases import CUT, NOT_HU, OPTIONS, STUDIES, same, studies

import ctgpu
from ctgpu.errors import MismatchError, UsageError
from ctgpu.loading import RawDataset, VolumeDataset, make_loader
from ctgpu.online.staged import StagedSamples
from ctgpu.online.write_through import STAGED_NAME
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.lease import LeaseSession
from ctgpu.shards.names import record_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample


def writing(source: Path, folder: Path, **options: Any) -> RawDataset:
    return RawDataset(source, write_shards=folder, **dict(OPTIONS) | options)


def assert_as_built(folder: Path, built: Path, but: tuple[str, ...] = ()) -> None:
    """The same files, `but` some, and what a record says of its run."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in built.iterdir())
    for path in built.iterdir():
        if path.name in but:
            continue
        one, other = path.read_bytes(), (folder / path.name).read_bytes()
        if path.name.startswith("shard-") and path.suffix == ".json":
            one, other = (json.loads(content) | {"run": None} for content in (one, other))
        assert one == other, path.name


def test_an_epoch_writes_what_a_build_writes(tmp_path: Path, source: Path, shards: Path) -> None:
    folder = tmp_path / "kept"
    first = make_loader(writing(source, folder), 2, shuffle=True, seed=3, on_error="skip")
    built = make_loader(shards, 2, shuffle=True, seed=3)
    for ours, theirs in zip(first, built, strict=True):
        assert same(ours, theirs)
    assert_as_built(folder, shards)
    # The second epoch reads them: it needs no source.
    gone = shutil.copytree(source, tmp_path / "gone")
    data = writing(gone, folder)
    for file in gone.rglob("*.nii.gz"):
        file.unlink()
    second = make_loader(data, 2, shuffle=True, seed=4, on_error="skip")
    theirs = make_loader(shards, 2, shuffle=True, seed=4)
    assert all(same(*pair) for pair in zip(second, theirs, strict=True))


@pytest.mark.parametrize("coding", ["pack", "rice"])
def test_an_epoch_writes_compressed_what_a_build_writes(
    tmp_path: Path, source: Path, shards: Path, coding: str
) -> None:
    folder, built = tmp_path / "kept", tmp_path / "built"
    ctgpu.build(built, source=source, compress=coding, **OPTIONS)
    data = writing(source, folder, compress=coding)
    first = make_loader(data, 2, shuffle=True, seed=3, on_error="skip")
    theirs = make_loader(shards, 2, shuffle=True, seed=3)
    assert all(same(*pair) for pair in zip(first, theirs, strict=True))
    assert_as_built(folder, built)
    # The next run reads them, whether it says again how or not.
    for options in ({}, {"compress": coding}):
        second = make_loader(writing(source, folder, **options), 2, on_error="skip")
        assert all(same(*pair) for pair in zip(second, make_loader(shards, 2), strict=True))
    with pytest.raises(MismatchError, match=f"compression: found '{coding}', wanted 'none'"):
        writing(source, folder, compress="none")


def test_what_waits_is_compressed_and_read_or_else_made_again(
    tmp_path: Path, own_source: Path, good_shards: Path
) -> None:
    folder, size = tmp_path / "kept", OPTIONS["spec"].size_bytes
    data = writing(own_source, folder, compress="rice")
    seen = [data[number] for number in range(5)]
    assert committed_shards(folder) == [0]
    waiting = [folder / STAGED_NAME / f"{STUDIES[n]}.sample" for n in (3, 4)]
    assert all(path.stat().st_size < 0.9 * size for path in waiting)
    # Of the plan, and as long as its checksum says, but no volume.
    second = waiting[1]
    other = StagedSamples(folder / STAGED_NAME, Plan.load(folder).fingerprint, compressed=True)
    nothing = np.zeros(1000, np.uint8)
    other.put(PackedSample(STUDIES[4], nothing, checksum(nothing.data), b"", b"", b"{}"))
    assert second.stat().st_size < 1500
    again = writing(own_source, folder)
    next(own_source.rglob(f"{STUDIES[3]}.nii.gz")).unlink()
    for number in (3, 4):
        sample = again[number]
        assert sample["volume"].tobytes() == seen[number]["volume"].tobytes()
        assert np.array_equal(sample["labels"], seen[number]["labels"])
    assert second.stat().st_size > 1500
    assert [again[number]["study_id"] for number in range(5, 8)] == STUDIES[5:]
    assert committed_shards(folder) == [0, 1, 2]
    for ours, theirs in zip(make_loader(folder, 2), make_loader(good_shards, 2), strict=True):
        assert same(ours, theirs)


def test_a_build_goes_on_compressed_where_training_stopped(
    tmp_path: Path, good_source: Path
) -> None:
    folder = tmp_path / "kept"
    batches = iter(make_loader(writing(good_source, folder, compress="pack"), 2))
    next(batches), next(batches)
    batches.close()  # type: ignore[attr-defined]
    ctgpu.build(folder, source=good_source, device="cpu")
    ctgpu.build(tmp_path / "built", source=good_source, compress="pack", **OPTIONS)
    assert studies(make_loader(writing(good_source, folder), 2)) == STUDIES
    assert_as_built(folder, tmp_path / "built")


def test_compression_is_of_what_is_written(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    for options in ({}, {"shards": good_shards}, {"plan": good_shards}):
        for compress in ("none", "rice"):
            with pytest.raises(
                UsageError, match="compress says how write_shards keeps volumes, and that is not"
            ):
                RawDataset(good_source, compress=compress, **options, **OPTIONS)
    with pytest.raises(UsageError, match="compress is 'zip'; it is none or pack or rice"):
        writing(good_source, tmp_path / "kept", compress="zip")


def test_what_was_made_before_a_kill_is_not_made_again(
    tmp_path: Path, own_source: Path, good_shards: Path
) -> None:
    folder = tmp_path / "kept"
    killed = writing(own_source, folder)
    seen = [killed[number] for number in range(5)]
    assert committed_shards(folder) == [0]
    staged = sorted(p.name for p in (folder / STAGED_NAME).iterdir())
    assert staged == [f"{STUDIES[n]}.sample" for n in (3, 4)]
    # As a machine that fails leaves it: one more that is half there.
    torn = folder / STAGED_NAME / f"{STUDIES[6]}.sample"
    torn.write_bytes((folder / STAGED_NAME / staged[0]).read_bytes()[:-1000])
    data = writing(own_source, folder)
    for study in STUDIES[:5]:
        next(own_source.rglob(f"{study}.nii.gz")).unlink()
    again = list(make_loader(data, 1))
    for batch, sample in zip(again, seen, strict=False):
        assert batch["volume"][0].numpy().tobytes() == sample["volume"].tobytes()
        assert np.array_equal(batch["labels"][0].numpy(), sample["labels"])
        assert batch["report"] == [sample["report"]]
    assert len(again) == 8
    # These say where the source lies.
    assert_as_built(folder, good_shards, but=("plan.json", "manifest.json"))


def test_ranks_write_one_folder_together(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    folder = tmp_path / "kept"
    data = writing(good_source, folder)
    for rank in range(2):
        own = pickle.loads(pickle.dumps(data))
        studies(make_loader(own, 1, shuffle=True, rank=rank, world_size=2))
        assert len(committed_shards(folder)) < 3 or rank == 1
    assert_as_built(folder, good_shards)


def test_a_shard_that_another_process_writes_is_left_to_it(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    folder = tmp_path / "kept"
    data = writing(good_source, folder)
    with LeaseSession(folder) as session:
        session.acquire(1)
        studies(make_loader(data, 2))
        assert committed_shards(folder) == [0, 2]
        assert len(list((folder / STAGED_NAME).iterdir())) == 3
    writing(good_source, folder)  # seals what is complete
    assert_as_built(folder, good_shards)


def test_a_build_goes_on_where_training_stopped(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    folder = tmp_path / "kept"
    batches = iter(make_loader(writing(good_source, folder), 2))
    next(batches), next(batches)
    batches.close()  # type: ignore[attr-defined]
    ctgpu.build(folder, source=good_source, **OPTIONS)
    assert studies(make_loader(writing(good_source, folder), 2)) == STUDIES
    assert_as_built(folder, good_shards)


def test_without_room_training_goes_on(
    tmp_path: Path,
    good_source: Path,
    good_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "kept"
    data = writing(good_source, folder)
    monkeypatch.setattr("ctgpu.online.write_through.free_space_bytes", lambda folder: 1000)
    with caplog.at_level(logging.WARNING, "ctgpu"):
        for ours, theirs in zip(make_loader(data, 2), make_loader(good_shards, 2), strict=True):
            assert same(ours, theirs)
    assert [r.getMessage() for r in caplog.records if "is not kept" in r.getMessage()] == [
        f"{folder} has 0.0 GB free, and a shard takes 0.0: what is made from now on is not kept; "
        "training goes on"
    ]
    assert sorted(p.name for p in folder.iterdir()) == ["plan.json"]


def test_a_limit_ends_the_writing_and_no_training(
    tmp_path: Path, good_source: Path, good_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, size = tmp_path / "kept", OPTIONS["spec"].size_bytes
    # Of eight samples in shards of three: one shard, and room to make it of what waits.
    data = writing(good_source, folder, write_limit=6 * size, num_threads=1)
    with caplog.at_level(logging.WARNING, "ctgpu"):
        for ours, theirs in zip(make_loader(data, 2), make_loader(good_shards, 2), strict=True):
            assert same(ours, theirs)
    assert caplog.text.count("what is made from now on is not kept; training goes on") == 1
    assert "write_limit is 0.0 with room for the shard that is next" in caplog.text
    assert committed_shards(folder) == [0]
    kept = [path for path in folder.rglob("*") if path.suffix in (".tar", ".sample")]
    assert sum(path.stat().st_size for path in kept) < 6 * size + 100_000
    assert ctgpu.build(folder, source=good_source, **OPTIONS).exit_code == 0
    with pytest.raises(UsageError, match="write_limit is of write_shards, which is not given"):
        RawDataset(good_source, write_limit=1, **OPTIONS)


def test_random_crops_are_refused_before_anything_is_made(
    tmp_path: Path, good_source: Path
) -> None:
    data = writing(good_source, tmp_path / "kept")
    with pytest.raises(UsageError, match="write_shards keeps whole volumes, and a box was asked"):
        make_loader(data, 2, random_crop_hwd=(8, 8, 8))
    make_loader(data, 2)


def test_a_disk_that_fills_up_ends_no_training(
    tmp_path: Path,
    good_source: Path,
    good_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "kept"
    data = writing(good_source, folder)

    def write_all(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ctgpu.online.staged.disk.write_all", write_all)
    with caplog.at_level(logging.WARNING, "ctgpu"):
        for ours, theirs in zip(make_loader(data, 2), make_loader(good_shards, 2), strict=True):
            assert same(ours, theirs)
    assert caplog.text.count("No space left on device: what is made from now on is not kept") == 1
    assert list((folder / STAGED_NAME).iterdir()) == []


def test_failures_have_their_line_in_the_ledger(tmp_path: Path, source: Path, shards: Path) -> None:
    folder = tmp_path / "kept"
    data = writing(source, folder)
    for study in (CUT, NOT_HU):
        with pytest.raises(ctgpu.CtgpuError):
            data[study]
    assert len(list((folder / STAGED_NAME).iterdir())) == 2
    assert data[STUDIES[5]]["study_id"] == STUDIES[5]
    record = json.loads((folder / record_name(1)).read_text())
    assert record["failures"] == json.loads((shards / record_name(1)).read_text())["failures"]
    assert len(record["failures"]) == 2


def test_what_cannot_be_written_so_is_refused(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    data = writing(good_source, tmp_path / "kept")
    with pytest.raises(UsageError, match="write_shards keeps whole volumes, and a box"):
        next(iter(make_loader(data, 1, random_crop_hwd=(9, 8, 7))))
    with pytest.raises(UsageError, match="give one of them"):
        writing(good_source, tmp_path / "kept", shards=good_shards)
    with pytest.raises(MismatchError):
        writing(good_source, good_shards, limit=3)
    assert len(VolumeDataset(good_shards)) == 8
