"""What ends a command that makes something, before it is done."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from ctgpu.errors import SampleError, SourceError

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# The signal that is being obeyed.
_begun: list[int] = []


class Stopped(BaseException):
    """SIGINT, or SIGTERM as a scheduler sends it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.sentence = "stopped"
        #: What goes on with it, where something does.
        self.command: str | None = None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let a signal raise, the first time, so that what was begun is tidied up.

    Raises
    ------
    Stopped
        Where one comes.
    SourceError
        Where an error of one sample comes through: with it the whole job has ended, and must not
        end like one that is complete except for failed samples.
    """
    _begun.clear()
    for number in _NUMBERS:
        signal.signal(number, _stop)
    try:
        yield
    except SampleError as error:
        raise SourceError(str(error)) from error
    finally:
        _end_at_once()


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal, of either kind, ends the process at once, which a folder survives as well.
    if _begun:
        # It came before the first had got as far as that; two errors at once would be a traceback.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _begun.append(number)
    _end_at_once()
    raise Stopped(number)


def _end_at_once() -> None:
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_DFL)
