"""Everything there is to know about a GPU, in one command of under ten minutes.

    python3 tests/gpu/check.py --limit 560 --output result.json

For a bare machine without internet: a driver, Python 3.12 with CuPy, torch perhaps, no git.  What
else is needed ``pack.py`` puts into ``.gpu-check`` beside the checkout's files.  The stages run one
after the other (``runner.py``); after each, what was found is in the result file and in
``.gpu-check/result.json``, so that nothing is lost where the command is cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import words
from pack import CARRIED, REPOSITORY
from runner import Found, Runner, Stage, table

HERE = Path(__file__).resolve().parent
#: Where a command is cut off after ten minutes, this leaves time to hand the results over.
DEFAULT_LIMIT_S = 560.0
#: Under a sanitizer everything takes many times as long: one test for each way through a kernel.
SANITIZED = (
    "every_memory_order or every_type_of_the_output or shapes_that_leave_a_rest "
    "or batch_of_everything or four_rows_at_once or (page_says and float16 and rice)"
)
#: With these words ncu says that it cannot work on this machine, whatever it was asked.
PROFILER_REFUSES = (
    "==ERROR== ERR_NVGPUCTRPERM",
    "==ERROR== Profiling is not supported on device",
    "==ERROR== Failed to initialize the profiler: LibraryNotLoaded",
    "==ERROR== Cuda driver is not compatible with Nsight Compute",
    "==ERROR== Profiling failed because a driver resource was unavailable",
)
#: And with these compute-sanitizer does, after its nine equals signs.
SANITIZER_REFUSES = (
    "Error: Device not supported",
    "Error: Failed to initialize WDDM debugger interface",
    "Unable to find injection library",
)
#: The exit status of a sanitizer that has found something.
SANITIZER_FOUND = 9
#: What of a profile's raw page is known without counting anything.
UNCOUNTED = ("device__", "launch__")
DOCTOR = """
import json, sys
from rich.console import Console
from ctgpu.checking.doctor import diagnose
from ctgpu.cli.doctor import text_of
report = diagnose(device="cuda")
Console(width=160).print(text_of(report, 160))
json.dump(report.to_dict(), open(sys.argv[1], "w"))
sys.exit(report.exit_code)
"""
#: Tests here that look at this check itself, and one elsewhere that needs a GPU.
NOT_GPU = ("test_check.py", "test_install.py", "test_verdicts.py", "test_whole_check.py")
DOCTOR_TEST = "tests/checking/test_doctor.py::test_a_machine_with_a_gpu"
#: What a stage that uses the GPU cannot do without.
WORKING = ("install", "doctor")


def main() -> int:
    """Run every stage, also after one failed; returns 0 where none failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--limit", type=seconds, default=DEFAULT_LIMIT_S, help="seconds for everything"
    )
    parser.add_argument(
        "--output", type=Path, help="where else to write the result than .gpu-check/result.json"
    )
    options = parser.parse_args()
    kept = CARRIED / "result.json"
    outputs = [kept] if options.output is None else [options.output.absolute(), kept]
    # An interrupt too: a shell has its background jobs ignore it unless they ask for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(options.limit, outputs, Path(folder), environment(Path(folder)))
        try:
            runner.run(stages(Path(folder)))
        finally:
            print(table(runner.result))
            print(f"written to {outputs[0]}")
    bad = ("failed", "timed out", "killed")
    return 1 if any(status in bad for status in runner.statuses.values()) else 0


def seconds(text: str) -> float:
    """A limit, from the command line."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def environment(work: Path) -> dict[str, str]:
    """That of every stage: the installed package, and neither internet nor foreign plugins."""
    # The installed package first: the checkout holds no compiled module.
    path = [work / "site", REPOSITORY, REPOSITORY / "tests", HERE]
    path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUPY_CACHE_DIR": str(work / "kernels"),
        "CTGPU_REAL_CT": str(CARRIED / "real_ct"),
        "HF_HUB_OFFLINE": "1",
    }


def stages(work: Path) -> list[Stage]:
    """What is found out, in this order: the sooner, the more it tells for its time."""
    python = sys.executable

    def script(name: str, *arguments: Any) -> list[Any]:
        return [python, HERE / f"{name}.py", *arguments]

    def saved(name: str) -> Path:
        return work / f"{name}.json"

    benchmark = REPOSITORY / "benchmarks" / "run_gpu.py"
    data = CARRIED / "real_ct"
    return [
        Stage(
            "facts",
            script("facts", saved("facts"), CARRIED),
            20,
            (),
            saved("facts"),
            says=words.of_facts,
        ),
        Stage(
            "install",
            script("install", saved("install"), CARRIED, work / "site"),
            150,
            (),
            saved("install"),
            says=words.of_install,
        ),
        Stage(
            "doctor",
            [python, "-c", DOCTOR, saved("doctor")],
            60,
            ("install",),
            saved("doctor"),
            says=words.of_doctor,
        ),
        Stage(
            "smoke",
            script("smoke", saved("smoke")),
            60,
            WORKING,
            saved("smoke"),
            says=words.of_smoke,
        ),
        Stage(
            "decoder",
            script("decoder", saved("decoder")),
            60,
            WORKING,
            saved("decoder"),
            says=words.of_decoder,
        ),
        Stage(
            "benchmark",
            [python, benchmark, "--data", data, "--json", saved("benchmark")],
            170,
            WORKING,
            saved("benchmark"),
            says=words.of_benchmark,
        ),
        profile(work, script("smoke", "--one-launch")),
        tests(
            "tests", work, 120, "tests/gpu", DOCTOR_TEST, *(f"--ignore={HERE / f}" for f in NOT_GPU)
        ),
        tests("loader tests", work, 60, "tests/loading", "-m", "gpu"),
        Stage(
            "end to end",
            script("end_to_end", saved("end_to_end"), data),
            100,
            WORKING,
            saved("end_to_end"),
            says=words.of_end_to_end,
        ),
        *(sanitizer(tool, work) for tool in ("memcheck", "racecheck", "synccheck")),
    ]


def pytest(work: Path, name: str, *arguments: Any) -> list[Any]:
    """The command for some tests; what other packages warn of on this machine is not ours."""
    return [
        *(sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"),
        *("-c", REPOSITORY / "pyproject.toml", "--rootdir", REPOSITORY),
        *("-p", "outcomes", f"--outcomes={work / name}.jsonl", "--continue-on-collection-errors"),
        *(REPOSITORY / a if str(a).startswith("tests/") else a for a in arguments),
    ]


def tests(name: str, work: Path, most_s: float, *arguments: Any) -> Stage:
    """Some tests on the GPU."""
    file = name.replace(" ", "-")
    return Stage(
        name,
        pytest(work, file, *arguments),
        most_s,
        WORKING,
        work / f"{file}.jsonl",
        read=read_tests,
        says=words.of_tests,
        idle=words.of_idle_tests,
    )


def profile(work: Path, launch: list[Any]) -> Stage:
    """One launch under Nsight Compute, with all that it counts."""
    log = work / "ncu.csv"
    tool = find_tool("ncu")
    what = ["--kernel-name", "ctgpu_preprocess", "--launch-count", "1", "--set", "full"]
    how = ["--clock-control", "none", "--target-processes", "all"]
    where = ["--csv", "--page", "raw", "--log-file", log]
    return Stage(
        "ncu",
        [tool, *what, *how, *where, *launch],
        50,
        WORKING,
        log,
        read=read_profile,
        says=words.of_profile,
        tells=log,
        unsupported=profiler_refuses,
        absent="" if tool else "no ncu here",
    )


def sanitizer(tool: str, work: Path) -> Stage:
    """The tests for each way through the kernel, under one tool of compute-sanitizer."""
    found = find_tool("compute-sanitizer")
    # CuPy asks for what there may not be and handles the error: that is no finding.
    options = ["--tool", tool, "--report-api-errors", "no"]
    options += ["--error-exitcode", str(SANITIZER_FOUND)]
    files = ("tests/gpu/test_cuda_engine.py", "tests/gpu/test_ctz_decoder.py")
    run = pytest(work, tool, *files, "-k", SANITIZED)
    return Stage(
        tool,
        [found, *options, *run],
        50,
        WORKING,
        work / f"{tool}.jsonl",
        read=read_tests,
        says=words.of_tests,
        unsupported=sanitizer_refuses,
        doubt=sanitizer_doubt,
        idle=words.of_idle_tests,
        absent="" if found else "no compute-sanitizer here",
    )


def find_tool(name: str) -> str | None:
    """Where a tool of the CUDA toolkit is, which need not be on the PATH."""
    on_path = shutil.which(name)
    if on_path is not None:
        return on_path
    patterns = (f"cuda*/bin/{name}", f"cuda*/compute-sanitizer/{name}")
    roots = (Path("/usr/local"), Path("/opt"))
    found = [path for root in roots for pattern in patterns for path in root.glob(pattern)]
    found += Path("/opt/nvidia/nsight-compute").glob(f"*/{name}")
    return str(sorted(found)[-1]) if found else None


def profiler_refuses(status: int, told: str) -> str:
    """Why ncu cannot work on this machine, in its own words; empty where it does not say so."""
    return next((words for words in PROFILER_REFUSES if words in told), "")


def sanitizer_refuses(status: int, told: str) -> str:
    """Why compute-sanitizer cannot work on this machine, in its own words.

    Empty where it does not say so, and where it, or a test, says anything beyond that: what was
    found stays a failure.  It counts its own refusals among the errors of its summary.
    """
    said = re.findall(r"(?<!=)={9} +(\S.*)", told)  # pytest's rows of equals signs are longer
    refusals = [line for line in said if line.startswith(SANITIZER_REFUSES)]
    summary = re.compile(r"(?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (0) hazards .*)\s*")
    counts = [int(of[1] or of[2]) for line in said if (of := summary.fullmatch(line))]
    others = len(said) - len(refusals) - len(counts) - said.count("COMPUTE-SANITIZER")
    explained = sum(counts) <= len(refusals) and (status != SANITIZER_FOUND or sum(counts) > 0)
    failed_tests = re.search(r"^(FAILED|ERROR) ", told, re.MULTILINE)
    return refusals[-1] if refusals and explained and not others and not failed_tests else ""


def sanitizer_doubt(told: str) -> str:
    """What of a sanitizer's summaries, one of each process, keeps it from having passed."""
    found = re.search(r"\w+ SUMMARY: [1-9].*", told)
    if found:
        return found[0].rstrip()
    looked = re.search(r"SUMMARY: 0 (errors|hazards)", told)
    return "" if looked else "it gives no summary: it looked at nothing"


def read_tests(path: Path) -> Found | None:
    """Tests, skips and why, and the names of those that failed, of what ``outcomes.py`` wrote.

    ``running`` is the test that had begun and not ended.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    outcomes: dict[str, Mapping[str, str]] = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # the last one may be half written
            outcome = json.loads(line)
            outcomes[outcome["test"]] = outcome
    running = [name for name, one in outcomes.items() if one["outcome"] == "begun"]
    reasons = Counter(one["why"] for one in outcomes.values() if one["outcome"] == "skipped")
    return {
        "tests": len(outcomes) - len(running),
        "skipped": reasons.total(),
        "reasons": dict(reasons),
        "names": [name for name, one in outcomes.items() if one["outcome"] in ("failed", "error")],
        "running": running,
    }


def read_profile(path: Path) -> Found | None:
    """Every metric of the first launch, from ``ncu --csv --page raw``: names, units, values.

    None where nothing was counted: a profiler that does not fit the driver writes ``nan``.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    header = next((n for n, row in enumerate(rows) if row[0] == "ID"), len(rows))
    if header + 2 >= len(rows):
        return None
    names, units, values = rows[header : header + 3]
    metrics: dict[str, Mapping[str, str]] = {
        name: {"value": value, "unit": unit}
        for name, unit, value in zip(names, units, values, strict=False)
        if "__" in name
    }
    counted = (of["value"] for name, of in metrics.items() if not name.startswith(UNCOUNTED))
    return dict(metrics) if any(map(is_number, counted)) else None


def is_number(text: str) -> bool:
    """Whether a value, with thousands separated or not, is a finite number."""
    try:
        return math.isfinite(float(text.replace(",", "")))
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
