"""What is left of a build that is killed, starved, throttled and fed rubbish?

Every scenario is the one of ``tests/faults/``, at full size: builds killed with SIGKILL and
resumed, builders that stand still while another host finishes, conversions that delete their
inputs, a Hub that fails 30 % of all requests, corrupted inputs, a disk that fills up, a memory
budget, and plans of 47,149 samples.  Each result is compared, byte by byte, with that of a build
that nothing happened to.  Memory and scale are measured ``--repeats`` times, the others asked once.
"""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import argument_parser, in_words, is_measured, measured, print_table
from publishing import publish

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

import corpus  # noqa: E402
import deleting  # noqa: E402
import frozen  # noqa: E402
import scenarios  # noqa: E402

from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD  # noqa: E402
from ctgpu.spec import Spec  # noqa: E402
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate  # noqa: E402
from ctgpu.testing.hub import Faults  # noqa: E402
from ctgpu.volume.ref import SampleRef  # noqa: E402

#: CT-RATE's two splits together would be more; this is the larger one.
FULL_SAMPLES = 47_149
FULL_SHARDS = math.ceil(FULL_SAMPLES / DEFAULT_SAMPLES_PER_SHARD)


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--seed", type=int, default=1, help="other seeds, other moments")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    questions: dict[str, Callable[[Path, bool, int], dict[str, Any]]] = {
        "kills": kills,
        "frozen_writers": frozen_writers,
        "deletion": deletion,
        "bad_hub": bad_hub,
        "corrupted_inputs": corrupted_inputs,
        "no_space": no_space,
        "memory": functools.partial(memory, repeats),
        "scale": functools.partial(scale, repeats),
    }
    results, rows = {}, []
    for name, question in questions.items():
        with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
            results[name] = question(Path(folder), arguments.quick, arguments.seed)
        rows += [[f"{name}: {what}", value] for what, value in flat(results[name])]
    print_table("What was left", ["question", "found"], rows)
    publish(
        arguments,
        "reliability",
        {
            "data": "chest phantoms" + (", few of them" if arguments.quick else ""),
            "cache": "warm: every source was written just before",
            "seed": arguments.seed,
            "repeats": repeats,
            "verdict": verdict(results),
            **results,
        },
    )


def flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as rows of a table; measured ones as their median, lists as their length."""
    rows: list[tuple[str, Any]] = []
    for name, value in result.items():
        if is_measured(value):
            rows.append((f"{prefix}{name}", in_words(value["median"], value["unit"])))
        elif isinstance(value, dict):
            rows += flat(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", len(value) if isinstance(value, list) else value))
    return rows


def verdict(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By question: how often it was tried, and how often that went wrong."""
    struck, hubs = results["kills"], results["bad_hub"].values()
    inputs, full = results["corrupted_inputs"].values(), results["no_space"]
    memory, scale = results["memory"], results["scale"]
    still, gone = results["frozen_writers"], results["deletion"]
    return {
        "kills": {
            "tried_means": "kills with SIGKILL",
            "tried": struck["kills"],
            "wrong_means": "files that differ or samples made twice",
            "wrong": len(struck["files_that_differ"]) + len(struck["samples_written_twice"]),
        },
        "frozen_writers": {
            "tried_means": "builders stopped in a call until another host was done",
            "tried": still.get("trials", 0),
            "wrong_means": "findings, changed tars or odd exits",
            "wrong": sum(len(still.get(k, [])) for k in ("damaged", "changed", "odd_exits")),
        },
        "deletion": {
            "tried_means": "inputs that --delete-after deleted or kept",
            "tried": gone["deleted"] + gone["kept"],
            "wrong_means": "lost, or kept for nothing",
            "wrong": len(gone["lost"]) + len(gone["kept_for_nothing"]),
        },
        "bad_hub": {
            "tried_means": "requests to a failing Hub",
            "tried": sum(hub["requests"] for hub in hubs),
            "wrong_means": "samples lost or files that differ",
            "wrong": sum(hub["samples_failed"] + len(hub["files_that_differ"]) for hub in hubs),
        },
        "corrupted_inputs": {
            "tried_means": "corrupted inputs",
            "tried": sum(kind["inputs"] for kind in inputs),
            "wrong_means": "accepted wrongly or refused oddly",
            "wrong": sum(
                len(kind["accepted_and_wrong"]) + len(kind["errors_of_another_kind"])
                for kind in inputs
            ),
        },
        "no_space": {
            "tried_means": "disks that fill up",
            "tried": full.get("points", 0),
            "wrong_means": "files that differ or odd errors",
            "wrong": len(full.get("different", [])) + len(full.get("odd_errors", [])),
        },
        "memory": {
            "tried_means": "builds under a byte budget",
            "tried": len(memory["peak_reserved"]["runs"]),
            "wrong_means": "went over it",
            "wrong": sum(peak > memory["limit_bytes"] for peak in memory["peak_reserved"]["runs"]),
        },
        "scale": {
            "tried_means": "finished shards met again",
            "tried": scale["finished_again"]["shards"],
            "wrong_means": "opened without need",
            "wrong": len(scale["finished_again"]["tars_opened"]),
        },
    }


def kills(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments, each build resumed and compared."""
    result = scenarios.kill_and_resume(
        work_dir, samples=8 if quick else 16, kills=3 if quick else 50, seed=seed
    )
    return {
        "kills": result.kills,
        "moments": dict(result.moments),
        "builds_completed": result.builds,
        "files_that_differ": result.different,
        "samples_written_twice": result.written_twice,
        "most_samples_fetched_again_after_a_kill": max(result.redone, default=0),
        "mean_samples_fetched_again_after_a_kill": sum(result.redone) / max(1, len(result.redone)),
        "samples_in_flight_at_most": result.in_flight,
        "time": measured([result.seconds], "s"),
    }


def frozen_writers(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """SIGSTOP at calls spread over a build, SIGCONT once another host has finished it."""
    if not frozen.may_rename_host():
        return {"skipped": "no process may be given a host name of its own here"}
    result = frozen.freeze_and_take_over(work_dir, trials=2 if quick else 60, seed=seed)
    return facts_of(result)


def deletion(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """``convert --delete-after`` killed at random calls, its inputs replaced in between."""
    return facts_of(
        deleting.convert_and_delete(work_dir, conversions=2 if quick else 100, seed=seed)
    )


def facts_of(result: frozen.Frozen | deleting.Deletions) -> dict[str, Any]:
    """The result as JSON-ready values, its time as a measured one."""
    facts = asdict(result) | {"moments": dict(result.moments)}
    return facts | {"time": measured([facts.pop("seconds")], "s")}


def bad_hub(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """30 % of all requests fail: statuses, resets, cut, stalled, trickling and flipped bodies."""
    ways = {
        "ranges": Faults(failure_rate=0.3, seed=seed),
        "no_ranges_and_expired_redirects": Faults(
            failure_rate=0.3, seed=seed, ignore_range=True, expired_redirects=3
        ),
    }
    results = {}
    for name, faults in ways.items():
        (folder := work_dir / name).mkdir()
        result = scenarios.build_from_bad_hub(
            folder, faults, samples=4 if quick else 100, workers=4 if quick else 16
        )
        results[name] = {
            "samples": result.samples,
            "requests_to_a_good_hub": result.requests_needed,
            "requests": result.requests_made,
            "samples_failed": result.failed,
            "files_that_differ": result.different,
            "time": measured([result.seconds], "s"),
        }
    return results


def corrupted_inputs(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Damaged files, files made to do harm, and files that rotted behind their listed checksum."""
    count = 30 if quick else 1000
    jobs = {
        "damaged": lambda at: scenarios.build_corrupted(at, corpus.damaged(count, seed)),
        "made_to_do_harm": lambda at: scenarios.build_corrupted(at, corpus.crafted()),
        "rotten_behind_checksum": lambda at: scenarios.build_rotten_hub(
            at, count=count // 10, seed=seed
        ),
    }
    results = {}
    for name, job in jobs.items():
        (folder := work_dir / name).mkdir()
        result = job(folder)
        results[name] = {
            "inputs": result.inputs,
            "in_the_ledger": result.refused.total(),
            "ledger_stages": dict(result.refused),
            "accepted_and_unharmed": result.accepted_unharmed,
            "accepted_and_wrong": result.accepted_wrong,
            "errors_of_another_kind": result.odd_errors,
            "time": measured([result.seconds], "s"),
        }
    return results


def no_space(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """A small file system that fills up at random moments."""
    try:
        result = scenarios.fill_and_resume(
            work_dir, points=2 if quick else 20, samples=4 if quick else 12, seed=seed
        )
    except PermissionError as error:
        return {"skipped": f"no file system may be mounted here: {error}"}
    return asdict(result) | {"stopped_by": dict(result.stopped_by)}


def memory(repeats: int, work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Peak memory of processes with 32 workers each under a budget of two volumes."""
    side, samples = (96, 8) if quick else (320, 24)
    spacing_mm = (1.0, 1.0, 1.0)
    first = lay_out_ct_rate(
        work_dir / "source",
        {"valid_1_a_1": Volume(chest_phantom((side,) * 3, spacing_mm, seed), spacing_mm)},
        nested=False,
        tables=(),
    )["valid_1_a_1"]
    for n in range(2, samples + 1):
        first.with_name(f"valid_{n}_a_1.nii.gz").hardlink_to(first)
    spec = Spec(target_spacing_mm=spacing_mm, shape_hwd=(side,) * 3)
    footprint_bytes = first.stat().st_size + 4 * side**3
    limit_bytes = 2 * footprint_bytes
    runs = [
        scenarios.build_measured(
            work_dir / f"out-{n}", work_dir / "source", spec, limit_bytes=limit_bytes, workers=32
        )
        for n in range(repeats)
    ]
    return {
        "workers": 32,
        "samples": runs[0]["written"],
        "footprint_of_one_bytes": footprint_bytes,
        "limit_bytes": limit_bytes,
        "peak_reserved": of_runs(runs, "peak_reserved_bytes", "bytes"),
        "peak_rss": of_runs(runs, "peak_rss_bytes", "bytes"),
        "peak_rss_after_imports": of_runs(runs, "imports_rss_bytes", "bytes"),
        "peak_rss_after_one_sample": of_runs(runs, "one_sample_rss_bytes", "bytes"),
    }


def of_runs(runs: Sequence[Mapping[str, Any]], name: str, unit: str) -> dict[str, Any] | None:
    """One figure of every run; None where this system does not tell a process's peak memory."""
    values = [run[name] for run in runs]
    return None if None in values else measured(values, unit)


def scale(repeats: int, work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Planning, running a finished build again, and resuming behind many finished shards."""
    shards = 10 if quick else FULL_SHARDS
    source = {"kind": "hub", "location": "nobody/has-it", "revision": "0" * 40}
    last = SampleRef.of_file("dataset/valid_fixed/valid_1_a_1.nii.gz", 1 << 27)
    finished = work_dir / "finished"
    plan = scenarios.make_plan_of(finished, shards, DEFAULT_SAMPLES_PER_SHARD, source, last)
    scenarios.pretend_committed(finished, plan, range(shards))
    counts = (10, 20) if quick else (10, 100, 1_000, 10_000)
    planned, again = [], []
    resumed: dict[int, list[dict[str, Any]]] = {committed: [] for committed in counts}
    for n in range(repeats):
        with tempfile.TemporaryDirectory(dir=work_dir, prefix=f"{n}-") as fresh:
            planned.append(scenarios.plan_measured(Path(fresh), 500 if quick else FULL_SAMPLES))
            again.append(scenarios.run_measured(finished))
            for committed, runs in resumed.items():
                runs.append(scenarios.resume_measured(Path(fresh), committed))
    return {
        "planning": {
            "samples": planned[0]["samples"],
            "shards": planned[0]["shards"],
            "time": of_runs(planned, "seconds", "s"),
            "peak_rss": of_runs(planned, "peak_rss_bytes", "bytes"),
        },
        "finished_again": {
            "shards": shards,
            "samples": again[0]["total_samples"],
            "time": of_runs(again, "seconds", "s"),
            "tars_opened": tars_opened(again),
        },
        "resume_of_the_last_sample": {
            f"{committed}_committed": {
                "time_to_begin": of_runs(runs, "seconds_to_begin", "s"),
                "time": of_runs(runs, "seconds", "s"),
                "tars_opened": tars_opened(runs),
            }
            for committed, runs in resumed.items()
        },
    }


def tars_opened(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Finished tars that any of the runs opened."""
    return sorted({name for run in runs for name in run["tars_opened"]})


if __name__ == "__main__":
    main()
