"""What is left of a build that is killed, starved, throttled and fed rubbish?

Every scenario is the one of ``tests/faults/``, at full size: builds killed with SIGKILL and
resumed, a Hub that fails 30 % of all requests, corrupted inputs, a disk that fills up, a memory
budget, and plans of 47,149 samples.  Each result is compared, byte by byte, with that of a build
that nothing happened to.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import argument_parser, print_table, write_result

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

import corpus  # noqa: E402
import scenarios  # noqa: E402

from ctgpu.sources.base import SampleRef  # noqa: E402
from ctgpu.spec import Spec  # noqa: E402
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate  # noqa: E402
from ctgpu.testing.hub import Faults  # noqa: E402

#: CT-RATE's two splits together would be more; this is the larger one at 128 to a shard.
FULL_SAMPLES, FULL_SHARDS = 47_149, 369


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "", repeats=1)
    parser.add_argument("--seed", type=int, default=1, help="other seeds, other moments")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    arguments = parser.parse_args()
    questions: dict[str, Callable[[Path, bool, int], dict[str, Any]]] = {
        "kills": kills,
        "bad_hub": bad_hub,
        "corrupted_inputs": corrupted_inputs,
        "no_space": no_space,
        "memory": memory,
        "scale": scale,
    }
    results, rows = {}, []
    for name, question in questions.items():
        with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
            began = time.perf_counter()
            results[name] = question(Path(folder), arguments.quick, arguments.seed)
            results[name]["seconds"] = round(time.perf_counter() - began, 2)
        rows += [[f"{name}: {what}", value] for what, value in flat(results[name])]
    print_table("What was left", ["question", "found"], rows)
    print(write_result(arguments.json, "reliability", {"seed": arguments.seed, **results}))


def flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as rows of a table; lists as their length."""
    rows: list[tuple[str, Any]] = []
    for name, value in result.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", len(value) if isinstance(value, list) else value))
    return rows


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
    }


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
            "build_s": result.seconds,
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


def memory(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Peak memory of a process with 32 workers under a budget of two volumes."""
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
    figures = scenarios.build_measured(
        work_dir / "out", work_dir / "source", spec, limit_bytes=limit_bytes, workers=32
    )
    return {
        "workers": 32,
        "samples": figures["written"],
        "footprint_of_one_bytes": footprint_bytes,
        "limit_bytes": limit_bytes,
        "peak_reserved_bytes": figures["peak_reserved_bytes"],
        "peak_rss_bytes": figures["peak_rss_bytes"],
        "peak_rss_after_imports_bytes": figures["imports_rss_bytes"],
        "peak_rss_after_one_sample_bytes": figures["one_sample_rss_bytes"],
    }


def scale(work_dir: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Planning, running a finished build again, and resuming behind many finished shards."""
    planned = scenarios.plan_measured(work_dir, 500 if quick else FULL_SAMPLES)
    shards = 10 if quick else FULL_SHARDS
    source = {"kind": "hub", "location": "nobody/has-it", "revision": "0" * 40}
    last = SampleRef("dataset/valid_fixed/valid_1_a_1.nii.gz", 1 << 27)
    plan = scenarios.make_plan_of(work_dir / "finished", shards, 128, source, last)
    scenarios.pretend_committed(work_dir / "finished", plan, range(shards))
    again = scenarios.run_measured(work_dir / "finished")
    resumed = {}
    for committed in (10, 20) if quick else (10, 100, 1_000, 10_000):
        figures = scenarios.resume_measured(work_dir, committed)
        resumed[f"{committed}_committed"] = {
            "s_to_begin": figures["seconds_to_begin"],
            "s": figures["seconds"],
            "tars_opened": figures["tars_opened"],
        }
    return {
        "planning": planned,
        "finished_again": {
            "shards": shards,
            "samples": again["total_samples"],
            "s": again["seconds"],
            "tars_opened": again["tars_opened"],
        },
        "resume_of_the_last_sample": resumed,
    }


if __name__ == "__main__":
    main()
