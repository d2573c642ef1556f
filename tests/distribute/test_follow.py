"""What a driver tells of shards that others write, and what it counts as written."""

from __future__ import annotations

from pathlib import Path

import pytest
from driving import SAMPLES_PER_SHARD
from scenarios import SPEC, make_source

import ctgpu
from ctgpu.building.events import Event, SampleFailed, SampleWritten, ShardCommitted, ShardResumed
from ctgpu.distribute.follow import Follower
from ctgpu.shards.plan import Plan


class Stopped(BaseException):
    """Ends a build after some samples."""


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A data set whose first shard was left after three samples; one of its samples is broken."""
    make_source(tmp_path / "source", 2 * SAMPLES_PER_SHARD, broken=5)
    written: list[Event] = []

    def stop(event: Event) -> None:
        written.extend([event] * isinstance(event, SampleWritten))
        if len(written) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        ctgpu.build(
            tmp_path / "out",
            source=tmp_path / "source",
            spec=SPEC,
            samples_per_shard=SAMPLES_PER_SHARD,
            num_workers=1,
            memory_limit_bytes=1,
            device="cpu",
            watch=stop,
        )
    return tmp_path / "out"


@pytest.mark.slow
def test_each_sample_is_told_of_once_and_only_what_is_new_is_counted(interrupted: Path) -> None:
    told: list[Event] = []
    follower = Follower(interrupted, Plan.load(interrupted), told.append)
    follower.begin(0, retry_failed=False)
    follower.look(0)
    assert told == [ShardResumed(0, 3)]
    ctgpu.build(interrupted, device="cpu")
    # As after a writer was replaced: it begins, and is looked at, again.
    follower.begin(0, retry_failed=False)
    follower.look(0)
    follower.finish(0)
    keys = [event.key for event in told if isinstance(event, SampleWritten)]
    assert sorted(keys) == ["valid_4_a_1", "valid_6_a_1", "valid_7_a_1", "valid_8_a_1"]
    assert [event.key for event in told if isinstance(event, SampleFailed)] == ["valid_5_a_1"]
    assert isinstance(told[-1], ShardCommitted)
    assert told[-1].samples == 7
    assert follower.written == 4
    # Journals and records say how the sources are stored.
    assert {e.orientation for e in told if isinstance(e, SampleWritten)} == {"RAS"}


@pytest.mark.slow
def test_what_another_driver_writes_meanwhile_is_not_counted(interrupted: Path) -> None:
    follower = Follower(interrupted, Plan.load(interrupted), lambda event: None)
    follower.begin(1, retry_failed=False)
    ctgpu.build(interrupted, device="cpu")
    follower.look(1)
    assert follower.written == 0


@pytest.mark.slow
def test_a_retry_keeps_what_the_record_has(interrupted: Path) -> None:
    ctgpu.build(interrupted, device="cpu")
    told: list[Event] = []
    follower = Follower(interrupted, Plan.load(interrupted), told.append)
    follower.begin(0, retry_failed=True)
    assert told == []
    make_source(interrupted.parent / "source", 2 * SAMPLES_PER_SHARD)
    ctgpu.build(interrupted, device="cpu", retry_failed=True)
    follower.finish(0)
    assert [event.key for event in told if isinstance(event, SampleWritten)] == ["valid_5_a_1"]
    assert follower.written == 1
