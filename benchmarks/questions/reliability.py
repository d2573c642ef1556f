"""What is left of a build that is killed, starved, throttled and fed rubbish?

Every scenario is the one of ``tests/faults/``, at full size: builds killed with SIGKILL and
resumed, builders that stand still while another host finishes, conversions that delete their
inputs, a Hub that fails 30 % of all requests, corrupted inputs, a disk that fills up, a memory
budget, and plans of 47,149 samples.  Each result is compared, byte by byte, with that of a build
that nothing happened to.  Memory and scale are measured ``--repeats`` times, the others asked once.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Of tests/, which the script has made known.
import corpus
import deleting
import frozen
import scenarios

from benchmarks.harness.asking import Asked, Question, Scan
from benchmarks.harness.measuring import Facts, measured
from benchmarks.questions.build import make_source
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.spec import Spec
from ctgpu.testing.hub import Faults
from ctgpu.volume.ref import SampleRef

#: CT-RATE's two splits together would be more; this is the larger one.
FULL_SAMPLES = 47_149
FULL_SHARDS = math.ceil(FULL_SAMPLES / DEFAULT_SAMPLES_PER_SHARD)

#: What was found, how often something was tried, and how often that went wrong.
Answer = tuple[Facts, int, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask every question, and sum up."""
    question = Question("reliability", __doc__)
    question.add_argument("--seed", type=int, default=1, help="other seeds, other moments")
    asked = question.asked(arguments, repeats=1)
    results, verdict = {}, {}
    for ask, (tried_means, wrong_means) in QUESTIONS.items():
        with asked.folder() as folder:
            results[ask.__name__], tried, wrong = ask(folder, asked, asked.options.seed)
        means = {"tried_means": tried_means, "wrong_means": wrong_means}
        verdict[ask.__name__] = means | {"tried": tried, "wrong": wrong}
    return asked.publish(
        {
            "data": "chest phantoms" + (", few of them" if asked.quick else ""),
            "cache": "warm: every source was written just before",
            "seed": asked.options.seed,
            "repeats": asked.repeats,
            "verdict": verdict,
            **results,
        }
    )


def facts_of(result: Any) -> Facts:
    """What a scenario found, its time as a measured one."""
    facts: Facts = {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(result).items()}
    if "seconds" in facts:
        facts["time"] = measured([facts.pop("seconds")], "s")
    return facts


def of_parts(
    work_dir: Path,
    jobs: Mapping[str, Callable[[Path], Any]],
    tried_and_wrong: Callable[[Any], tuple[int, int]],
) -> Answer:
    """Several scenarios as one answer, each in a folder of its own."""
    facts, numbers = {}, []
    for name, job in jobs.items():
        (folder := work_dir / name).mkdir()
        result = job(folder)
        facts[name] = facts_of(result)
        numbers.append(tried_and_wrong(result))
    tried, wrong = map(sum, zip(*numbers, strict=True))
    return facts, tried, wrong


def kills(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """SIGKILL at random moments, each build resumed and compared."""
    samples, count = (8, 2) if asked.quick else (16, 50)
    result = scenarios.kill_and_resume(work_dir, samples=samples, kills=count, seed=seed)
    again = {"most_samples_fetched_again_after_a_kill": max(result.redone, default=0)}
    wrong = len(result.different) + len(result.written_twice)
    return facts_of(result) | again, result.kills, wrong


def frozen_writers(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """SIGSTOP at calls spread over a build, SIGCONT once another host has finished it."""
    if not frozen.may_rename_host():
        return {"skipped": "no process may be given a host name of its own here"}, 0, 0
    trials = 1 if asked.quick else 60
    result = frozen.freeze_and_take_over(work_dir, trials=trials, seed=seed)
    wrong = (*result.damaged, *result.changed, *result.odd_exits)
    return facts_of(result), result.trials, len(wrong)


def deletion(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """``convert --delete-after`` killed at random calls, its inputs replaced in between."""
    count = 1 if asked.quick else 100
    result = deleting.convert_and_delete(work_dir, conversions=count, seed=seed)
    wrong = (*result.lost, *result.kept_for_nothing)
    return facts_of(result), result.deleted + result.kept, len(wrong)


def bad_hub(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """30 % of all requests fail: statuses, resets, cut, stalled, trickling and flipped bodies."""
    samples, workers = (4, 4) if asked.quick else (100, 16)
    fails = partial(Faults, failure_rate=0.3, seed=seed)
    worse = partial(fails, ignore_range=True, expired_redirects=3)
    build = partial(scenarios.build_from_bad_hub, samples=samples, workers=workers)
    parts: Facts = {
        "ranges": lambda at: build(at, fails()),
        "no_ranges_and_expired_redirects": lambda at: build(at, worse()),
    }
    return of_parts(work_dir, parts, lambda r: (r.requests_made, r.failed + len(r.different)))


def corrupted_inputs(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """Damaged files, files made to do harm, and files that rotted behind their listed checksum."""
    count = 30 if asked.quick else 1000
    build, rotten = scenarios.build_corrupted, scenarios.build_rotten_hub
    parts: Facts = {
        "damaged": lambda at: build(at, corpus.damaged(count, seed, (".npz", ".nii.gz"))),
        "made_to_do_harm": lambda at: build(at, corpus.crafted()),
        "rotten_behind_checksum": lambda at: rotten(at, count=count // 10, seed=seed),
    }
    return of_parts(work_dir, parts, lambda r: (r.inputs, len(r.accepted_wrong + r.odd_errors)))


def no_space(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """A small file system that fills up at random moments."""
    points, samples = (1, 4) if asked.quick else (20, 12)
    try:
        result = scenarios.fill_and_resume(work_dir, points=points, samples=samples, seed=seed)
    except PermissionError as error:
        return {"skipped": f"no file system may be mounted here: {error}"}, 0, 0
    return facts_of(result), result.points, len(result.different) + len(result.odd_errors)


def memory(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """Peak memory of processes with 32 workers each under a budget of two volumes."""
    side, samples = (96, 8) if asked.quick else (320, 24)
    spacing_mm = (1.0, 1.0, 1.0)
    scan, source = Scan.phantom((side,) * 3, spacing_mm, seed), work_dir / "source"
    first, *_ = make_source(source, scan, ".nii.gz", samples)
    spec = Spec(target_spacing_mm=spacing_mm, shape_hwd=(side,) * 3)
    footprint_bytes = (source / first).stat().st_size + 4 * side**3
    limit_bytes = 2 * footprint_bytes
    limits = {"limit_bytes": limit_bytes, "workers": 32}
    build = partial(scenarios.build_measured, source=source, spec=spec, **limits)
    runs = [build(work_dir / f"out-{n}") for n in range(asked.repeats)]
    facts = limits | {
        "samples": runs[0]["written"],
        "footprint_of_one_bytes": footprint_bytes,
        "peak_reserved": of_runs(runs, "peak_reserved_bytes"),
        "peak_rss": of_runs(runs, "peak_rss_bytes"),
        "peak_rss_after_imports": of_runs(runs, "imports_rss_bytes"),
        "peak_rss_after_one_sample": of_runs(runs, "one_sample_rss_bytes"),
    }
    return facts, len(runs), sum(run["peak_reserved_bytes"] > limit_bytes for run in runs)


def of_runs(runs: Iterable[Facts], name: str) -> Facts | None:
    """One figure of every run; None where this system does not tell a process's peak memory."""
    values = [run[name] for run in runs]
    return None if None in values else measured(values, "bytes" if "bytes" in name else "s")


def scale(work_dir: Path, asked: Asked, seed: int) -> Answer:
    """Planning, running a finished build again, and resuming behind many finished shards."""
    shards, samples = (10, 50) if asked.quick else (FULL_SHARDS, FULL_SAMPLES)
    source = {"kind": "hub", "location": "nobody/has-it", "revision": "0" * 40}
    last = SampleRef.of_file("dataset/valid_fixed/valid_1_a_1.nii.gz", 1 << 27)
    finished = work_dir / "finished"
    plan = scenarios.make_plan_of(finished, shards, DEFAULT_SAMPLES_PER_SHARD, source, last)
    scenarios.pretend_committed(finished, plan, range(shards))
    counts = (10,) if asked.quick else (10, 100, 1_000, 10_000)
    runs: dict[Any, list[Facts]] = {what: [] for what in ("planned", "again", *counts)}
    for n in range(asked.repeats):
        with tempfile.TemporaryDirectory(dir=work_dir, prefix=f"{n}-") as fresh:
            runs["planned"].append(scenarios.plan_measured(Path(fresh), samples))
            runs["again"].append(scenarios.run_measured(finished))
            for committed in counts:
                runs[committed].append(scenarios.resume_measured(Path(fresh), committed))
    planned, again = runs["planned"], runs["again"]
    times = {what: {"time": of_runs(of, "seconds")} for what, of in runs.items()}
    opened = tars_opened(again)
    made = {"samples": planned[0]["samples"], "shards": planned[0]["shards"]}
    facts = {
        "planning": made | times["planned"] | {"peak_rss": of_runs(planned, "peak_rss_bytes")},
        "finished_again": {
            "shards": shards,
            "samples": again[0]["total_samples"],
            **times["again"],
            "tars_opened": opened,
        },
        "resume_of_the_last_sample": {
            f"{committed}_committed": {
                "time_to_begin": of_runs(runs[committed], "seconds_to_begin"),
                **times[committed],
                "tars_opened": tars_opened(runs[committed]),
            }
            for committed in counts
        },
    }
    return facts, shards, len(opened)


def tars_opened(runs: Iterable[Facts]) -> list[str]:
    """Finished tars that any of the runs opened."""
    return sorted({name for run in runs for name in run["tars_opened"]})


#: Every question, and what is tried there and what goes wrong.
QUESTIONS: dict[Callable[[Path, Asked, int], Answer], tuple[str, str]] = {
    kills: ("kills with SIGKILL", "files that differ or samples made twice"),
    frozen_writers: (
        "builders stopped in a call until another host was done",
        "findings, changed tars or odd exits",
    ),
    deletion: ("inputs that --delete-after deleted or kept", "lost, or kept for nothing"),
    bad_hub: ("requests to a failing Hub", "samples lost or files that differ"),
    corrupted_inputs: ("corrupted inputs", "accepted wrongly or refused oddly"),
    no_space: ("disks that fill up", "files that differ or odd errors"),
    memory: ("builds under a byte budget", "went over it"),
    scale: ("finished shards met again", "opened without need"),
}
