"""Threads whose end can be waited for while signal handlers raise."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Thread(threading.Thread):
    """A daemon thread with :attr:`ended` in place of ``join``.

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
