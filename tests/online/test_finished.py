"""Shards are found soon after their commit, and a folder of another plan is refused."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from online_cases import CUT, NOT_HU, OPTIONS, STUDIES, same

from ctgpu.building.convert import convert_tars
from ctgpu.errors import MismatchError, SampleError
from ctgpu.loading import RawDataset, make_loader
from ctgpu.online import finished
from ctgpu.online.finished import FinishedShards
from ctgpu.shards.names import PLAN_NAME, record_name, shard_name
from ctgpu.shards.plan import Plan


def test_a_finished_shard_has_its_samples_and_its_failures(shards: Path) -> None:
    there = FinishedShards(shards, Plan.load(shards))
    one = there.find(1)
    assert one is not None
    assert one.shard.path == shards / shard_name(1)
    assert list(one.entries) == [STUDIES[5]]
    assert list(one.failures) == [CUT, NOT_HU]
    assert one.entry(STUDIES[5]) is one.entries[STUDIES[5]]
    with pytest.raises(SampleError, match=rf"{CUT}.* failed when its shard was built \(DecodeErr"):
        one.entry(CUT)
    assert one.entry(STUDIES[0]) is None
    assert there.find(1) is one
    assert there.find(3) is None
    again = pickle.loads(pickle.dumps(there)).find(1)
    assert again is not None
    assert again.entries == one.entries


def test_a_folder_is_looked_at_once_a_second(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    looked: list[Path] = []
    list_them = finished.committed_shards

    def committed_shards(folder: Path) -> list[int]:
        looked.append(folder)
        return list_them(folder)

    monkeypatch.setattr(finished.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(finished, "committed_shards", committed_shards)
    folder = tmp_path / "shards"
    there = FinishedShards(folder, Plan.load(shards))
    assert there.find(0) is None
    assert looked == []  # it is not there
    folder.mkdir()
    now_s += 1
    assert [there.find(0) for _ in range(10)] == [None] * 10
    assert looked == [folder]
    for name in (PLAN_NAME, shard_name(0), record_name(0)):
        shutil.copy(shards / name, folder / name)
    now_s += 0.9
    assert there.find(0) is None
    now_s += 0.1
    assert there.find(0) is not None
    assert len(looked) == 2
    # What was found is known.
    assert there.find(0) is not None
    assert len(looked) == 2


def test_a_folder_of_another_plan_is_refused(tmp_path: Path, shards: Path) -> None:
    plan = Plan.load(shards)
    other = replace(plan, samples_per_shard=4)
    with pytest.raises(MismatchError, match="samples_per_shard: found 3, wanted 4"):
        FinishedShards(shards, other).find(0)
    bare = shutil.copytree(shards, tmp_path / "bare")
    (bare / PLAN_NAME).unlink()
    assert FinishedShards(bare, plan).find(0) is not None
    with pytest.raises(MismatchError, match="has the fingerprint"):
        FinishedShards(bare, replace(plan, fingerprint="0" * 16)).find(0)


def test_compressed_shards_are_read_whatever_the_plan_says_of_that(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    folder = tmp_path / "rice"
    convert_tars(good_shards, folder, compress="rice", shards=range(2))
    for plan in (Plan.load(good_shards), Plan.load(folder)):
        found = FinishedShards(folder, plan).find(0)
        assert found is not None
        assert all(entry.is_compressed for entry in found.entries.values())
    # The last shard is not there: its samples are made.
    raws = (
        RawDataset(good_source, shards=folder, **OPTIONS),
        RawDataset(good_source, shards=folder, plan=good_shards, **OPTIONS),
    )
    for raw in raws:
        for box in ({}, {"random_crop_hwd": (9, 8, 7)}):
            ours = make_loader(raw, 2, shuffle=True, seed=3, **box)
            theirs = make_loader(good_shards, 2, shuffle=True, seed=3, **box)
            assert all(same(*pair) for pair in zip(ours, theirs, strict=True))
