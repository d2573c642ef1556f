"""Forked children, for tests of what they inherit."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

# Only so that a child that hangs does not hang the tests.
_GIVE_UP_S = 60


class Child:
    """A forked child of this process; it waits until it is to look at what it inherited.

    Parameters
    ----------
    look : callable
        Called in the child; what it returns is what :meth:`sees` does.
    """

    def __init__(self, look: Callable[[], bytes]) -> None:
        wait, self._go = os.pipe()
        self._answer, answer = os.pipe()
        with warnings.catch_warnings():
            # Newer versions of Python warn where there are threads, which is what is tried here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if self._process == 0:
            status = 1
            try:
                signal.alarm(_GIVE_UP_S)
                os.close(self._go)
                os.read(wait, 1)
                os.write(answer, look())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(wait)
        os.close(answer)

    def sees(self) -> bytes:
        """What the child sees now, which is also its end.

        Raises
        ------
        AssertionError
            If the end is another: an exception, a signal.
        """
        os.close(self._go)
        with open(self._answer, "rb") as file:
            seen = file.read()
        _, status = os.waitpid(self._process, 0)
        assert status == 0, f"the child ended with status {status}"
        return seen
