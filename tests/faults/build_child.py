"""Builds in processes that can be killed anywhere, fifty times a minute.

A process that has imported everything forks a child for each line of JSON on standard input, and
answers with its exit status.  The child builds, appends an event per line to a log, and kills
itself with SIGKILL as told: at the n-th call of :mod:`os` that changes the folder (half of a
write is done first), after some seconds, or when a file appears.  Or it stops itself with SIGSTOP
at such a call, as a paused machine would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub  # noqa: F401  (imported on first use, which every child would pay for)
import nibabel  # noqa: F401
import pydicom.pixels  # noqa: F401

import ctgpu
from ctgpu.building.builder import build
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, SampleWritten
from ctgpu.engines import open_engine
from ctgpu.errors import CtgpuError
from ctgpu.shards import disk, folder, journal, lease, writer
from ctgpu.spec import Spec


class DeadlyOs:
    """Stands for :mod:`os` in the modules that write; `number` strikes at call number `at`."""

    def __init__(self, at: int | None, log: int, number: int = signal.SIGKILL) -> None:
        self._at = at
        self._log = log
        self._number = number
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def install(self) -> None:
        for module in (disk, folder, journal, lease, writer):
            if hasattr(module, "os"):
                module.os = self  # type: ignore[attr-defined]

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._count("open")
        return os.open(path, flags, mode)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        def half() -> None:
            # Whole blocks, which a descriptor for direct writes takes as well.
            os.pwrite(fd, memoryview(data)[: len(data) // 2 // 4096 * 4096], offset)

        self._count("pwrite", half)
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self._count("ftruncate")
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._count("fsync")
        os.fsync(fd)

    def rename(self, old: Any, new: Any) -> None:
        self._count("rename")
        os.rename(old, new)

    def link(self, old: Any, new: Any) -> None:
        self._count("link")
        os.link(old, new)

    def unlink(self, path: Any) -> None:
        self._count("unlink")
        os.unlink(path)

    def _count(self, call: str, before: Any = None) -> None:
        with self._lock:
            self.calls[call] += 1
            if self.calls.total() == self._at:
                if self._number == signal.SIGSTOP:
                    os.write(self._log, f"stopped {call} {os.getpid()}\n".encode())
                else:
                    os.write(self._log, f"killed {call}\n".encode())
                    if before is not None:
                        before()
                os.kill(os.getpid(), self._number)


def kill_when(path: Path) -> None:
    """SIGKILL as soon as `path` exists."""
    while not path.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict[str, Any]) -> int:
    """One build; its exit code."""
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if "stop_at_call" in job:
        deadly = DeadlyOs(job["stop_at_call"], log, signal.SIGSTOP)
    else:
        deadly = DeadlyOs(job.get("kill_at_call"), log)
    deadly.install()
    if "stale_after_s" in job:
        quick = {"beat_every_s": job["stale_after_s"] / 5, "stale_after_s": job["stale_after_s"]}
        lease.LeaseSession.__init__.__kwdefaults__ |= quick
    if "kill_after_s" in job:
        timer = threading.Timer(job["kill_after_s"], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    if "kill_file" in job:
        threading.Thread(target=kill_when, args=(Path(job["kill_file"]),), daemon=True).start()

    def watch(event: Event) -> None:
        if isinstance(event, SampleWritten):
            os.write(log, f"written {event.key}\n".encode())

    options = dict(job["options"])
    if "spec" in options:
        options["spec"] = Spec.from_dict(options["spec"])
    began = time.perf_counter()
    try:
        if "convert" in job:
            options = {"device": "cpu", "delete_after": True} | options
            report = convert_tars(job["convert"], job["folder"], watch=watch, **options)
        else:
            report = build(job["folder"], device="cpu", watch=watch, **options)
    except CtgpuError as error:
        os.write(log, f"error {type(error).__name__}: {error}\n".encode())
        return error.exit_code
    seconds = time.perf_counter() - began
    os.write(log, f"finished {deadly.calls.total()} calls in {seconds:.3f} s\n".encode())
    return report.exit_code


def main() -> None:
    """Serve jobs until standard input ends."""
    assert ctgpu.__version__
    open_engine("cpu").close()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = run(json.loads(line))
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
