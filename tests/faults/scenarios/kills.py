"""Builds that are killed again and again, anywhere, and go on."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctgpu.testing.hub import LocalHub
from scenarios.builds import SAMPLES_PER_SHARD, Builder, different, make_source, snapshot
from support.phantoms import SPEC


@dataclass
class Kills:
    """What came of killing a build again and again.

    Attributes
    ----------
    kills : int
        How many SIGKILLs struck.
    moments : Counter
        Where: the system call that was about to be made, ``download`` or ``any time``.
    builds : int
        Builds that were completed in between, all of them compared with the undisturbed one.
    redone : list of int
        Per kill, the samples that had been fetched and had to be fetched again.
    written_twice : list of str
        Keys of samples that were written again after they had been reported as written.
    different : list of str
        Files that differ from those of the undisturbed build.
    in_flight : int
        Samples that may be in flight at a time.
    seconds : float
        All of it.
    """

    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    redone: list[int] = field(default_factory=list)
    written_twice: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    in_flight: int = 0
    seconds: float = 0.0


def kill_and_resume(work_dir: Path, *, samples: int, kills: int, seed: int) -> Kills:
    """Kill builds from a local Hub `kills` times, resume each, and compare what comes out."""
    from ctgpu.building.pipeline import Workers
    from ctgpu.engines import open_engine

    chance, result, began = random.Random(seed), Kills(), time.perf_counter()
    engine = open_engine("cpu")
    result.in_flight = Workers.for_machine(1, engine.concurrency).most_in_flight
    engine.close()
    make_source(work_dir / "source", samples, broken=samples // 2)
    with LocalHub(work_dir / "source") as hub, Builder(work_dir) as builder:
        options = {
            "repo_id": hub.repo_id,
            "endpoint": hub.url,
            "spec": SPEC.to_dict(),
            "samples_per_shard": SAMPLES_PER_SHARD,
            "num_workers": 1,
        }
        builder.start(work_dir / "whole", options)
        code, events = builder.wait()
        assert code == 1, events
        expected = snapshot(work_dir / "whole")
        words = events[-1][1].split()
        calls, usual_s = int(words[0]), float(words[3])
        while result.kills < kills:
            folder = work_dir / f"killed-{result.builds}"
            fetches: list[set[str]] = []
            written: Counter[str] = Counter()
            while True:
                known = len(hub.requests)
                moment = _start(builder, folder, options, hub, chance, calls, usual_s)
                code, events = builder.wait()
                hub.faults.bodies.clear()
                fetches.append({r.path for r in hub.requests[known:] if r.path.endswith(".gz")})
                written.update(rest[0] for kind, *rest in events if kind == "written")
                if code != -9:
                    break
                result.kills += 1
                struck = [rest[0] for kind, *rest in events if kind == "killed"]
                result.moments[struck[0] if struck else moment] += 1
            assert code == 1, events
            result.builds += 1
            for k, fetched in enumerate(fetches[:-1]):
                result.redone.append(len(fetched & set().union(*fetches[k + 1 :])))
            result.written_twice += [key for key, count in written.items() if count > 1]
            result.different += different(snapshot(folder), expected)
    result.seconds = time.perf_counter() - began
    return result


@dataclass
class Struck:
    """What came of killing a job once at each of some points of it: see :func:`kill_at_calls`.

    Attributes
    ----------
    kills : int
        How many SIGKILLs struck.
    moments : Counter
        Which system call was about to be made.
    went_on_with : Counter
        How many samples were left to write when the job was begun again.
    written_twice : list of str
        Keys of samples that were written again after they had been reported as written.
    different : list of str
        Files that differ from those of the build that nothing happened to.
    """

    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    went_on_with: Counter[int] = field(default_factory=Counter)
    written_twice: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def kill_at_calls(
    work_dir: Path, options: dict[str, Any], *, recode: Path | None = None, points: int
) -> Struck:
    """Kill a job at calls that are spread evenly over it, in a folder each, go on, and compare.

    Parameters
    ----------
    work_dir : Path
        Empty.
    options : dict
        Of the build whose files are wanted; one of its samples fails.
    recode : Path, optional
        A finished data set of the same samples: the job is to compress that one's as `options` say.
    points : int
        How many.
    """
    result = Struck()
    job: dict[str, Any] = {"options": options}
    if recode is not None:
        compress = {"compress": options["compress"], "delete_after": False}
        job = {"options": compress, "convert": str(recode)}
    with Builder(work_dir) as builder:
        builder.start(work_dir / "built", options)
        code, events = builder.wait()
        assert code == 1, events
        expected = snapshot(work_dir / "built")
        builder.start(work_dir / "whole", **job)
        code, events = builder.wait()
        assert code == 1, events
        result.different += different(snapshot(work_dir / "whole"), expected)
        calls = int(events[-1][1].split()[0])
        for point in range(points):
            folder = work_dir / f"killed-{point}"
            builder.start(folder, **job, kill_at_call=1 + (2 * point + 1) * calls // (2 * points))
            code, before = builder.wait()
            assert code == -9, before
            result.kills += 1
            result.moments.update(rest[0] for kind, *rest in before if kind == "killed")
            builder.start(folder, **job)
            code, after = builder.wait()
            assert code == 1, after
            first, then = (
                {e[1] for e in all_of if e[0] == "written"} for all_of in (before, after)
            )
            result.went_on_with[len(then)] += 1
            result.written_twice += sorted(first & then)
            result.different += different(snapshot(folder), expected)
    return result


def _start(
    builder: Builder,
    folder: Path,
    options: dict[str, Any],
    hub: LocalHub,
    chance: random.Random,
    calls: int,
    usual_s: float,
) -> str:
    """Begin a build that will be killed somehow; returns how."""
    moment = chance.choice(["call", "call", "call", "any time", "download"])
    if moment == "call":
        builder.start(folder, options, kill_at_call=chance.randint(1, calls))
    elif moment == "any time":
        builder.start(folder, options, kill_after_s=chance.uniform(0.0, usual_s))
    else:
        kill_file = folder.parent / "kill"
        kill_file.unlink(missing_ok=True)
        known = len(hub.requests)
        # The next bodies are tables; then a volume stalls half way, and its reader dies.
        hub.faults.bodies = []
        builder.start(folder, options, kill_file=str(kill_file))
        wanted = chance.randint(1, 4)
        deadline = time.monotonic() + usual_s
        while time.monotonic() < deadline:
            volumes = [r for r in hub.requests[known:] if r.path.endswith(".gz")]
            if len(volumes) >= wanted and not hub.faults.bodies:
                hub.faults.bodies = ["stall"]
                break
            time.sleep(0.001)
        while hub.faults.bodies and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        kill_file.touch()
    return moment
