"""Builders that stand still in the middle of a call, for the tests and ``run_reliability.py``."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenarios import SPEC, Builder, make_source

from built import tar_bytes
from ctgpu.checking.verify import verify_folder

# In earnest a host is given a minute.
STALE_AFTER_S = 1.0
_SAMPLES = 4


@dataclass
class Frozen:
    """What came of builders that stood still while another took over and finished.

    Attributes
    ----------
    trials : int
        How many stood still.
    moments : Counter
        In which system call.
    took_over : int
        How often the other had something left to do.
    odd_exits : list of str
        Late ones that ended with anything but a clear error or in agreement.
    damaged : list of str
        Findings of ``verify`` once both had ended.
    changed : list of str
        Tars that the late one changed after the other had committed them.
    seconds : float
        All of it.
    """

    trials: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    took_over: int = 0
    odd_exits: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def may_rename_host() -> bool:
    """Whether a process may be given a host name of its own here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode == 0


def freeze_and_take_over(
    work_dir: Path, *, trials: int, seed: int, recoded: bool = False
) -> Frozen:
    """Stop builders with SIGSTOP at moments of a build, have another host finish, and go on.

    The source is damaged meanwhile, so that the other has failures that the late one had not.
    With `recoded` both compress finished shards, which stay as they are.
    """
    chance, result, began = random.Random(seed), Frozen(), time.perf_counter()
    paths = make_source(work_dir / "source", _SAMPLES)
    whole = {name: path.read_bytes() for name, path in paths.items()}
    options = {
        "source": str(work_dir / "source"),
        "spec": SPEC.to_dict(),
        "samples_per_shard": 2,
        "num_workers": 1,
    }
    job: dict[str, Any] = {"options": options}
    with Builder(work_dir) as late, Builder(work_dir, "another-host") as other:
        if recoded:
            late.start(work_dir / "home", options)
            assert late.wait()[0] == 0
            compress = {"compress": "rice", "num_workers": 1, "delete_after": False}
            job = {"options": compress, "convert": str(work_dir / "home")}
        late.start(work_dir / "whole", **job)
        code, events = late.wait()
        assert code == 0, events
        calls = int(events[-1][1].split()[0])
        # Spread over the build, so that few trials see all of it.
        moments = [1 + (2 * k + 1) * calls // (2 * trials) for k in range(trials)]
        for trial, moment in enumerate(moments):
            folder = work_dir / f"frozen-{trial}"
            timing = {"stale_after_s": STALE_AFTER_S}
            late.start(folder, **job, stop_at_call=moment, **timing)
            process = late.stopped()
            assert process is not None, late.wait()
            victim = chance.choice(sorted(paths))
            damaged = bytearray(whole[victim])
            damaged[len(damaged) // 2] ^= 0xFF
            paths[victim].write_bytes(damaged)
            try:
                other.start(folder, **job, **timing)
                code, events = other.wait()
                assert code in (0, 1), events
                result.took_over += any(kind == "written" for kind, *_ in events)
                committed = tar_bytes(folder)
            finally:
                os.kill(process, signal.SIGCONT)
                code, events = late.wait()
                paths[victim].write_bytes(whole[victim])
            result.trials += 1
            result.moments[next(e[1].split()[1] for e in events if e[0] == "was")] += 1
            lost = any("took this one for dead" in e[-1] for e in events if e[0] == "error")
            if not (code in (0, 1) or (code == 3 and lost)):
                result.odd_exits.append(f"trial {trial}: {code}, {events[-1:]}")
            result.damaged += [
                f"trial {trial}, call {moment}: {f.file}: {f.problem}"
                for f in verify_folder(folder).findings
            ]
            found = tar_bytes(folder)
            result.changed += [name for name in committed if found.get(name) != committed[name]]
    result.seconds = time.perf_counter() - began
    return result
