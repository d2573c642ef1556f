"""Names, keys and reports made to deceive, shown on pipes and on real terminals."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import ctgpu
from ctgpu.cli.display import Display
from ctgpu.cli.terminal import Console, LogFormat, ShardBar, configure_logging
from ctgpu.testing.ctrate import chest_phantom, lay_out_ct_rate
from support.command_line import CTGPU, SMALL, run, run_here
from support.phantoms import SPACING_MM, SPEC, chest

FORGED = "2026-01-01 00:00:00,000 INFO shard 000009: 4 samples, 3.3 MB"
# Clears the screen, sets the title, turns the direction, links, colours, and breaks lines.
EVIL = "\x1b[2J\x1b]0;pwn\x07\u202egnp\u2066\x9b31m\x7f\u2028\u0085[/foo][red]\\[/foo] $x_$ :smile:"
REPORT = f"{EVIL}\x1b]8;;http://evil\x1b\\link\nctgpu: all is well\r\n{FORGED}"

# Of a rich console on a terminal: colours, line up and erase, cursor off and on.
OWN_SEQUENCES = re.compile(r"\x1b\[(?:[0-9;]*m|2K|1A|\?25[lh])")


def is_safe(text: str, *, terminal: bool = False) -> bool:
    """Whether nothing in it but line ends is obeyed by a terminal."""
    if terminal:
        text = OWN_SEQUENCES.sub("", text).replace("\r", "")
    return all(c == "\n" or c.isprintable() or (c.isspace() and c in "\u00a0 ") for c in text)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of volumes, some of them damaged, whose names are not what they seem."""
    root = tmp_path_factory.mktemp("evil")
    made = lay_out_ct_rate(root / "made", {"valid_1_a_1": chest()}, tables=())["valid_1_a_1"]
    folder = root / "volumes\x1b[2J\n[b]"
    folder.mkdir()
    flat = EVIL.replace("/", "")
    for n, name in enumerate((flat, f"a\n{FORGED}", "[bold]b")):
        shutil.copy(made, folder / f"{name}.nii.gz")
        (folder / f"damaged {n} {name}.nii.gz").write_bytes(b"\x1f\x8b damaged")
    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tars as the old scripts made them, whose key, JSON and report are hostile."""
    path = tmp_path_factory.mktemp("tars") / "shard-000000.tar"
    voxels = chest_phantom((40, 40, 30), SPACING_MM)
    facts = {
        "study_id": EVIL,
        "volume_shape": voxels.shape,
        "volume_dtype": str(voxels.dtype),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "XYSpacing": "[3.5, 3.0]",
        "ZSpacing": 5.0,
        "source": {"path": REPORT},
    }
    members = {
        "bin": voxels.tobytes(),
        "json": json.dumps(facts).encode(),
        "cls": np.ones(18, "<f4").tobytes(),
        "txt": REPORT.encode(),
    }
    key = f"k\n{EVIL.replace('/', '')}"
    with tarfile.open(path, "w") as archive:
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.parent


def run_on_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code and all that a terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*CTGPU, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm", "HF_HUB_OFFLINE": "1"},
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 1 << 16):
            seen += piece
    except OSError:  # all who could write have gone
        pass
    os.close(ours)
    return process.wait(timeout=120), seen.decode()


@pytest.mark.slow
def test_a_build_logs_each_event_on_one_line_whatever_files_are_called(
    tmp_path: Path, evil: Path
) -> None:
    result = run("build", "--output-dir", tmp_path, "--source", evil, *SMALL)
    assert result.returncode == 1, result.stderr
    assert is_safe(result.stdout)
    assert is_safe(result.stderr)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:", line) for line in result.stderr.splitlines())
    assert not any(line.startswith("2026-01-01") for line in result.stderr.splitlines())
    assert result.stderr.count("failed in decode") == 3
    assert r"a\n2026-01-01" in result.stderr
    assert "3 samples failed" in result.stdout


def test_a_json_log_is_strict_and_shows_nothing_raw(tmp_path: Path, evil: Path) -> None:
    arguments = ("build", "--output-dir", tmp_path, "--source", evil, "--log-format", "json")
    result = run_here(*arguments, *SMALL)
    assert result.returncode == 1
    assert result.stdout.isascii()
    assert result.stderr.isascii()
    assert is_safe(result.stdout + result.stderr)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    failed = [line for line in lines if line.get("event") == "SampleFailed"]
    assert {line["path"] for line in failed} == {
        path.name for path in evil.iterdir() if path.name.startswith("damaged")
    }
    assert json.loads(result.stdout)["failed"] == 3


@pytest.mark.slow
def test_a_build_on_a_terminal_shows_nothing_raw(tmp_path: Path, evil: Path) -> None:
    code, seen = run_on_terminal("build", "--output-dir", tmp_path, "--source", evil, *SMALL)
    assert code == 1
    assert "\x1b[?25h" in seen  # the live display was there
    assert is_safe(seen, terminal=True)
    assert "[bold]b" in OWN_SEQUENCES.sub("", seen)


def test_inspect_shows_a_hostile_report_in_its_box(tars: Path) -> None:
    result = run_here("inspect", tars)
    assert result.returncode == 0, result.stderr
    assert is_safe(result.stdout)
    assert r"\x1b[2J\x1b]0;pwn\x07\u202egnp\u2066\u009b31m\x7f\u2028\u0085[/foo][red]\[/foo]" in (
        re.sub(r"\s*│\n│\s+│ ", "", result.stdout)
    )
    assert ":smile:" in result.stdout
    forged = [line for line in result.stdout.splitlines() if "ctgpu: all is well" in line]
    assert forged
    assert all(line.startswith("│") for line in forged)
    assert result.stdout.startswith(r"k\n\x1b[2J")


@pytest.mark.slow
def test_inspect_on_a_terminal_shows_nothing_raw(tars: Path) -> None:
    code, seen = run_on_terminal("inspect", tars)
    assert code == 0, seen
    assert is_safe(seen, terminal=True)


def test_inspect_as_json_gives_the_report_back_and_shows_nothing_raw(tars: Path) -> None:
    result = run_here("inspect", tars, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert is_safe(result.stdout)
    facts = json.loads(result.stdout)
    assert facts["report"] == REPORT[: len(facts["report"])]
    assert facts["key"].startswith("k\n\x1b[2J")


@pytest.mark.slow
def test_a_picture_of_a_hostile_key_is_drawn(tmp_path: Path, tars: Path) -> None:
    """matplotlib would take what is between dollar signs for a formula, and not understand it."""
    pytest.importorskip("matplotlib")
    result = run_here("inspect", tars, "--preview", tmp_path / "sheet.svg")
    assert result.returncode == 0, result.stderr
    assert is_safe(result.stderr)
    assert (tmp_path / "sheet.svg").stat().st_size > 0


def test_voxels_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    voxels = np.full((8, 8, 8), np.nan, np.float32)
    np.savez(tmp_path / "nan.npz", data=voxels)
    result = run_here("inspect", tmp_path / "nan.npz", "--json")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout, parse_constant=refuse)["mean"] is None


@pytest.fixture
def built(tmp_path: Path, evil: Path) -> Path:
    folder = tmp_path / "o\x1b[2J\nx: \"q\" 's' # {a} é \x85"
    ctgpu.build(folder, source=evil, spec=SPEC, device="cpu")
    return folder


def test_every_command_shows_a_hostile_folder_with_escapes(built: Path, evil: Path) -> None:
    os.truncate(built / "shard-000000.tar", 1000)
    for arguments in (
        ["verify", built],
        ["verify", built, "--json"],
        ["manifest", built],
        ["inspect", built],
        ["inspect", built / "nothing.nii.gz"],
        ["inspect", evil / f"a\n{FORGED}.nii.gz"],
        ["doctor", "--output-dir", built / "[/foo]", "--device", "cpu"],
        ["plan", "--output-dir", built, "--source", evil, "--calibrate", 0, "--device", "cpu"],
        ["build", "--output-dir", built, "--device", "cpu", "--split", EVIL],
        ["build", "--output-dir", built, "--source", built / EVIL, "--device", "cpu"],
        ["convert", "--input-pattern", built / EVIL, "--output-dir", built / "c"],
        [EVIL],
        ["build", f"--{EVIL}"],
    ):
        result = run_here(*arguments)
        assert is_safe(result.stdout), arguments
        assert is_safe(result.stderr), arguments
        assert "Traceback" not in result.stderr
        assert result.returncode != 70, result.stderr
        assert not any(
            line.startswith(("2026-01-01", "[b]")) for line in result.stderr.splitlines()
        )


def test_the_lines_for_a_training_config_are_yaml_whatever_the_folder_is_called(
    built: Path,
) -> None:
    result = run_here("build", "--output-dir", built, "--device", "cpu")
    assert result.returncode == 1, result.stderr
    _, _, text = result.stdout.partition("For a training config:\n")
    text, _, _ = text.partition("\nNext:\n")
    data = yaml.safe_load(text)["data"]
    assert data["urls"] == str(built / "shard-000000.tar")
    assert data["num_samples"] == 3
    assert data["shape"] == [90, 90, 50]


@pytest.fixture
def logs() -> Iterator[None]:
    names = ("", "ctgpu", "py.warnings")
    kept = {
        name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names
    }
    hook = threading.excepthook
    yield
    logging.captureWarnings(False)
    threading.excepthook = hook
    for name, (handlers, level) in kept.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_what_other_packages_log_and_threads_raise_is_a_line_of_the_log_too(
    log_format: LogFormat, logs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format, logging.INFO, Console(stderr=True))

    def end() -> None:
        raise ValueError(REPORT)

    thread = threading.Thread(target=end, name=f"worker\n{FORGED}")
    thread.start()
    thread.join()
    logging.getLogger("another").warning("it says %s", REPORT)
    try:
        end()
    except ValueError:
        logging.getLogger("ctgpu.building.pipeline").exception("unexpected")
    text = capsys.readouterr().err
    assert is_safe(text)
    lines = text.splitlines()
    assert not any(line.startswith(("2026-01-01", "ctgpu:")) for line in lines)
    events = [line for line in lines if not line.startswith("    ")]
    assert len(events) == 3
    if log_format is LogFormat.json:
        assert len(lines) == 3
        assert REPORT in json.loads(lines[1])["message"]
        assert "ValueError" in json.loads(lines[2])["traceback"]


PATH = "/a/path/that/is/longer/than/the/terminal/valid_1_a_1.nii.gz"


def test_log_lines_on_a_terminal_break_between_words_below_their_time(
    logs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    configure_logging(
        LogFormat.text, logging.INFO, Console(file=shown, width=40, force_terminal=True)
    )
    log = logging.getLogger("ctgpu.tried")
    log.info("table: %s (labels), joined by a column of it\x1b[2J", PATH)
    log.warning("run `ctgpu build --retry-failed` once it is mended")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("unexpected")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    monkeypatch.setattr(time, "time_ns", lambda: int(now + 86400) * 10**9)
    log.info("the next day")
    assert is_safe(shown.getvalue(), terminal=True)
    lines = OWN_SEQUENCES.sub("", shown.getvalue()).splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "TIME ", line) for line in lines[:6]] == [
        "TIME table:",
        f"         {PATH}",
        "         (labels), joined by a column of",
        r"         it\x1b[2J",
        "TIME WARNING run",
        "         `ctgpu build --retry-failed`",
    ]
    assert lines[7].endswith(" ERROR unexpected")
    assert lines[8] == "    Traceback (most recent call last):"
    # Which day it is is said when it begins.
    assert lines[-2] == time.strftime("%Y-%m-%d", time.localtime(now + 86400))
    assert lines[-1].endswith(" the next day")
    assert sum(bool(re.fullmatch(r"\d{4}-\d\d-\d\d", line)) for line in lines) == 1


def test_what_is_said_beside_a_bar_of_shards_is_not_drawn_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are sent to one terminal, as a user's are."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "100")
    for is_terminal in (True, False):
        screen.seek(0)
        screen.truncate()
        monkeypatch.setattr(screen, "isatty", lambda said=is_terminal: said, raising=False)
        console = Console(file=screen, force_terminal=is_terminal, width=40, no_color=True)
        with ShardBar("checking shards", console) as bar:
            bar.looked_at(1, 2)
            bar.say(f"{PATH}: the shard is not finished")
        # Of what is erased in place nothing is left.
        lines = [re.split(r"\r|\x1b\[2K", line)[-1] for line in screen.getvalue().split("\n")]
        said = [OWN_SEQUENCES.sub("", line) for line in lines]
        assert [line for line in said if PATH in line] == [f"{PATH}: the shard is not finished"]
        assert ("checking shards" in screen.getvalue()) is is_terminal


def test_a_live_display_that_cannot_start_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    stdout, stderr = sys.stdout, sys.stderr
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), Display(console):
            pass
    sys.stdout, sys.stderr = stdout, stderr
    assert shown.getvalue().rfind("\x1b[?25h") > shown.getvalue().rfind("\x1b[?25l") >= 0


COLOURS = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7])[0-9;]*m")


@pytest.mark.slow
@pytest.mark.parametrize("is_asked", [False, True])
def test_no_color_is_honoured_by_tables_log_lines_and_the_live_display(
    tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if is_asked:
        monkeypatch.setenv("NO_COLOR", "1")
    build = ("build", "--output-dir", tmp_path / "out", "--source", evil, *SMALL)
    for command in (build, ("doctor", "--output-dir", tmp_path, "--device", "cpu")):
        _, seen = run_on_terminal(*command)
        assert bool(COLOURS.search(seen)) is not is_asked, command


@pytest.mark.slow
def test_an_error_on_a_terminal_breaks_between_words(tmp_path: Path) -> None:
    words = ("describe", tmp_path / "nothing.here")
    code, seen = run_on_terminal(*words)
    assert code == 2
    lines = seen.replace("\r", "").splitlines()
    assert lines[0].startswith("ctgpu: ")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 100
    # Elsewhere it is one line of the same words.
    piped = run_here(*words).stderr
    assert piped.count("\n") == 1
    assert " ".join(lines).split() == piped.split()


def test_prose_is_broken_between_words_on_a_terminal_alone() -> None:
    for is_terminal in (True, False):
        shown = io.StringIO()
        console = Console(file=shown, width=30, force_terminal=is_terminal, highlight=False)
        console.prose("a  [b]\x1b of /a/path/that/is/longer/than/the/terminal\n end", indent=" ")
        assert shown.getvalue() == (
            " a  [b]\\x1b of\n /a/path/that/is/longer/than/the/terminal\\n\n end\n"
            if is_terminal
            else " a  [b]\\x1b of /a/path/that/is/longer/than/the/terminal\\n end\n"
        )
