"""Threads whose end can be waited for, and room for those of others."""

from __future__ import annotations

import threading

import pytest

from ctgpu.errors import EnvironmentFailure
from ctgpu.threads import Thread, require_threads


def probes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ctgpu-probe"]


def test_a_thread_has_ended_when_its_work_is_done() -> None:
    began, go_on = threading.Event(), threading.Event()
    seen: list[object] = []

    def work(*args: object) -> None:
        seen.extend(args)
        began.set()
        go_on.wait()

    thread = Thread(work, 1, "two", name="ctgpu-work")
    assert not thread.ended.is_set()
    thread.start()
    began.wait()
    assert (seen, thread.name, thread.daemon) == ([1, "two"], "ctgpu-work", True)
    assert not thread.ended.is_set()
    go_on.set()
    thread.ended.wait()
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_raises_has_ended_too() -> None:
    def work() -> None:
        raise ValueError("no")

    thread = Thread(work, name="ctgpu-work")
    thread.start()
    thread.ended.wait()
    thread.join()


def test_where_threads_can_be_started_none_is_left() -> None:
    require_threads(0)
    require_threads(3)
    for thread in probes():
        thread.join()
    assert probes() == []


@pytest.mark.parametrize("before", [0, 2])
def test_where_they_cannot_it_is_the_environments_failure_and_none_is_left(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = Thread.start, []

    def refuse(thread: Thread) -> None:
        if len(started) == before:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(Thread, "start", refuse)
    with pytest.raises(EnvironmentFailure, match="thread"):
        require_threads(4)
    assert len(started) == before
    assert all(thread.ended.is_set() for thread in started)


def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("threads can only be started once")

    monkeypatch.setattr(Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="only be started once"):
        require_threads(1)
