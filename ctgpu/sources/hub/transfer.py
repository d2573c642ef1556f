"""One file coming in: how far it is, how fast, and what may still become of it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import urllib3

from ctgpu.sources.hub.connection import Line, Transient


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a failing network is tolerated.

    Attributes
    ----------
    attempts : int
        Attempts in a row that brought nothing new before one file is given up.
    first_wait_s, longest_wait_s : float
        The wait after a failure doubles from the one to the other; up to half is taken off at
        random, so that workers do not come back all at once.
    connect_s : float
        Time for a connection to stand.
    stall_s : float
        Longest silence, time for an answer up to its body, and the time over which the throughput
        is judged.
    slowest_bytes_per_s : float
        A transfer below this throughput is cut and taken up again.
    """

    attempts: int = 20
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    connect_s: float = 15.0
    stall_s: float = 30.0
    slowest_bytes_per_s: float = 16384.0


class Transfer:
    """How much of a file has come in."""

    def __init__(self, target: memoryview) -> None:
        self.target = target
        self.furthest = 0
        self._received = 0

    @property
    def received(self) -> int:
        """Bytes in place from the start."""
        return self._received

    @received.setter
    def received(self, count: int) -> None:
        self._received = count
        self.furthest = max(self.furthest, count)

    @property
    def rest(self) -> memoryview:
        """Where the next bytes go."""
        return self.target[self._received :]

    @property
    def is_complete(self) -> bool:
        """Whether every byte is in place."""
        return self._received == len(self.target)

    def begin(self, response: urllib3.BaseHTTPResponse) -> None:
        """Look at where an answer starts and ends; a whole file starts again."""
        size = len(self.target)
        if response.status == 206:
            stated = re.fullmatch(
                r"bytes (\d+)-(\d+)/(?:\d+|\*)", response.headers.get("Content-Range", "")
            )
            if not stated or stated.groups() != (str(self.received), str(size - 1)):
                self.received = 0
                raise Transient("it answered with another range than the one asked for")
        else:
            self.received = 0
        length = response.headers.get("Content-Length")
        if length is not None and length != str(size - self.received):
            self.received = 0
            raise Transient(f"it announced {length[:20]} bytes where {size} are listed")


class Throughput:
    """Refuses a transfer that is too slow to ever end.

    Parameters
    ----------
    patience : Patience
        What is too slow.
    line : Line
        Of the connection: each piece of the content, and nothing else that comes in, gives it time
        for the next one.
    """

    def __init__(self, patience: Patience, line: Line) -> None:
        self._patience = patience
        self._line = line
        self._since = time.monotonic()
        self._bytes = 0
        line.allow(patience.stall_s)

    def saw(self, count: int) -> None:
        """Take note of `count` new bytes.

        Raises
        ------
        Transient
            If too few have come since the throughput was last judged.
        """
        self._line.allow(self._patience.stall_s)
        self._bytes += count
        seconds = time.monotonic() - self._since
        if seconds < self._patience.stall_s:
            return
        if self._bytes < self._patience.slowest_bytes_per_s * seconds:
            raise Transient(f"only {self._bytes / seconds:.0f} bytes per second came in")
        self._since, self._bytes = time.monotonic(), 0
