"""``check.py``: whatever happens to a stage, what was found before it is kept.  No GPU is needed.

Stages here are small scripts; the runner that runs them is the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check
import pack
import pytest
import runner
from runner import Runner, Stage, table

HERE = Path(__file__).resolve().parent
#: Guards against hanging alone.
DEADLINE_S = 60.0


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*stages: Stage, limit_s: float = 60.0) -> dict[str, Any]:
        outputs = [tmp_path / "out" / "result.json", tmp_path / "kept.json"]
        Runner(limit_s, outputs, tmp_path, dict(os.environ)).run(stages)
        first, second = (json.loads(path.read_text()) for path in outputs)
        assert first == second
        return dict(first)

    return run


def stage(name: str, code: str, most_s: float = 20.0, **others: Any) -> Stage:
    return Stage(name, [sys.executable, "-c", code], most_s, **others)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


SAVES = "import sys, json; json.dump({'part': 1}, open(sys.argv[1], 'w'))"


def saving(name: str, path: Path, more: str = "", most_s: float = 20.0, **others: Any) -> Stage:
    """Saves a part, and then does more."""
    command = [sys.executable, "-c", f"{SAVES}\nimport os, time, signal\n{more}", path]
    says = lambda found: f"part {found['part']}"  # noqa: E731
    return Stage(name, command, most_s, saved=path, says=says, **others)


@pytest.mark.slow
def test_every_way_to_end_leaves_the_results_before_it(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = run(
        saving("good", tmp_path / "a.json"),
        saving("hanging", tmp_path / "b.json", "time.sleep(1000)", most_s=8.0),
        saving("failing", tmp_path / "c.json", "print('why not'); sys.exit(7)"),
        saving("killed", tmp_path / "d.json", "os.kill(os.getpid(), signal.SIGKILL)"),
        Stage("not there", [tmp_path / "no such program"], 20.0),
        saving("last", tmp_path / "e.json"),
    )
    assert result["finished"]
    stages = result["stages"]
    assert {name: outcome["status"] for name, outcome in stages.items()} == {
        "good": "passed",
        "hanging": "timed out",
        "failing": "failed",
        "killed": "killed",
        "not there": "failed",
        "last": "passed",
    }
    for name in ("good", "hanging", "failing", "killed", "last"):
        assert stages[name]["found"] == {"part": 1}, name
        assert stages[name]["says"] == "part 1"
    assert stages["hanging"]["why"].startswith("stopped after ")
    assert stages["killed"]["why"] == "by SIGKILL"
    assert "no such program" in stages["not there"]["why"]
    assert stages["failing"]["log"] == "why not\n"
    assert "log" not in stages["good"]
    lines = table(result).splitlines()
    assert len(lines) == 7
    assert lines[2].startswith("hanging    timed out")
    assert lines[2].endswith(" s; part 1")


@pytest.mark.slow
def test_a_hanging_stage_leaves_no_process_behind(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """As a sanitizer's child, which would hold the GPU; also one in a session of its own."""
    code = f"""
import subprocess, sys, time
for session in (False, True):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"],
                             start_new_session=session)
    open({str(tmp_path)!r} + f"/pid{{session:d}}", "w").write(str(child.pid))
open({str(tmp_path)!r} + "/both", "w").close()
time.sleep(1000)
"""
    hanging = Stage("hanging", [sys.executable, "-c", code], 4.0)
    result = run(hanging)
    assert result["stages"]["hanging"]["status"] == "timed out"
    assert (tmp_path / "both").exists()
    for session in "01":
        pid = int((tmp_path / f"pid{session}").read_text())
        wait_for(lambda pid=pid: not is_running(pid))


def test_a_stage_that_ends_leaves_no_process_behind_either(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(1000)'], start_new_session=True); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))"
    )
    assert run(stage("short", code))["stages"]["short"]["status"] == "passed"
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_running(pid))


def test_stages_share_the_time_that_is_left(run: Callable[..., dict[str, Any]]) -> None:
    result = run(
        stage("first", "pass", 30.0),
        stage("second", "pass", 10.0),
        stage("third", "pass", 20.0),
        limit_s=33.0,
    )
    limits = [outcome["limit_s"] for outcome in result["stages"].values()]
    assert limits[0] == pytest.approx(15.0, abs=1.0)  # half of 30 s
    # What those before did not take is theirs: more than a sixth and a third, but not without end.
    assert 5.0 < limits[1] <= 10.0
    assert 10.0 < limits[2] <= 20.0


@pytest.mark.slow
def test_the_whole_ends_in_time_whatever_hangs(run: Callable[..., dict[str, Any]]) -> None:
    begin = time.monotonic()
    hanging = [stage(f"stage {n}", "import time; time.sleep(1000)", 100.0) for n in range(4)]
    result = run(*hanging, limit_s=9.0)
    statuses = [outcome["status"] for outcome in result["stages"].values()]
    assert statuses == ["timed out"] * 4
    assert sum(outcome["limit_s"] for outcome in result["stages"].values()) <= 6.2
    assert time.monotonic() - begin < DEADLINE_S


def test_without_time_nothing_is_begun(run: Callable[..., dict[str, Any]]) -> None:
    result = run(stage("late", "raise SystemExit(1)"), limit_s=2.0)
    assert result["stages"]["late"]["status"] == "skipped"
    assert result["stages"]["late"]["why"] == "no time was left"


def test_what_cannot_be_is_told_from_what_failed(run: Callable[..., dict[str, Any]]) -> None:
    def unsupported(status: int, told: str) -> str:
        return "the machine does not" if status == 1 and "does not" in told else ""

    def one(name: str, code: str, **others: Any) -> Stage:
        return stage(name, code, unsupported=unsupported, **others)

    result = run(
        one("refused", "print('it does not'); raise SystemExit(1)"),
        one("found", "print('it does not'); raise SystemExit(9)"),
        one("passes", "print('it does not')"),
        one("doubtful", "print('it does not')", doubt=lambda told: "it looked at nothing"),
        Stage("tool", [None], 20.0, absent="no such tool here"),
        stage("after", "pass", needs=("refused", "passes")),
        stage("later", "pass", needs=("passes",)),
    )
    assert {name: o["status"] for name, o in result["stages"].items()} == {
        "refused": "not supported here",
        "found": "failed",
        "passes": "passed",
        "doubtful": "failed",
        "tool": "not here",
        "after": "skipped",
        "later": "passed",
    }
    whys = {name: o.get("why") for name, o in result["stages"].items()}
    assert whys["refused"] == "the machine does not"
    assert whys["doubtful"] == "it looked at nothing"
    assert whys["after"] == "needs refused"
    assert whys["tool"] == "no such tool here"


def test_a_stage_that_ends_well_and_has_found_nothing_has_failed(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = run(
        stage("silent", "pass", saved=tmp_path / "none.json"),
        saving("idle", tmp_path / "a.json", idle=lambda found: f"nothing to do in {found['part']}"),
    )
    assert result["stages"]["silent"]["status"] == "failed"
    assert result["stages"]["silent"]["why"] == "it ended well and found nothing"
    assert result["stages"]["idle"]["status"] == "not here"
    assert result["stages"]["idle"]["why"] == "nothing to do in 1"


def test_one_result_file_that_cannot_be_written_does_not_keep_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    outputs = [tmp_path / "file" / "result.json", tmp_path / "result.json"]
    Runner(20.0, outputs, tmp_path, dict(os.environ)).run([stage("good", "pass")])
    assert json.loads(outputs[1].read_text())["stages"]["good"]["status"] == "passed"
    assert "result.json cannot be written: " in capsys.readouterr().err


#: A stage that saves its process id and hangs.
HANGS = """
import json, os, sys, time
json.dump({"pid": os.getpid()}, open(sys.argv[1], "w"))
time.sleep(1000)
"""
#: Runs two stages, of which that is the second.
CUT_OFF = """
import os, signal, sys
from pathlib import Path
here, work = map(Path, sys.argv[1:])
sys.path.insert(0, str(here))
import check
from runner import Runner, Stage
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, check._stop)
Runner(500.0, [work / "result.json"], work, dict(os.environ)).run([
    Stage("good", [sys.executable, "-c", "pass"], 100.0),
    Stage("cut off", [sys.executable, work / "hangs.py", work / "part.json"], 100.0,
          saved=work / "part.json"),
])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_being_cut_off_leaves_what_was_found(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    process = subprocess.Popen(
        [sys.executable, "-c", CUT_OFF, HERE, tmp_path],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    result = tmp_path / "result.json"

    def part() -> Any:
        found = runner.read_json(result) or {"stages": {}}
        return found["stages"].get("cut off", {}).get("found")

    wait_for(part)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) != 0
    stages = json.loads(result.read_text())["stages"]
    assert stages["good"]["status"] == "passed"
    pid = stages["cut off"]["found"]["pid"]
    if number == signal.SIGKILL:  # nobody is left who could end it
        assert stages["cut off"]["status"] == "running"
        os.kill(pid, signal.SIGKILL)
    else:
        assert stages["cut off"]["status"] == "stopped"
    wait_for(lambda: not is_running(pid))


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(check, "CARRIED", tmp_path / "carried")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path / "carried"


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(1)", 1)])
def test_the_command_writes_where_it_is_told_and_into_the_pack(
    carried: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    code: str,
    status: int,
) -> None:
    monkeypatch.setattr(check, "stages", lambda work: [stage("one", code)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check.py", "--limit", "30", "--output", "out/result.json"])
    assert check.main() == status
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written == json.loads((carried / "result.json").read_text())
    assert written["limit_s"] == 30.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("one    " + ("failed" if status else "passed"))  # the table is last
    assert lines[-1].endswith("out/result.json")


def test_without_a_place_to_write_it_is_the_pack(
    carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "stages", lambda work: [stage("one", "pass")])
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 0
    assert json.loads((carried / "result.json").read_text())["limit_s"] == 560.0


@pytest.mark.parametrize("limit", ["0", "-5", "inf", "nan", "soon"])
def test_a_limit_that_is_none_is_refused(
    carried: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", f"--limit={limit}"])
    with pytest.raises(SystemExit) as caught:
        check.main()
    assert caught.value.code == 2


def test_stages_see_no_internet_and_no_foreign_plugins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    seen = check.environment(tmp_path)
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] == "1"
    path = seen["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(tmp_path / "site")
    assert path[-1] == "/somewhere"


def test_every_stage_of_the_list_can_be_run(tmp_path: Path) -> None:
    stages = check.stages(tmp_path)
    names = [one.name for one in stages]
    assert names[:3] == ["facts", "install", "doctor"]
    for one in stages:
        assert set(one.needs) <= set(names[: names.index(one.name)])
        given = [str(word).removeprefix("--ignore=").split("::")[0] for word in one.command]
        ours = [word for word in given if word.startswith(f"{pack.REPOSITORY}{os.sep}")]
        ours = [word for word in ours if not word.startswith(str(pack.CARRIED))]
        assert ours or one.name == "doctor"
        assert all(Path(word).exists() for word in ours)
        assert one.absent or None not in one.command
    sanitized = [one for one in stages if "--tool" in one.command]
    assert [one.most_s for one in sanitized] == [50.0] * 3
    for one in sanitized:
        at = one.command.index("--report-api-errors")
        assert one.command[at + 1] == "no"


def collected(tmp_path: Path, command: list[Any]) -> list[str]:
    """The tests that a command of pytest would run."""
    command = [*map(str, command), "--collect-only"]
    environment = {**check.environment(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [line for line in ran.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_the_loaders_test_on_a_gpu_is_collected(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = next(one.command for one in check.stages(tmp_path) if one.name == "loader tests")
    folder = pack.REPOSITORY / "tests" / "loading"
    # Of the folder only the file, as the others import much.
    tests = collected(tmp_path, [w / "test_loader.py" if w == folder else w for w in command])
    assert any("test_loader.py" in test for test in tests)


@pytest.mark.slow
def test_the_engines_tests_are_collected_and_these_are_not(tmp_path: Path) -> None:
    command = next(one.command for one in check.stages(tmp_path) if one.name == "tests")
    tests = collected(tmp_path, [*command])
    assert any("test_cuda_engine.py" in test for test in tests)
    assert any("test_doctor.py" in test for test in tests)
    assert not any(name in test for test in tests for name in check.NOT_GPU)
    command = check.sanitizer("memcheck", tmp_path).command
    tests = collected(tmp_path, [*command[command.index(sys.executable) :]])
    assert any("every_memory_order" in test for test in tests)


@pytest.mark.slow
def test_no_emulated_device_passes_in_place_of_the_machines(tmp_path: Path) -> None:
    """As where a sanitizer keeps the engine from the device."""
    command = check.sanitizer("memcheck", tmp_path).command
    environment = {
        **check.environment(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        runner.MARK: "memcheck",
        "PYTHONPATH": str(HERE),
    }
    ran = subprocess.run(
        list(map(str, command[command.index(sys.executable) :])),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout
    assert " passed" not in ran.stdout.splitlines()[-1]
    assert "DeviceError" in ran.stdout


def test_what_a_tool_tells_its_program_reaches_the_tests() -> None:
    """By the environment, at CUDA's first use: long after the tests have shut others out."""
    code = (
        "import os, hermetic; hermetic.shut_out(); print(os.environ.get('CUDA_INJECTION64_PATH'))"
    )
    told = {**os.environ, "CUDA_INJECTION64_PATH": "/tool.so", "PYTHONPATH": str(HERE.parent)}
    for stage_of_check, seen in (("memcheck", "/tool.so"), (None, "None")):
        environment = told | ({runner.MARK: stage_of_check} if stage_of_check else {})
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == seen
