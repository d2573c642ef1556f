"""Which samples a run makes, and the events of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ctgpu.building.events import (
    Event,
    Planned,
    SampleWritten,
    ShardCommitted,
    ShardDoneElsewhere,
    ShardElsewhere,
    ShardResumed,
)
from ctgpu.distribute.follow import Follower
from ctgpu.shards.lease import LeaseSession
from ctgpu.shards.plan import Plan
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.building import builds
from support.phantoms import COARSE_SPEC, chests, study_ids


@pytest.fixture
def source(tmp_path: Path) -> Path:
    volumes = chests(study_ids(6), (60, 56, 40), first_seed=1)
    lay_out_ct_rate(tmp_path / "source", volumes)
    return tmp_path / "source"


build = builds(spec=COARSE_SPEC, samples_per_shard=3)


@pytest.mark.slow
def test_what_another_process_makes_is_told_of_when_it_begins_and_when_it_is_done(
    tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out"
    told: list[Event] = []
    waits = threading.Event()

    def watch(event: Event) -> None:
        told.append(event)
        if isinstance(event, ShardElsewhere):
            waits.set()

    # The shard, made already, is what the other process will commit.
    build(tmp_path / "other", source, shards=range(1, 2))
    build(out, source, shards=range(1), limit=None)
    with LeaseSession(out) as other:
        lease = other.acquire(1)
        builder = threading.Thread(target=build, args=(out, source), kwargs={"watch": watch})
        builder.start()
        assert waits.wait(60)
        for suffix in ("tar", "idx", "json"):
            name = f"shard-000001.{suffix}"
            os.link(tmp_path / "other" / name, out / name)
        lease.release()
        builder.join()
    (planned,) = [event for event in told if isinstance(event, Planned)]
    assert planned.pending_samples == 3
    assert [event for event in told if not isinstance(event, Planned)] == [
        ShardElsewhere(1, f"process {os.getpid()} on {os.uname().nodename}"),
        ShardDoneElsewhere(1, 3),
    ]


def test_a_retry_counts_and_tells_of_the_samples_that_it_makes_alone(
    tmp_path: Path, source: Path
) -> None:
    broken = [next(source.rglob(f"valid_{n}_a_1.nii.gz")) for n in (2, 5)]
    good = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"nothing")
    build(tmp_path / "out", source)
    for path, content in zip(broken, good, strict=True):
        path.write_bytes(content)
    told: list[Event] = []
    report = build(tmp_path / "out", source, retry_failed=True, watch=told.append)
    assert report.written == 2
    (planned,) = [event for event in told if isinstance(event, Planned)]
    assert (planned.pending_shards, planned.pending_samples) == (2, 2)
    assert not [event for event in told if isinstance(event, ShardResumed)]
    assert sum(isinstance(event, SampleWritten) for event in told) == 2
    assert sum(isinstance(event, ShardCommitted) for event in told) == 2


def test_a_retry_that_also_goes_on_counts_both(tmp_path: Path, source: Path) -> None:
    next(source.rglob("valid_2_a_1.nii.gz")).write_bytes(b"nothing")
    build(tmp_path / "out", source, shards=range(1))
    told: list[Event] = []
    build(tmp_path / "out", source, retry_failed=True, watch=told.append)
    (planned,) = [event for event in told if isinstance(event, Planned)]
    assert (planned.pending_shards, planned.pending_samples) == (2, 1 + 3)


def test_a_follower_leaves_a_shard_with_what_it_has_not_told_of(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source)
    told: list[Event] = []
    follower = Follower(tmp_path / "out", Plan.load(tmp_path / "out"), told.append)
    follower.begin(1, retry_failed=False)
    follower.leave(1)
    follower.leave(0)
    assert told == [ShardDoneElsewhere(1, 3), ShardDoneElsewhere(0, 3)]
