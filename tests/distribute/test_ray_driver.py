"""The window of Ray tasks, and what becomes of each result, without a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cases import FakeRay, RayError, job

import ctgpu
from ctgpu.building.events import Event, SampleWritten, ShardDoneElsewhere, ShardElsewhere
from ctgpu.building.pipeline import PipelineReport
from ctgpu.distribute import ray_driver, ray_task
from ctgpu.distribute.ray_driver import Driver
from ctgpu.distribute.ray_resources import Resources
from ctgpu.distribute.ray_task import ShardResult, make_shard
from ctgpu.errors import AccessError, DeviceError, EnvironmentFailure, StorageError
from ctgpu.shards.folder import is_committed
from ctgpu.shards.lease import LeaseLost
from ctgpu.shards.plan import Plan
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import COARSE_SPEC, chests, study_ids

SHARDS = 5
TWO_AT_A_TIME = Resources(cpus=1, gpus=0, at_a_time=2, most_per_machine=2)
ON_FIRE = DeviceError("the device is on fire")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is waited for; what tasks keep in this process is given back."""
    monkeypatch.setattr(ray_driver, "_POLL_S", 0.001)
    monkeypatch.setattr(ray_driver, "_RETRY_AFTER_S", 0.0)
    yield
    ray_task._close_workplace()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plan of five shards, of which none is made."""
    lay_out_ct_rate(tmp_path / "source", chests(study_ids(SHARDS), (24, 22, 16)))
    ctgpu.build(
        tmp_path / "out",
        source=tmp_path / "source",
        spec=COARSE_SPEC,
        samples_per_shard=1,
        shards=range(1),
        device="cpu",
    )
    for path in (tmp_path / "out").glob("shard-*"):
        path.unlink()
    return tmp_path / "out"


def make(folder: Path, index: int) -> ShardResult:
    """What a worker does."""
    return make_shard(job(folder), "run", ctgpu.__version__, 1, index)


def made(folder: Path) -> list[int]:
    return [index for index in range(SHARDS) if is_committed(folder, index)]


class Run:
    """A driver whose tasks become what a test says."""

    def __init__(
        self,
        folder: Path,
        work: Callable[[int], ShardResult],
        watch: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> None:
        self.told: list[Event] = []
        self.ray = FakeRay(work)
        plan = Plan.load(folder)
        self.driver = Driver(
            self.ray,  # type: ignore[arg-type]
            job(folder, **options),
            TWO_AT_A_TIME,
            plan,
            watch or self.told.append,
        )


def test_every_shard_is_one_task_and_few_of_them_wait(folder: Path) -> None:
    run = Run(folder, lambda index: make(folder, index))
    run.driver.work_off(range(SHARDS))
    assert run.ray.started == made(folder) == list(range(SHARDS))
    assert run.ray.most_waiting == 2 * TWO_AT_A_TIME.at_a_time
    assert (run.ray.asked["num_cpus"], run.ray.asked["num_gpus"]) == (1, 0)
    # An error of ours is looked at here, and only lost processes are Ray's to repeat.
    assert run.ray.asked["retry_exceptions"] is False
    assert run.driver.follower.written == SHARDS
    assert [type(report) for report in run.driver.reports] == [PipelineReport] * SHARDS
    written = [event.key for event in run.told if isinstance(event, SampleWritten)]
    assert written == study_ids(SHARDS)
    assert run.ray.cancelled == []


@pytest.mark.parametrize(
    "error", [ON_FIRE, RayError("the worker died\nwith a long trace"), ValueError("a defect")]
)
def test_what_may_pass_is_tried_again(folder: Path, error: Exception) -> None:
    failed: Counter[int] = Counter()

    def work(index: int) -> ShardResult:
        if index == 1 and failed[index] < 2:
            failed[index] += 1
            if isinstance(error, DeviceError):
                return ShardResult("node1", error=error)
            raise error if isinstance(error, RayError) else RayTaskError(error)
        return make(folder, index)

    run = Run(folder, work)
    run.driver.work_off(range(SHARDS))
    assert made(folder) == list(range(SHARDS))
    assert Counter(run.ray.started)[1] == 3


class RayTaskError(RayError):
    """What Ray makes of an exception that a task has raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::make_shard() ...")
        self.cause = cause


def test_what_stays_is_reported_once_the_rest_is_made(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def work(index: int) -> ShardResult:
        return ShardResult("node1", error=ON_FIRE) if index == 1 else make(folder, index)

    run = Run(folder, work)
    with pytest.raises(
        EnvironmentFailure,
        match=r"1 of 5 shards could not be made, shard 000001 for one: the device is on fire "
        r"\(on node1\); the others are finished",
    ):
        run.driver.work_off(range(SHARDS))
    assert made(folder) == [0, 2, 3, 4]
    assert Counter(run.ray.started)[1] == 3
    assert caplog.text.count("shard 000001 failed and is tried again") == 2
    assert "shard 000001 failed 3 times" in caplog.text
    assert (folder / "manifest.json").exists()


def test_where_nothing_works_not_everything_is_tried(folder: Path) -> None:
    run = Run(folder, lambda index: ShardResult("node1", error=ON_FIRE))
    with pytest.raises(EnvironmentFailure, match=r"^9 tasks failed one after the other, .*on fire"):
        run.driver.work_off(range(SHARDS))
    assert len(run.ray.cancelled) == len(run.ray.started) - 9


@pytest.mark.parametrize(
    "error", [StorageError("out is full"), AccessError("the token was refused")]
)
def test_what_would_be_the_same_on_every_node_ends_it_at_once(
    folder: Path, error: Exception
) -> None:
    def work(index: int) -> ShardResult:
        return ShardResult("node1", error=error) if index == 1 else make(folder, index)

    run = Run(folder, work)
    with pytest.raises(type(error), match=str(error)):
        run.driver.work_off(range(SHARDS))
    assert made(folder) == [0]
    assert 1 not in run.ray.cancelled
    assert set(run.ray.cancelled) == set(run.ray.started) - {0, 1}


@pytest.mark.parametrize("lost", [False, True])
def test_what_another_process_makes_is_told_of_once_and_left_to_it(
    folder: Path, lost: bool
) -> None:
    asked: Counter[int] = Counter()

    def work(index: int) -> ShardResult:
        asked[index] += 1
        if index != 1:
            return make(folder, index)
        if asked[index] == 2:
            # By now the other one is done.
            make(folder, index)
        if lost:
            return ShardResult("node1", error=LeaseLost("the lease is another's"))
        return ShardResult("node1", held="process 17 on node3")

    run = Run(folder, work)
    run.driver.work_off(range(SHARDS))
    assert made(folder) == list(range(SHARDS))
    elsewhere = [event for event in run.told if isinstance(event, ShardElsewhere)]
    holder = "another process" if lost else "process 17 on node3"
    assert elsewhere == [ShardElsewhere(1, holder)]
    assert [e for e in run.told if isinstance(e, ShardDoneElsewhere)] == [ShardDoneElsewhere(1, 1)]
    assert run.driver.follower.written == SHARDS - 1


def test_a_folder_that_does_not_show_what_a_node_has_made_is_not_shared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_driver, "_VISIBLE_WITHIN_S", 0.0)
    report = PipelineReport(1.0, [], 0, 1)
    run = Run(folder, lambda index: ShardResult("node7", report=report))
    with pytest.raises(StorageError, match=r"node7 has finished shard 000000.*all nodes share"):
        run.driver.work_off(range(SHARDS))


def test_who_watches_may_end_it(folder: Path) -> None:
    def watch(event: Event) -> None:
        if isinstance(event, SampleWritten):
            raise KeyboardInterrupt

    run = Run(folder, lambda index: make(folder, index), watch)
    with pytest.raises(KeyboardInterrupt):
        run.driver.work_off(range(SHARDS))
    assert made(folder) == [0]
    assert set(run.ray.cancelled) == set(run.ray.started) - {0}
