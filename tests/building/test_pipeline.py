"""The pipeline alone, with stages made of plain functions."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from ctgpu.buffers import ByteBudget
from ctgpu.building.pipeline import (
    COMPRESS,
    Failure,
    Pipeline,
    PipelineReport,
    Stages,
    StageTime,
    Workers,
)
from ctgpu.errors import DecodeError, StorageError


class Recorder:
    """Stages that pass numbers on, slowly and out of order, and remember what happened."""

    def __init__(self, *, jitter_s: float = 0.002, estimate: int = 10, actual: int = 10) -> None:
        self.random = random.Random(1)
        self.jitter_s = jitter_s
        self.estimate, self.actual = estimate, actual
        self.written: list[tuple[int, Any]] = []
        self.discarded: list[Any] = []
        self.batches: list[int] = []

    def pause(self) -> None:
        time.sleep(self.random.random() * self.jitter_s)

    def fetch(self, task: int) -> int:
        self.pause()
        return task

    def decode(self, task: int, fetched: int) -> int:
        self.pause()
        return fetched * 10

    def make(self, batch: Sequence[tuple[int, int]]) -> list[int | Failure]:
        self.pause()
        self.batches.append(len(batch))
        return [decoded + 1 for _, decoded in batch]

    def compress(self, task: int, made: int) -> int:
        self.pause()
        return -made

    def write(self, task: int, result: int | Failure) -> None:
        self.written.append((task, result))

    def stages(self, **replaced: Any) -> Stages[int, int, int, int]:
        functions: dict[str, Any] = {
            "footprint": lambda task: self.estimate,
            "fetch": self.fetch,
            "fetched_footprint": lambda task, fetched: self.actual,
            "decode": self.decode,
            "decoded_footprint": lambda task, decoded: self.actual,
            "make": self.make,
            "made_footprint": lambda task: 1,
            "write": self.write,
            "discard": self.discarded.append,
        }
        return Stages(**(functions | replaced))


@pytest.mark.parametrize("workers", [Workers(1, 1, 1), Workers(8, 4, 3, batch_size=4)])
def test_results_are_written_in_order_whatever_the_number_of_workers(workers: Workers) -> None:
    recorder = Recorder()
    report = Pipeline(recorder.stages(), workers, ByteBudget(1000)).run(range(60))
    assert recorder.written == [(n, n * 10 + 1) for n in range(60)]
    assert recorder.discarded == []
    assert [stage.name for stage in report.stages] == ["fetch", "decode", "device", "write"]
    assert all(stage.busy_s > 0 for stage in report.stages)
    assert report.bottleneck in report.stages


def test_a_stage_that_compresses_stands_before_the_writer() -> None:
    recorder = Recorder()
    stages = recorder.stages(compress=recorder.compress)
    report = Pipeline(stages, Workers(4, 3, 2, batch_size=2), ByteBudget(1000)).run(range(40))
    assert recorder.written == [(n, -(n * 10 + 1)) for n in range(40)]
    names = [(stage.name, stage.threads) for stage in report.stages]
    wanted = [("fetch", 4), ("decode", 3), ("device", 2), (COMPRESS, 3), ("write", 1)]
    assert names == wanted
    assert all(stage.busy_s > 0 for stage in report.stages)


def test_what_cannot_be_compressed_is_a_sample_that_failed() -> None:
    recorder = Recorder()
    compressed: list[int] = []

    def decode(task: int, fetched: int) -> int:
        if task == 2:
            raise DecodeError("file two is rubbish")
        return recorder.decode(task, fetched)

    def compress(task: int, made: int) -> int:
        compressed.append(task)
        if task == 3:
            raise DecodeError("file three is too smooth")
        if task == 4:
            raise ZeroDivisionError
        return recorder.compress(task, made)

    stages = recorder.stages(decode=decode, compress=compress)
    Pipeline(stages, Workers(2, 2, 1), ByteBudget(1000)).run(range(8))
    assert [task for task, _ in recorder.written] == list(range(8))
    assert recorder.written[2][1] == Failure("decode", "DecodeError", "file two is rubbish")
    assert recorder.written[3][1] == Failure("decode", "DecodeError", "file three is too smooth")
    assert recorder.written[4][1] == Failure(COMPRESS, "ZeroDivisionError", "ZeroDivisionError")
    assert recorder.written[5][1] == -51
    # There is nothing to compress of what has failed before.
    assert sorted(compressed) == [0, 1, *range(3, 8)]


def test_what_was_made_holds_its_memory_until_it_is_compressed() -> None:
    recorder = Recorder(estimate=10)
    budget = ByteBudget(100)
    held: list[int] = []

    def compress(task: int, made: int) -> int:
        held.append(budget.used_bytes)
        return made

    def write(task: int, result: int | Failure) -> None:
        held.append(budget.used_bytes)

    stages = recorder.stages(
        made_footprint=lambda task: 8,
        compress=compress,
        compressed_footprint=lambda task, made: 3,
        write=write,
    )
    Pipeline(stages, Workers(1, 1, 1), budget).run(range(1))
    assert held == [8, 3]
    assert budget.used_bytes == 0


def test_no_tasks_is_a_run_of_no_length() -> None:
    recorder = Recorder()
    Pipeline(recorder.stages(), Workers(2, 2, 1), ByteBudget(10)).run([])
    assert recorder.written == []


def test_device_batches_are_bounded_and_complete() -> None:
    recorder = Recorder()
    Pipeline(recorder.stages(), Workers(8, 4, 1, batch_size=3), ByteBudget(10_000)).run(range(40))
    assert sum(recorder.batches) == 40
    assert max(recorder.batches) <= 3


@pytest.mark.parametrize("stage", ["fetch", "decode"])
def test_a_sample_that_fails_keeps_its_place_and_the_rest_goes_on(stage: str) -> None:
    recorder = Recorder()

    def fails(task: int, *rest: Any) -> int:
        if task == 7:
            raise DecodeError("file seven is rubbish")
        if task == 8:
            raise ZeroDivisionError
        return getattr(Recorder, stage)(recorder, task, *rest)

    Pipeline(recorder.stages(**{stage: fails}), Workers(4, 2, 1), ByteBudget(1000)).run(range(20))
    assert [task for task, _ in recorder.written] == list(range(20))
    assert recorder.written[7][1] == Failure("decode", "DecodeError", "file seven is rubbish")
    assert recorder.written[8][1] == Failure(stage, "ZeroDivisionError", "ZeroDivisionError")
    assert recorder.written[9][1] == 91


@pytest.mark.parametrize("stage", ["fetch", "decode", "make", "compress", "write"])
def test_a_failing_environment_ends_the_run_and_gives_memory_back(stage: str) -> None:
    recorder = Recorder()
    budget = ByteBudget(200)

    def fails(task: Any, *rest: Any) -> Any:
        number = task[0][0] if stage == "make" else task
        if number >= 5:
            raise StorageError("the disk is gone")
        return getattr(Recorder, stage)(recorder, task, *rest)

    stages = recorder.stages(**({"compress": recorder.compress} | {stage: fails}))
    pipeline = Pipeline(stages, Workers(4, 2, 1), budget)
    with pytest.raises(StorageError, match="the disk is gone"):
        pipeline.run(range(1000))
    assert [task for task, _ in recorder.written] == list(range(len(recorder.written)))


def test_stop_finishes_the_write_under_way_and_drops_the_rest() -> None:
    recorder = Recorder()
    entered = threading.Event()
    finished: list[int] = []

    def write(task: int, result: int | Failure) -> None:
        entered.set()
        time.sleep(0.05)
        finished.append(task)

    pipeline = Pipeline(recorder.stages(write=write), Workers(2, 2, 1), ByteBudget(1000))
    stopper = threading.Thread(
        target=lambda: (entered.wait(), pipeline.stop(KeyboardInterrupt())), daemon=True
    )
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(range(100_000))
    assert finished == list(range(len(finished)))
    assert 1 <= len(finished) < 100


def test_the_budget_is_held_when_estimates_are_right() -> None:
    recorder = Recorder(estimate=40, actual=40)
    held = 0
    most = 0
    lock = threading.Lock()

    def fetch(task: int) -> int:
        nonlocal held, most
        with lock:
            held += 40
            most = max(most, held)
        time.sleep(0.002)
        return task

    def write(task: int, result: int | Failure) -> None:
        nonlocal held
        with lock:
            held -= 40

    stages = recorder.stages(fetch=fetch, write=write, made_footprint=lambda task: 40)
    report = Pipeline(stages, Workers(32, 4, 1), ByteBudget(100)).run(range(50))
    assert most <= 100
    assert report.peak_reserved_bytes <= 100


def test_a_sample_larger_than_the_budget_runs_alone() -> None:
    recorder = Recorder(estimate=500, actual=500)
    Pipeline(recorder.stages(), Workers(4, 2, 1), ByteBudget(100)).run(range(10))
    assert [task for task, _ in recorder.written] == list(range(10))


def test_estimates_far_too_low_do_not_deadlock() -> None:
    recorder = Recorder(estimate=1, actual=90, jitter_s=0.004)
    report = Pipeline(recorder.stages(), Workers(16, 2, 2), ByteBudget(100)).run(range(60))
    assert [task for task, _ in recorder.written] == list(range(60))
    # The oldest sample alone may go over, by no more than its own size.
    assert report.peak_reserved_bytes <= 100 + 90


def test_a_stopped_run_waits_for_what_is_being_written() -> None:
    writing, written = threading.Event(), threading.Event()

    class Stopped(BaseException):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stopped

    def write(task: int, result: int | Failure) -> None:
        writing.set()
        time.sleep(0.3)
        written.set()

    def interrupt() -> None:
        writing.wait()
        # The main thread waits for the run's end by now, or is about to.
        signal.raise_signal(signal.SIGUSR1)

    usual = signal.signal(signal.SIGUSR1, stop)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.raises(Stopped):
            Pipeline(Recorder().stages(write=write), Workers(1, 1, 1), ByteBudget(100)).run([1, 2])
        # Or its files would be closed, and their numbers given to others, under the writer.
        assert written.is_set()
    finally:
        signal.signal(signal.SIGUSR1, usual)
        interrupter.join()


def test_the_bottleneck_is_not_the_stage_that_was_done_first() -> None:
    # Threads that end once all is fetched have never waited; one at the end waits for the first.
    fetch, device = StageTime("fetch", 8, 0.4, 0.0), StageTime("device", 1, 0.2, 0.1)
    assert fetch.utilisation > device.utilisation
    assert PipelineReport(0.3, [fetch, device], 0, samples=8).bottleneck is device
    # A single file is fetched by a single thread, however many there are.
    assert PipelineReport(0.6, [fetch, device], 0, samples=1).bottleneck is fetch


def test_pipelines_side_by_side_count_their_samples_together() -> None:
    reports = [
        Pipeline(Recorder().stages(), Workers(2, 1, 1), ByteBudget(1000)).run(range(count))
        for count in (3, 4)
    ]
    assert PipelineReport.together(reports, 2, 1.0).samples == 7
