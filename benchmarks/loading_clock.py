"""Clocks of the loading benchmark: steps that follow one another, and CPU time of everything."""

from __future__ import annotations

import time
from collections import defaultdict

import psutil


class Laps:
    """Wall-clock seconds of named steps, summed over the samples of a pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last lap."""
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        """What has passed since the last lap belongs to `step`."""
        now = time.perf_counter()
        self.seconds[step] += now - self._since
        self._since = now


def cpu_seconds() -> float:
    """CPU time so far of all threads of this process and of its living children."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total
