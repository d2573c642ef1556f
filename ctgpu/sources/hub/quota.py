"""How many requests may be sent: the Hub's quotas, kept before the Hub enforces them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping

import urllib3
from urllib3.exceptions import HTTPError

#: Requests per window and account kind, (API, resolve), as the Hub documents them.
ANONYMOUS_QUOTA = (500, 3000)
ACCOUNT_QUOTA = (1000, 5000)
WINDOW_S = 300.0
#: What no single request waits longer than, whatever a server says: two windows.
LONGEST_WAIT_S = 600.0

# A tenth may be spent at once, the rest at an even pace: no window ever sees more than its quota.
_BURST_SHARE = 0.1
_SLACK_S = 1.0


class RequestQuota:
    """One quota, shared by all workers of a process.

    Parameters
    ----------
    requests : int or None
        Requests per window that the account has; None where only the answers will tell.
    window_s : float
        The window in seconds.
    part_count : int
        Processes that share the account; each takes an equal part.
    clock : callable
        Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        requests: int | None,
        window_s: float = WINDOW_S,
        part_count: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._part_count = part_count
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until = clock()
        self._burst_s = self._interval_s = 0.0
        if requests is not None:
            self._set(requests, window_s)
        self._next_slot = clock() - self._burst_s

    def acquire(self, wait: Callable[[float], object]) -> None:
        """Take the right to send one request, waiting for it where needed.

        Parameters
        ----------
        wait : callable
            Sleeps the seconds it is given; may raise to give up.
        """
        with self._lock:
            now = self._clock()
            # Slots not used are kept, but no more of them than one burst.
            slot = min(max(self._next_slot, now - self._burst_s), now + LONGEST_WAIT_S)
            self._next_slot = slot + self._interval_s
        while (delay := max(slot, self._paused_until) - self._clock()) > 0:
            wait(delay)

    def pause(self, seconds: float) -> None:
        """Let no request go for some time, as the server asked; at most :data:`LONGEST_WAIT_S`."""
        with self._lock:
            until = self._clock() + min(seconds, LONGEST_WAIT_S)
            self._paused_until = max(self._paused_until, until)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Adopt what an answer says: ``RateLimit-Policy`` (quota), ``RateLimit`` (what is left)."""
        policy = headers.get("RateLimit-Policy", "")
        requests, window = _number("q", policy), _number("w", policy)
        if requests and window:
            with self._lock:
                self._set(requests, window)
        left = headers.get("RateLimit", "")
        if _number("r", left) == 0:
            self.pause((_number("t", left) or 0) + _SLACK_S)

    def _set(self, requests: int, window_s: float) -> None:
        share = requests / self._part_count
        self._burst_s = _BURST_SHARE / (1 - _BURST_SHARE) * window_s
        self._interval_s = window_s / ((1 - _BURST_SHARE) * share)


def stated_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, by ``Retry-After`` or ``RateLimit: …;t=N``.

    At most :data:`LONGEST_WAIT_S`; None where it names no time that can be read.
    """
    stated: float | None
    try:
        stated = urllib3.Retry().parse_retry_after(headers.get("Retry-After", ""))
    except (HTTPError, ValueError, OverflowError):  # no number, no date, or one of no calendar
        stated = _number("t", headers.get("RateLimit", ""))
    return None if stated is None else min(stated, LONGEST_WAIT_S)


def _number(name: str, header: str) -> int | None:
    # More digits than these change nothing: every use has a bound.
    found = re.search(rf"\b{name}\s*=\s*(\d{{1,15}})", header)
    return int(found[1]) if found else None
