"""Planned samples that have failed keep their place in the order of an epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import FAILED, STUDIES, flip_byte, studies

from ctgpu.errors import FetchError, MismatchError, NewerFormatError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.order import EpochOrder
from ctgpu.loading.slots import HOLE, Slots
from ctgpu.shards.names import PLAN_NAME, record_name
from ctgpu.shards.record import ShardRecord

#: Written by the ctgpu before states had a version, and what it read before and after.
BEFORE = {
    **{"epoch": 1, "position": 4},
    "samples": "5dc3b32801c88773500e187c44302990",
    "shards": "ed5e850fbb73217f6fa86179dc6198b4",
    **{"shuffle": True, "seed": 7, "shuffle_window_bytes": 400000, "sample_weights": None},
}
READ, LEFT = (4, 11, 10, 6), (5, 9, 7, 8, 1, 2, 3)


def named(numbers: tuple[int, ...]) -> list[str]:
    return [f"valid_{n}_a_1" for n in numbers]


def test_a_state_of_before_there_were_versions_goes_on_where_it_was(hwd: Path) -> None:
    def make(**options: Any) -> Any:
        return make_loader(hwd, 2, shuffle=True, seed=7, shuffle_window_bytes=400_000, **options)

    loader = make()
    loader.load_state_dict(BEFORE)
    assert loader.state_dict() == {"version": 2, "skipped": []} | BEFORE
    assert studies(loader) == named(LEFT)
    again = make()
    again.set_epoch(1)
    assert studies(again) == named(READ + LEFT)


def test_without_failures_every_slot_is_a_sample(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    assert (dataset.slots.study_ids, dataset.slots.holes) == (dataset.study_ids, 0)
    assert np.array_equal(dataset.slots.sample_of, np.arange(11))
    assert np.array_equal(dataset.slots.shard_of, dataset.shard_of)


def test_a_failed_sample_keeps_its_slot(with_failures: Path) -> None:
    dataset = VolumeDataset(with_failures)
    slots = dataset.slots
    assert len(dataset) == len(STUDIES) - len(FAILED)
    assert list(slots.study_ids) == STUDIES
    assert [STUDIES[n] for n in np.flatnonzero(slots.sample_of == HOLE)] == list(FAILED)
    assert slots.shard_of.tolist() == [n // 3 for n in range(11)]
    for slot, sample in enumerate(slots.sample_of):
        if sample != HOLE:
            assert dataset.study_ids[sample] == STUDIES[slot]
    weights = np.arange(1.0, len(dataset) + 1)
    order = slots.arrange(EpochOrder([], 1, True, 0, None, weights=weights))
    assert order.shard_samples == [3, 3, 3, 2]
    assert order.weights is not None
    assert [w for w in order.weights if w] == weights.tolist()
    assert (
        np.flatnonzero(order.weights == 0).tolist() == np.flatnonzero(slots.sample_of < 0).tolist()
    )
    assert list(slots.without_holes().study_ids) == list(dataset.study_ids)
    assert np.array_equal(slots.without_holes().shard_of, dataset.shard_of)
    # Of some samples, they are all there is.
    assert dataset.take(range(len(dataset))).slots.holes == 0


def test_the_next_good_sample_of_the_order_takes_its_place(with_failures: Path, hwd: Path) -> None:
    loader = make_loader(with_failures, 2, shuffle=True, seed=3)
    planned = studies(make_loader(hwd, 2, shuffle=True, seed=3))
    circle = planned + planned
    wanted = [
        next(study for study in circle[place:] if study not in FAILED)
        for place in range(len(planned))
    ]
    assert len(loader) == 6
    assert studies(loader) == wanted
    assert wanted != planned


def test_an_epoch_with_holes_resumes_at_every_step_on_any_number_of_ranks(
    with_failures: Path,
) -> None:
    def make(rank: int = 0, world_size: int = 1) -> Any:
        return make_loader(with_failures, 1, shuffle=True, seed=5, rank=rank, world_size=world_size)

    whole = studies(make())
    for stop in range(len(whole) + 1):
        first = make()
        batches = iter(first)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(first.state_dict()))
        assert state["position"] == stop
        ranks = [make(rank, 2) for rank in range(2)]
        for rank in ranks:
            rank.load_state_dict(state)
            rank.set_epoch(0)
        if stop < len(whole):
            rest = [s for step in zip(*ranks, strict=True) for b in step for s in b["study_id"]]
            assert rest[: len(whole) - stop] == whole[stop:]


def test_a_box_of_a_sample_does_not_depend_on_those_that_failed(
    with_failures: Path, hwd: Path
) -> None:
    def boxes(folder: Path) -> dict[str, Any]:
        loader = make_loader(folder, 1, shuffle=True, seed=2, random_crop_hwd=(20, 18, 12))
        return {batch["study_id"][0]: batch["volume"] for batch in loader}

    whole = boxes(hwd)
    for study, box in boxes(with_failures).items():
        assert box.equal(whole[study]), study


def test_the_state_says_which_samples_were_left_out(own: Path) -> None:
    shard, entry = VolumeDataset(own).locate(4)
    flip_byte(shard.path, entry.members["bin"].offset + 100)
    loader = make_loader(own, 2, on_error="skip")
    batches = iter(loader)
    skipped = []
    for _ in range(3):
        next(batches)
        skipped.append(loader.state_dict()["skipped"])
    assert skipped == [[], [], [4]]
    # A resumed epoch repeats the choice, also where the sample is well again; the next does not.
    flip_byte(shard.path, entry.members["bin"].offset + 100)
    state = loader.state_dict() | {"position": 4}
    again = make_loader(own, 2)
    again.load_state_dict(state)
    assert studies(again)[0] == STUDIES[5]
    assert studies(again)[4] == STUDIES[4]
    assert again.state_dict()["skipped"] == []


def test_a_hundred_bad_samples_in_a_row_stop_the_epoch(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.loading.reading._MOST_IN_A_ROW", 3)
    dataset = VolumeDataset(own)
    for number in (2, 3, 4):
        shard, entry = dataset.locate(number)
        flip_byte(shard.path, entry.members["bin"].offset)
    batches = iter(make_loader(own, 1, on_error="skip"))
    assert [next(batches)["study_id"][0] for _ in range(2)] == STUDIES[:2]
    with pytest.raises(FetchError, match="so failed 3 samples in a row"):
        next(batches)


def test_states_that_cannot_be_read_are_refused(hwd: Path, with_failures: Path) -> None:
    state = make_loader(hwd).state_dict()
    with pytest.raises(NewerFormatError, match="version 3, which a newer ctgpu wrote"):
        make_loader(hwd).load_state_dict(state | {"version": 3})
    for skipped in ("4", [11], [-1], [1.0], None):
        with pytest.raises(UsageError, match="not the state of a ctgpu loader"):
            make_loader(hwd).load_state_dict(state | {"skipped": skipped})
    with pytest.raises(UsageError, match="not the state of a ctgpu loader"):
        make_loader(hwd).load_state_dict([("epoch", 0)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {}, {"class_balanced": True, "shuffle": True}]
)
def test_a_run_from_before_holes_were_counted_goes_on_as_it_began(
    with_failures: Path, options: dict[str, Any]
) -> None:
    good = VolumeDataset(with_failures)
    before = make_loader(good.take(range(len(good))), 2, **options)
    batches = iter(before)
    next(batches)
    old = before.state_dict()
    del old["version"], old["skipped"]
    loader = make_loader(with_failures, 2, **options)
    assert len(loader) == 6
    loader.load_state_dict(old)
    assert len(loader) == 4
    assert studies(loader) == studies(batches)
    for _ in range(2):  # later epochs too, and a state of these
        again = make_loader(with_failures, 2, **options)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert studies(again) == studies(loader) == studies(before)
    new = make_loader(with_failures, 2, **options).state_dict()
    loader.load_state_dict(new)
    assert len(loader) == 6
    with pytest.raises(MismatchError, match="seed: found 0, wanted 1"):
        make_loader(with_failures, 2, seed=1, **options).load_state_dict(old)


def test_without_its_plan_a_folder_has_the_samples_that_are_there(
    tmp_path: Path, with_failures: Path
) -> None:
    bare = shutil.copytree(with_failures, tmp_path / "bare")
    (bare / PLAN_NAME).write_text("{")
    assert VolumeDataset(bare).slots.holes == 0
    (bare / PLAN_NAME).unlink()
    assert VolumeDataset(bare).slots.holes == 0
    assert studies(make_loader(bare)) == [s for s in STUDIES if s not in FAILED]


def test_a_plan_of_other_samples_says_nothing_of_holes(tmp_path: Path, with_failures: Path) -> None:
    from ctgpu.loading.catalogue import holes_of
    from ctgpu.shards.plan import Plan

    plan = Plan.load(with_failures)
    record = ShardRecord.load(with_failures / record_name(1))
    assert holes_of(record, plan) == ((1, FAILED[0]), (1, FAILED[1]))
    other = ShardRecord.load(with_failures / record_name(2))
    assert holes_of(other, plan) == ((1, FAILED[2]),)
    mixed = ShardRecord(1, "", 0, record.samples, other.failures)
    assert holes_of(mixed, plan) == ()
    assert Slots.of_shards([]).holes == 0
