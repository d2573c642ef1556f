"""Passed, failed, not here, not supported here: what ``check.py`` makes of what its tools say.

The tools are scripts that print and write what NVIDIA's do; the stages are the real ones.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import check
import pytest
import words
from runner import Runner, Stage

Outcome = dict[str, Any]

REFUSED = (
    '========= Error: Device not supported. Please refer to the "Supported Devices" section of '
    "the sanitizer documentation"
)
RACE = (
    "========= Error: Race reported between Write access at ctgpu_preprocess+0x110\n"
    "=========     and Read access at ctgpu_preprocess+0x1a0 [16 hazards]\n"
)
NO_METRICS = "==WARNING== No kernels were profiled.\n"
METRICS = (
    "==PROF== Connected to process 12\n==PROF== Disconnected from process 12\n"
    '"ID","Kernel Name","device__attribute_warp_size","gpu__time_duration.sum"\n'
    '"","","","us"\n"0","ctgpu_preprocess","32",'
)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Stage], Outcome]:
    def run(stage: Stage) -> Outcome:
        runner = Runner(60.0, [tmp_path / "result.json"], tmp_path, check.environment(tmp_path))
        runner.run([stage])
        found: Outcome = json.loads((tmp_path / "result.json").read_text())["stages"][stage.name]
        return found

    return run


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def tool(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return tool


# ---- ncu ----------------------------------------------------------------------------------------

LOG_FILE = 'while [ $# -gt 0 ]; do [ "$1" = --log-file ] && log=$2; shift; done\n'


def ncu(written: str, status: int) -> str:
    """Writes all that it has to say to its log file, as the manual has it."""
    return f'{LOG_FILE}printf %s {shlex.quote(written)} > "$log"\nexit {status}'


@pytest.mark.parametrize("status", [0, 1, 9])
@pytest.mark.parametrize(
    "words_of_ncu",
    [
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU "
        "Performance Counters on the target device 0.",
        "==ERROR== Profiling is not supported on device 0. To find out supported GPUs refer "
        "--list-chips option.",
        "==ERROR== Failed to initialize the profiler: LibraryNotLoaded. Check that a compatible "
        "driver library is loaded.",
        "==ERROR== Cuda driver is not compatible with Nsight Compute.",
        "==ERROR== Profiling failed because a driver resource was unavailable. Ensure that no "
        "other tool (like DCGM) is concurrently collecting profiling data.",
    ],
)
def test_a_profiler_that_refuses_says_so_in_its_log_file_alone(
    run: Callable[[Stage], Outcome],
    tool: Callable[[str, str], None],
    tmp_path: Path,
    words_of_ncu: str,
    status: int,
) -> None:
    tool("ncu", ncu(f"==PROF== Connected to process 12\n{words_of_ncu}\n{NO_METRICS}", status))
    outcome = run(check.profile(tmp_path, ["true"]))
    assert outcome["status"] == "not supported here"
    assert words_of_ncu.startswith(outcome["why"])
    assert words_of_ncu in outcome["log"]
    assert "found" not in outcome


@pytest.mark.parametrize(
    ("written", "status", "verdict"),
    [
        (f'{METRICS}"152.3"\n', 0, "passed"),
        (f'{METRICS}"1,152.3"\n', 0, "passed"),
        (f'{METRICS}"nan"\n', 0, "failed"),  # a profiler that does not fit the driver
        (f'{METRICS}"n/a"\n', 0, "failed"),
        (NO_METRICS, 0, "failed"),
        ("", 0, "failed"),
        ("==ERROR== The application returned an error code (1).\n" + NO_METRICS, 1, "failed"),
        (f'{METRICS}"152.3"\n', 1, "failed"),
    ],
)
def test_a_profile_has_passed_where_something_was_counted(
    run: Callable[[Stage], Outcome],
    tool: Callable[[str, str], None],
    tmp_path: Path,
    written: str,
    status: int,
    verdict: str,
) -> None:
    tool("ncu", ncu(written, status))
    outcome = run(check.profile(tmp_path, ["true"]))
    assert outcome["status"] == verdict
    assert verdict == "passed" or written in outcome["log"]
    assert ("found" in outcome) == ("152.3" in written)


def test_a_profiler_that_writes_nothing_at_all_has_not_passed(
    run: Callable[[Stage], Outcome], tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    tool("ncu", "exit 0")
    outcome = run(check.profile(tmp_path, ["true"]))
    assert outcome["status"] == "failed"
    assert outcome["why"] == "it ended well and found nothing"


# ---- compute-sanitizer --------------------------------------------------------------------------

ONE_TEST = json.dumps({"test": "a", "outcome": "passed", "why": ""})
OUTCOMES = (
    'for word; do case "$word" in --outcomes=*) saved=${word#--outcomes=};; esac; done\n'
    f'printf "%s\\n" {shlex.quote(ONE_TEST)} > "$saved"\n'
)


@pytest.mark.parametrize(
    ("told", "status", "verdict"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0, "passed"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, "passed"),
        # It did not say that it looked at anything.
        ("", 0, "failed"),
        (
            "========= Target application terminated before first instrumented API call\n",
            0,
            "failed",
        ),
        # What it found keeps its exit status at 0 where it is a warning, or another process's.
        ("========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", 0, "failed"),
        ("========= ERROR SUMMARY: 1 error\n========= ERROR SUMMARY: 0 errors\n", 0, "failed"),
        # It counts its own refusals.
        (f"{REFUSED}\n========= \n1 passed\n========= ERROR SUMMARY: 1 error\n", 9, "refused"),
        (f"{REFUSED}\n========= ERROR SUMMARY: 1 error\n", 1, "refused"),
        (f"..{REFUSED}\n", 1, "refused"),
        ("========= Unable to find injection library libsanitizer-collection.so\n", 1, "refused"),
        # What it found stays found, whatever it says beside.
        (RACE + f"{REFUSED}\n========= RACECHECK SUMMARY: 1 hazard displayed\n", 9, "failed"),
        (f"{REFUSED}\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error)\n", 1, "failed"),
        (f"{REFUSED}\n========= ERROR SUMMARY: 2 errors\n", 9, "failed"),
        (f"{REFUSED}\n{RACE}", 1, "failed"),
        (f"{REFUSED}\n", 9, "failed"),
        (f"{REFUSED}\n========= Invalid __global__ read of size 2 bytes\n", 9, "failed"),
        (f"{REFUSED}\nFAILED tests/gpu/test_cuda_engine.py::test_a\n", 1, "failed"),
        ("option --foo is not supported\n" + RACE, 9, "failed"),
        ("========= RACECHECK SUMMARY: 1 hazard; it is not supported\n", 9, "failed"),
        ("a test said: Device not supported\n", 1, "failed"),
    ],
)
def test_what_a_sanitizer_found_is_told_from_what_it_cannot_do_here(
    run: Callable[[Stage], Outcome],
    tool: Callable[[str, str], None],
    tmp_path: Path,
    told: str,
    status: int,
    verdict: str,
) -> None:
    tool("compute-sanitizer", f"{OUTCOMES}printf %s {shlex.quote(told)}\nexit {status}")
    outcome = run(check.sanitizer("racecheck", tmp_path))
    assert outcome["status"] == ("not supported here" if verdict == "refused" else verdict)
    if verdict == "refused":
        assert outcome["why"] in told
    if "SUMMARY: 2 hazards" in told:
        assert outcome["why"].startswith("RACECHECK SUMMARY: 2 hazards displayed")


def test_a_sanitizer_that_finds_something_in_no_time_is_not_unsupported(
    run: Callable[[Stage], Outcome], tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    """A stage that is killed or ends late keeps that verdict."""
    tool("compute-sanitizer", f"printf %s {shlex.quote(REFUSED)}\nkill -9 $$")
    outcome = run(check.sanitizer("racecheck", tmp_path))
    assert outcome["status"] == "killed"


# ---- tests --------------------------------------------------------------------------------------

SOME_TESTS = """
import os, signal, pytest

@pytest.fixture
def bad_in_the_end():
    yield
    raise RuntimeError

def test_good(): pass
def test_bad(): assert False
def test_not(): pytest.skip("no torch here")
@pytest.mark.skip(reason="no GPU here")
def test_not_either(): pass
def test_late(bad_in_the_end): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
@pytest.mark.xfail(reason="known", strict=False)
def test_better_than_known(): pass
"""


def some_tests(tmp_path: Path, code: str) -> Stage:
    """Tests of a file of their own, by the real command."""
    file = tmp_path / "test_some.py"
    file.write_text(code)
    stage = check.tests("some", tmp_path, 60.0, file)
    command = [tmp_path if word == check.REPOSITORY else word for word in stage.command]
    return replace(stage, command=command, needs=())


def named(*names: str) -> list[str]:
    return [f"test_some.py::{name}" for name in names]


def test_every_outcome_of_a_test_is_told(run: Callable[[Stage], Outcome], tmp_path: Path) -> None:
    outcome = run(some_tests(tmp_path, SOME_TESTS))
    assert outcome["status"] == "failed"
    found = outcome["found"]
    assert (found["tests"], found["skipped"], found["running"]) == (7, 2, [])
    assert found["names"] == named("test_bad", "test_late")
    assert found["reasons"] == {"no torch here": 1, "no GPU here": 1}
    assert outcome["says"].startswith("5 ran, 2 skipped; failed: ")


@pytest.mark.slow
def test_tests_that_are_stopped_leave_what_they_found(
    run: Callable[[Stage], Outcome], tmp_path: Path
) -> None:
    code = f"{SOME_TESTS}\ndef test_that_is_stopped(): os.kill(os.getpid(), signal.SIGKILL)\n"
    outcome = run(some_tests(tmp_path, code))
    assert outcome["status"] == "killed"
    assert outcome["why"] == f"by {signal.SIGKILL.name}"
    found = outcome["found"]
    assert (found["tests"], found["skipped"]) == (7, 2)
    assert found["names"] == named("test_bad", "test_late")
    assert found["running"] == named("test_that_is_stopped")
    assert "; not finished: " in outcome["says"]


@pytest.mark.slow
def test_what_a_stage_has_found_so_far_is_passed_on_while_it_runs(tmp_path: Path) -> None:
    """Also where nobody is left to conclude it."""
    code = (
        "import json, time, pathlib\n"
        "def test_good(): pass\n"
        "def test_looks():\n"
        f"    result = pathlib.Path({str(tmp_path / 'result.json')!r})\n"
        "    while True:\n"
        "        stages = json.loads(result.read_text())['stages'] if result.exists() else {}\n"
        "        if stages.get('some', {}).get('found', {}).get('tests') == 1:\n"
        "            return\n"
        "        time.sleep(0.05)\n"
    )
    runner = Runner(60.0, [tmp_path / "result.json"], tmp_path, check.environment(tmp_path))
    runner.run([some_tests(tmp_path, code)])
    assert runner.statuses == {"some": "passed"}


@pytest.mark.parametrize(
    "code",
    [
        "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass\n",
        "import pytest\ndef test_a(): pytest.importorskip('no_such_package')\n",
    ],
)
def test_tests_that_were_all_skipped_are_not_here(
    run: Callable[[Stage], Outcome], tmp_path: Path, code: str
) -> None:
    outcome = run(some_tests(tmp_path, code))
    assert outcome["status"] == "not here"
    assert "could not import 'no_such_package'" in outcome["why"]
    assert outcome["says"] == "0 ran, 1 skipped"


def test_one_test_that_ran_is_enough(run: Callable[[Stage], Outcome], tmp_path: Path) -> None:
    code = "import pytest\ndef test_a(): pytest.skip('not this')\ndef test_b(): pass\n"
    outcome = run(some_tests(tmp_path, code))
    assert outcome["status"] == "passed"
    assert outcome["says"] == "1 ran, 1 skipped"


@pytest.mark.slow
def test_tests_that_cannot_be_imported_or_are_none_have_failed(
    run: Callable[[Stage], Outcome], tmp_path: Path
) -> None:
    outcome = run(some_tests(tmp_path, "import no_such_package\n"))
    assert outcome["status"] == "failed"
    assert outcome["found"]["names"] == ["test_some.py"]
    assert run(some_tests(tmp_path, "\n"))["status"] == "failed"
    broken = (
        "import pytest\ndef test_a(): pytest.skip('not this')\ndef test_b(): pytest.exit('no')\n"
    )
    assert run(some_tests(tmp_path, broken))["status"] == "failed"


@pytest.mark.slow
def test_the_loaders_tests_without_torch_are_not_here(
    run: Callable[[Stage], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    stage = next(one for one in check.stages(tmp_path) if one.name == "loader tests")
    folder = check.REPOSITORY / "tests" / "loading"
    command = [word / "test_loader.py" if word == folder else word for word in stage.command]
    outcome = run(replace(stage, command=command, needs=()))
    assert outcome["status"] == "not here", outcome
    assert "could not import 'torch'" in outcome["why"]
    assert outcome["says"] == "0 ran, 1 skipped"


@pytest.mark.slow
def test_a_device_that_is_lost_on_the_way_skips_no_test(
    run: Callable[[Stage], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that has found a device fails where its tests do not find it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file = "tests/gpu/test_cuda_engine.py"
    stage = check.tests("engine", tmp_path, 60.0, file, "-m", "gpu", "-k", "torch")
    outcome = run(replace(stage, needs=()))
    assert outcome["status"] == "failed"
    assert outcome["found"]["skipped"] == 0


def test_half_a_line_of_outcomes_is_no_outcome(tmp_path: Path) -> None:
    path = tmp_path / "tests.jsonl"
    path.write_text(f'{ONE_TEST}\n{{"test": "b", "outc')
    found = check.read_tests(path)
    assert found is not None
    assert words.of_tests(found) == "1 ran, 0 skipped"
    assert check.read_tests(tmp_path / "none") is None
