"""Driving ``ctgpu build`` on several processes, and looking at what they do meanwhile."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import psutil

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

WITHIN_S = 120.0

SAMPLES_PER_SHARD = 8
#: The same on the command line; so little memory that one sample follows the other.
SMALL = (
    *("--shape", "90,90,50", "--spacing", "4,4,6", "--samples-per-shard", SAMPLES_PER_SHARD),
    *("--num-workers", 1, "--memory-limit", "1M"),
)


@cache
def ray_folder() -> Path:
    """Where Ray keeps sockets, whose names are short, and notes the cluster of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="ctgpu-ray-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ray_environment() -> dict[str, str]:
    """Ray telling nobody, and not knowing of clusters that are none of the tests'."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(ray_folder()),
    }


def environment(**more: str) -> dict[str, str]:
    """Of a process that may use Ray; benchmarks have a caller's environment to keep from it."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "RAY_"))}
    paths = os.pathsep.join([str(HERE), str(REPOSITORY)])
    return inherited | ray_environment() | {"PYTHONPATH": paths} | more


def array(this: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    """What SLURM sets in an element of ``--array=first-last:step``."""
    values = {"ID": this, "COUNT": count, "MIN": first, "MAX": first + (count - 1) * step}
    values["STEP"] = step
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def begin(
    *arguments: object,
    stdin: int = subprocess.DEVNULL,
    program: Sequence[str] = ("-m", "ctgpu.cli"),
    **variables: str,
) -> subprocess.Popen[str]:
    """``ctgpu build`` with log lines as JSON."""
    return subprocess.Popen(
        [
            *(sys.executable, *program, "build", "--device", "cpu"),
            *("--log-format", "json", *map(str, arguments)),
        ],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Its log, once it has ended as expected."""
    _, log = process.communicate(timeout=WITHIN_S)
    assert process.returncode == code, log
    assert "Traceback" not in log
    return log


def committed_in(log: str) -> list[int]:
    """The shards that a log says were committed."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["shard"] for line in lines if line.get("event") == "ShardCommitted"]


def wait_until(reached: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Poll, as long as the processes run."""
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def owners(folder: Path) -> dict[str, int]:
    """Which process holds the lease of which shard."""
    found = {}
    for lease in folder.glob("shard-*.lease.*"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found[lease.name.partition(".")[0]] = json.loads(lease.read_text())["pid"]
    return found


class RayCluster:
    """A cluster in processes of its own, of which Ray notes nothing where the tests' builds look.

    Parameters
    ----------
    nodes : int
        Beside the head, which runs no tasks.
    cpus : int
        Cores that each of them says it has.
    """

    def __init__(self, nodes: int, cpus: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "cluster.py"), str(nodes), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(RAY_TMPDIR=str(ray_folder() / "own")),
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the Ray cluster did not start"

    def tell(self, word: str) -> None:
        """``add`` or ``remove`` a node; returns when it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def lose_node(self, caught: Sequence[int]) -> list[int]:
        """Remove a node, and with it those of the stopped workers `caught` that it had.

        The others go on; returns the process ids of those that did not.
        """
        raylets = {pid: psutil.Process(pid).ppid() for pid in caught}
        self.tell("remove")
        gone = [pid for pid, raylet in raylets.items() if not psutil.pid_exists(raylet)]
        for pid in caught:
            os.kill(pid, signal.SIGKILL if pid in gone else signal.SIGCONT)
        return gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=WITHIN_S)


class StartedRay:
    """A node that ``ray start`` makes the machine's; use it as a context.

    Parameters
    ----------
    cpus : int
        Cores that it says it has.
    """

    def __init__(self, cpus: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._log = (ray_folder() / "start.log").open("w+")
        self._process = subprocess.Popen(
            [
                *(shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray", "start"),
                *("--head", "--block", f"--port={port}", f"--num-cpus={cpus}", "--num-gpus=0"),
                *("--include-dashboard=false", f"--object-store-memory={80 << 20}"),
            ],
            stdout=self._log,
            stderr=self._log,
            env=environment(PYTHONUNBUFFERED="1"),
        )

    def kill(self) -> None:
        """End all of it at once, so that it leaves behind what Ray noted of it."""
        parts = psutil.Process(self._process.pid).children(recursive=True)
        for part in (psutil.Process(self._process.pid), *parts):
            with contextlib.suppress(psutil.NoSuchProcess):
                part.kill()
        self._process.wait(WITHIN_S)

    def __enter__(self) -> Self:
        log = Path(self._log.name)
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(WITHIN_S)
        self._log.close()


def catch(folder: Path, count: int, *processes: subprocess.Popen[str]) -> list[int]:
    """Stop `count` processes, each in the middle of a shard that it holds; returns their ids."""
    caught: dict[int, str] = {}

    def look() -> bool:
        for shard, pid in owners(folder).items():
            journal = folder / f"{shard}.journal"
            if pid in caught or not journal.exists() or b'"sample":' not in journal.read_bytes():
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                if owners(folder).get(shard) == pid and not (folder / f"{shard}.json").exists():
                    caught[pid] = shard
                else:
                    os.kill(pid, signal.SIGCONT)
        return len(caught) >= count

    wait_until(look, *processes)
    return list(caught)
