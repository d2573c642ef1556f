"""Threads: those of this package, and room for those of others."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ctgpu.errors import shortage


class Thread(threading.Thread):
    """A daemon thread whose end can be waited for, by :attr:`ended`, while signal handlers raise.

    Up to Python 3.12, ``join`` takes a running thread for ended once a signal handler has raised in
    it (what bpo-45274 added to ``_wait_for_tstate_lock`` does so): what follows would close files
    that the thread still writes.

    Parameters
    ----------
    target : callable
        What the thread does.
    args : object
        Its arguments.
    name : str
        Of the thread.

    Attributes
    ----------
    ended : threading.Event
        Set when `target` has returned or raised.
    """

    def __init__(self, target: Callable[..., object], *args: object, name: str) -> None:
        super().__init__(target=target, args=args, name=name, daemon=True)
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self.ended.set()


def require_threads(count: int) -> None:
    """Make sure that `count` more threads can be started, by starting them.

    Raises
    ------
    EnvironmentFailure
        If not: for libraries that would end the process over it.
    """
    enough = threading.Event()
    started: list[Thread] = []
    try:
        for _ in range(count):
            thread = Thread(enough.wait, name="ctgpu-probe")
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        if (short := shortage(error)) is None:
            raise
        raise short from error
    finally:
        enough.set()
        for thread in started:
            thread.ended.wait()
