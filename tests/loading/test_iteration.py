"""One iteration of a loader counts at a time, in one thread, and counts what it handed out."""

from __future__ import annotations

import copy
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loading_cases import STUDIES, studies

from ctgpu import loading
from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset

torch = pytest.importorskip("torch")

# What is lent can be overwritten; batches of the consumer's own have less to go wrong.
make_loader = functools.partial(loading.make_loader, copy=False)

_GUARD_S = 60


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ctgpu-")]


@pytest.fixture(scope="module")
def expected(_built: dict[str, Path]) -> dict[str, Any]:
    dataset = VolumeDataset(_built["HWD"])
    return {
        study_id: torch.from_numpy(dataset[study_id]["volume"].copy())
        for study_id in dataset.study_ids
    }


def right(batch: Any, expected: dict[str, Any]) -> bool:
    return all(
        torch.equal(batch["volume"][row], expected[study_id])
        for row, study_id in enumerate(batch["study_id"])
    )


def test_iterating_twice_at_a_time_is_refused_and_the_loader_goes_on(hwd: Path) -> None:
    loader = make_loader(hwd, 2)
    pairs = zip(loader, loader, strict=True)
    next(pairs)
    with pytest.raises(UsageError, match=r"began a newer one.*make two loaders"):
        next(pairs)
    assert studies(loader) == STUDIES
    assert loader.state_dict()["epoch"] == 1


def test_the_batch_of_an_outer_loop_stays_as_it_is_in_an_inner_one(
    hwd: Path, expected: dict[str, Any]
) -> None:
    loader = make_loader(hwd, 2, prefetch_bytes=0)
    outer = iter(loader)
    kept = next(outer)
    for batch in loader:
        assert right(kept, expected)
        assert right(batch, expected)
    with pytest.raises(UsageError, match="began a newer one"):
        next(outer)
    assert loader.epoch == 1  # the inner loop's


@pytest.mark.parametrize("kept", [True, False])
def test_an_iteration_that_was_left_does_not_disturb_the_next(
    hwd: Path, expected: dict[str, Any], kept: bool
) -> None:
    loader = make_loader(hwd, 2, num_threads=2)
    left = []
    for leave_after in (1, 3, 0, 5):
        batches = iter(loader)
        last = [next(batches) for _ in range(leave_after)][-1:]
        if kept:
            left.append(batches)
        del batches
        following = iter(loader)
        assert next(following)["study_id"] == STUDIES[:2]
        assert len(readers()) <= 3  # of the one that counts alone
        assert all(right(batch, expected) for batch in last)
        following.close()  # type: ignore[attr-defined]
    assert studies(loader) == STUDIES
    for batches in left:
        if left.index(batches) != 2:  # the one that was never used
            with pytest.raises(UsageError, match="began a newer one"):
                next(batches)
    assert readers() == []


def test_iterations_that_are_left_take_no_more_memory(hwd: Path) -> None:
    loader = make_loader(hwd, 2)
    studies(loader)
    taken = loader.buffer_bytes
    for count in (1, 2, 4):
        batches = iter(loader)
        for _ in range(count):
            next(batches)
        del batches
        assert loader.buffer_bytes == taken
    studies(loader)
    assert loader.buffer_bytes == taken


def test_an_iteration_that_was_made_and_not_used_changes_nothing(hwd: Path) -> None:
    loader = make_loader(hwd, 2)
    batches = iter(loader)
    next(batches)
    unused = [iter(loader), iter(loader)]
    assert studies(batches) == STUDIES[2:]
    # Used later, it begins where the loader is then.
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert studies(unused[0]) == STUDIES
    assert loader.epoch == 2


def test_what_was_handed_out_whole_just_ends(hwd: Path) -> None:
    loader = make_loader(hwd, 4)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    loader.set_epoch(7)  # as a training loop does after its last step
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    assert loader.epoch == 7
    closed = iter(loader)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(closed)


@pytest.mark.parametrize("how", ["set_epoch", "load_state_dict"])
def test_a_loader_set_elsewhere_refuses_its_iteration_and_goes_there(hwd: Path, how: str) -> None:
    loader = make_loader(hwd, 2, shuffle=True, seed=3)
    there = make_loader(hwd, 2, shuffle=True, seed=3)
    there.set_epoch(4)
    batches = iter(there)
    next(batches)
    state, rest = there.state_dict(), studies(batches)
    there.set_epoch(4)
    whole = studies(there)
    batches = iter(loader)
    next(batches)
    if how == "set_epoch":
        loader.set_epoch(4)
    else:
        loader.load_state_dict(state)
    with pytest.raises(UsageError, match="set to another place by set_epoch or load_state_dict"):
        next(batches)
    assert studies(loader) == (whole if how == "set_epoch" else rest)
    assert loader.state_dict()["epoch"] == 5


def test_another_thread_is_refused_also_where_it_asks_at_another_time(
    hwd: Path, expected: dict[str, Any]
) -> None:
    loader = make_loader(hwd, 2, prefetch_bytes=0)
    batches = iter(loader)
    first = next(batches)
    with ThreadPoolExecutor(1) as other:
        for _ in range(3):
            with pytest.raises(UsageError, match=r"serves the thread that began it.*each thread"):
                other.submit(next, batches).result(_GUARD_S)
        assert right(first, expected)
        assert studies(batches) == STUDIES[2:]
        # It may well have an iteration of its own, after which ours does not count.
        mine = iter(loader)
        kept = next(mine)
        assert other.submit(studies, loader).result(_GUARD_S) == STUDIES
        assert right(kept, expected)
        with pytest.raises(UsageError, match="began a newer one"):
            next(mine)


def test_of_two_threads_that_ask_at_once_one_gets_every_batch(hwd: Path) -> None:
    loader = make_loader(hwd, 1)
    batches = iter(loader)
    start = threading.Barrier(2)

    def ask() -> tuple[list[str], list[str]]:
        got, refused = [], []
        start.wait(_GUARD_S)
        while True:
            try:
                got += next(batches)["study_id"]
            except StopIteration:
                return got, refused
            except UsageError as error:
                refused.append(str(error))
                if len(refused) == 100:
                    return got, refused

    with ThreadPoolExecutor(2) as threads:
        answers = [future.result(_GUARD_S) for future in [threads.submit(ask) for _ in range(2)]]
    assert sorted(len(got) for got, _ in answers) == [0, 11]
    for got, refused in answers:
        assert got in ([], STUDIES)
        assert all("serves the thread that began it" in message for message in refused)


def test_a_newer_iteration_in_another_thread_ends_one_that_waits_for_its_batch(
    hwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(hwd)
    read_into, waiting, proceed = dataset.read_into, threading.Event(), threading.Event()

    def held(index: int, *arguments: Any, **masks: Any) -> Any:
        if not waiting.is_set():
            waiting.set()
            assert proceed.wait(_GUARD_S)
        return read_into(index, *arguments, **masks)

    monkeypatch.setattr(dataset, "read_into", held)
    loader = make_loader(dataset, 2, num_threads=1)
    with ThreadPoolExecutor(1) as other:
        earlier = other.submit(next, iter(loader))
        assert waiting.wait(_GUARD_S)
        later = iter(loader)
        first = next(later)
        proceed.set()
        with pytest.raises(UsageError, match="began a newer one"):
            earlier.result(_GUARD_S)
        assert loader.state_dict()["position"] == 2
        assert studies([first]) + studies(later) == STUDIES


def test_a_transform_that_asks_for_the_next_batch_is_refused(hwd: Path) -> None:
    batches: Any = None
    loader = make_loader(hwd, 2, transform=lambda batch: [batch, next(batches)])  # type: ignore[arg-type, return-value]
    batches = iter(loader)
    with pytest.raises(UsageError, match="one batch after the other"):
        next(batches)
    assert loader.state_dict()["position"] == 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("where", ["transform", "hand_over"])
@pytest.mark.parametrize("ahead", [0, 1 << 30])
def test_a_batch_that_nobody_got_is_not_counted_and_comes_again(
    hwd: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: dict[str, Any],
    kind: type[BaseException],
    where: str,
    ahead: int,
) -> None:
    asked = 0

    def spoil(batch: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked in (3, 4):
            batch["volume"].zero_()  # what a transform in place leaves half done
            raise kind("no")
        return batch

    def hand_over(self: Any, volume: Any, labels: Any) -> None:
        spoil({"volume": volume})

    if where == "transform":
        loader = make_loader(hwd, 2, transform=spoil, prefetch_bytes=ahead)
    else:
        monkeypatch.setattr("ctgpu.loading.targets.HostTarget.hand_over", hand_over)
        loader = make_loader(hwd, 2, prefetch_bytes=ahead)
    batches = iter(loader)
    seen = next(batches)["study_id"] + next(batches)["study_id"]
    for _ in range(2):
        with pytest.raises(RuntimeError if kind is StopIteration else kind):
            next(batches)
        state = loader.state_dict()
        assert state["position"] == len(seen)
    for batch in batches:
        assert right(batch, expected)
        seen += batch["study_id"]
    assert seen == STUDIES
    assert loader.state_dict()["epoch"] == 1
    resumed = make_loader(hwd, 2)
    resumed.load_state_dict(state)
    assert studies(resumed) == STUDIES[4:]


def test_after_an_error_a_loader_goes_on_from_its_state(hwd: Path) -> None:
    broken = True

    def transform(batch: Any) -> Any:
        if broken and "valid_5_a_1" in batch["study_id"]:
            raise ValueError("no")
        return batch

    loader = make_loader(hwd, 2, transform=transform)
    with pytest.raises(ValueError, match="no"):
        studies(loader)
    assert readers() == []
    broken = False
    loader.load_state_dict(loader.state_dict())
    assert studies(loader) == STUDIES[4:]
    assert loader.epoch == 1


def test_an_interrupt_while_a_batch_is_awaited_loses_none(
    hwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(hwd)
    read_into, interrupted = dataset.read_into, threading.Event()

    def interrupting(index: int, *arguments: Any, **masks: Any) -> Any:
        if index == 4 and not interrupted.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(_GUARD_S)
        return read_into(index, *arguments, **masks)

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "read_into", interrupting)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        loader = make_loader(dataset, 2, prefetch_bytes=0)
        batches, seen, interrupts = iter(loader), [], 0
        while True:
            try:
                seen += next(batches)["study_id"]
            except KeyboardInterrupt:
                interrupts += 1
                assert loader.state_dict()["position"] == len(seen)
            except StopIteration:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupts == 1
    assert seen == STUDIES


@pytest.mark.slow
def test_a_reader_that_collects_its_own_iteration_ends_it(
    hwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(hwd)
    read_into, reads = dataset.read_into, []
    reading, dropped, collected = (threading.Event() for _ in range(3))

    def collecting(index: int, *arguments: Any, **masks: Any) -> Any:
        reads.append(index)
        if len(reads) == 3:
            reading.set()
            dropped.wait(_GUARD_S)
            gc.collect()
            collected.set()
        return read_into(index, *arguments, **masks)

    monkeypatch.setattr(dataset, "read_into", collecting)
    loader = make_loader(dataset, 1, num_threads=1)
    gc.disable()
    try:
        batches = iter(loader)
        next(batches)
        cycle: dict[str, Any] = {"batches": batches}
        cycle["itself"] = cycle
        assert reading.wait(_GUARD_S)
        ours = [t for t in threading.enumerate() if t.name.startswith("ctgpu-")]
        assert ours
        del batches, cycle
        dropped.set()
        assert collected.wait(_GUARD_S)
        for thread in ours:
            thread.join(_GUARD_S)
            assert not thread.is_alive()
    finally:
        gc.enable()
    assert len(reads) == 3  # nothing is read for nobody
    assert studies(loader) == STUDIES


def _in_child(loader: Any, batches: Any, answer: Any) -> None:
    try:
        next(batches)
    except UsageError as error:
        answer.send(str(error))
    answer.send(studies(loader))


def test_a_forked_process_has_iterations_of_its_own(hwd: Path) -> None:
    loader = make_loader(hwd, 2)
    batches = iter(loader)
    next(batches)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(loader, batches, send))
    child.start()
    assert receive.poll(_GUARD_S)
    assert "in the process that this one was forked from" in receive.recv()
    assert receive.poll(_GUARD_S)
    assert receive.recv() == STUDIES
    child.join(_GUARD_S)
    assert child.exitcode == 0
    assert studies(batches) == STUDIES[2:]


def test_a_loader_is_not_pickled_and_says_what_is(hwd: Path) -> None:
    loader = make_loader(hwd)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError, match="make it in each process, of a data set"):
            duplicate(loader)
