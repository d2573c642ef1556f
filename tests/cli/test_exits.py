"""How commands end, as real processes: the exit code, and what stands on standard error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import ctgpu
from ctgpu.checking.verify import verify_folder
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

SPACING_MM = (3.5, 3.0, 5.0)
SPEC = ctgpu.Spec(target_spacing_mm=(4, 4, 6), shape_hwd=(90, 90, 50))
SMALL = ["--shape", "90,90,50", "--spacing", "4,4,6", "--device", "cpu"]
CTGPU = (sys.executable, "-m", "ctgpu.cli")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = [Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM) for n in range(2)]
    lay_out_ct_rate(root, {f"valid_{n}_a_1": volume for n, volume in enumerate(volumes, 1)})
    return root


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "out"
    ctgpu.build(folder, source=source, spec=SPEC, device="cpu")
    return folder


def finish(
    command: Sequence[object], cwd: Path | None = None, **streams: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),  # type: ignore[call-overload]
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, its streams as `script` arranges them."""
    return finish(["bash", "-c", script, "bash", *CTGPU, *arguments])


def patched(patch: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process in which `patch` has been executed first."""
    script = f"{patch}\nfrom ctgpu.cli import main\nmain()"
    return finish([sys.executable, "-c", script, *arguments])


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The only line of the command's own on standard error."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("ctgpu: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


# What is raised, wherever it is


def manifest_raising(error: str) -> str:
    return f"""
import errno
import ctgpu.cli.manifest as module
def write_manifest(folder):
    raise {error}
module.write_manifest = write_manifest
"""


@pytest.mark.parametrize(
    "error",
    [
        "ValueError('no one thought of it')",
        "AssertionError",
        "KeyError('key')",
        "RecursionError('too deep')",
        "OSError('without a number')",
        "SystemExit(0)",
        "SystemExit",
        "GeneratorExit",
        "EOFError",
        "EOFError('ctgpu: all is well\\nctgpu: done\\x1b[2J')",
    ],
)
def test_what_nobody_foresaw_exits_70_and_is_called_a_defect(error: str) -> None:
    result = patched(manifest_raising(error), "manifest", "DIR")
    assert result.returncode == 70, result.stderr
    assert "this is a defect of ctgpu, please report it: " in sentence(result)
    assert "finished samples are kept" in result.stderr
    assert "--debug shows the traceback" in result.stderr
    assert "\x1b" not in result.stderr


def test_debug_shows_the_traceback_of_a_defect_indented_and_escaped() -> None:
    error = "ValueError('first\\nctgpu: all is well\\x1b[2J')"
    result = patched(manifest_raising(error), "manifest", "DIR", "--debug")
    assert result.returncode == 70
    lines = result.stderr.splitlines()
    assert lines[0] == "  Traceback (most recent call last):"
    assert r"  ctgpu: all is well\x1b[2J" in lines
    assert lines[-1].startswith("ctgpu: this is a defect of ctgpu, please report it: ValueError: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("MemoryError", "memory ran out"),
        ('RuntimeError("can\'t start new thread")', "no more threads"),
        ("OSError(errno.EMFILE, 'x')", "too many files are open"),
        ("OSError(errno.ENOSPC, 'x', 'out')", "out: no space is left"),
        ("PermissionError(errno.EACCES, 'Permission denied', 'out')", "out cannot be used: Perm"),
        ("OSError(errno.EIO, 'Input/output error')", "the system refuses: Input/output error"),
        ("BrokenPipeError(errno.EPIPE, 'Broken pipe')", "Broken pipe"),
    ],
)
def test_what_the_machine_refuses_exits_3(error: str, words: str) -> None:
    result = patched(manifest_raising(error), "manifest", "DIR")
    assert result.returncode == 3, result.stderr
    assert words in sentence(result)


BOOM = {
    "the_display": "import ctgpu.cli.display as d\nd.Display._planned = boom",
    "the_display_in_a_thread": "import ctgpu.cli.display as d\nd.Display._advance = boom",
    "the_writer": "import ctgpu.shards.work as w\nw.NewShard.take = boom",
    "the_commit": "import ctgpu.shards.work as w\nw.NewShard.finish = boom",
    "the_manifest_at_the_end": "import ctgpu.building.builder as b\nb.write_manifest = boom",
    "the_summary": "import ctgpu.cli.build as b\nb.show_summary = boom",
    "opening_the_engine": "import ctgpu.building.builder as b\nb.LocalExecutor.open = boom",
    "closing_the_engine": "import ctgpu.building.builder as b\nb.LocalExecutor.close = boom",
}


@pytest.mark.parametrize(
    ("where", "error", "code"),
    [
        *((where, "ValueError('boom')", 70) for where in BOOM),
        *((where, "MemoryError('boom')", 3) for where in BOOM),
        ("the_display_in_a_thread", "SystemExit(0)", 70),
        ("the_commit", "SystemExit", 70),
        ("the_manifest_at_the_end", "SystemExit(0)", 70),
    ],
)
def test_an_error_anywhere_in_a_build_never_looks_like_a_build_that_is_done(
    tmp_path: Path, source: Path, where: str, error: str, code: int
) -> None:
    patch = f"def boom(*arguments, **options):\n    raise {error}\n{BOOM[where]}"
    result = patched(patch, "build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    assert result.returncode == code, result.stderr
    assert ("defect" in sentence(result)) == (code == 70)


def test_a_defect_met_by_one_sample_is_in_the_ledger_and_the_build_exits_1(
    tmp_path: Path, source: Path
) -> None:
    patch = """
import ctgpu.building.shard_maker as m
prepare = m.prepare_sample
def fail_once(*arguments, **options):
    m.prepare_sample = prepare
    raise KeyError("ctgpu: forged\\n2026-01-01 00:00:00,000 INFO shard 000000: 2 samples")
m.prepare_sample = fail_once
"""
    arguments = ("build", "--output-dir", tmp_path, "--source", source, "--num-workers", "1")
    result = patched(patch, *arguments, *SMALL)
    assert result.returncode == 1, result.stderr
    assert (tmp_path / "failures.jsonl").read_text().count("\n") == 1
    assert "unexpected error in the decode stage" in result.stderr
    # Each line is an event with a time, or indented below one.
    assert all(line.startswith(("    ", "20")) for line in result.stderr.splitlines())
    assert not any(line.startswith("2026-01-01") for line in result.stderr.splitlines())


@pytest.mark.parametrize("command", ["build", "convert"])
def test_a_source_that_cannot_be_listed_is_not_a_build_with_failed_samples(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/shard-000000.tar").write_bytes(b"no tar" * 1000)
    name = {"build": "--source", "convert": "--input-pattern"}[command]
    result = finish(
        [*CTGPU, command, name, tmp_path / "tars/shard-000000.tar", "--output-dir", tmp_path / "o"]
    )
    assert result.returncode == 3, result.stderr
    assert "shard-000000.tar is damaged" in sentence(result)


def test_what_cannot_even_be_loaded_exits_3(built: Path) -> None:
    patch = """
import errno, sys
class Full:
    def find_spec(self, name, path=None, target=None):
        if name == "ctgpu.printable":
            raise OSError(errno.EMFILE, "Too many open files", name)
sys.meta_path.insert(0, Full())
"""
    result = patched(patch, "inspect", built)
    assert result.returncode == 3
    assert "too few open files to begin" in sentence(result)


# Mistakes in the arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--nope"], "No such option: --nope"),
        (["nope\x1b[2J"], r"No such command 'nope\x1b[2J'"),
        (["build"], "Missing option '--output-dir'"),
        (["inspect"], "Missing argument"),
        (["build", "--output-dir", "o", "--limit", "x"], "Invalid value for '--limit'"),
        (["build", "--output-dir", "o", "--log-format", "xml"], "Invalid value for '--log-format'"),
        (["plan", "--calibrate", "some"], "Invalid value for '--calibrate'"),
        (["verify", "a", "b\nc"], "unexpected extra argument"),
        (["verify", "--num-samples"], "requires an argument"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_sentence_and_exits_2(
    arguments: list[str], words: str
) -> None:
    result = finish([*CTGPU, *arguments])
    assert result.returncode == 2
    assert words in sentence(result)
    assert "--help` lists what there is" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("stated", ["http://user:secret@hub:port", "http://[::1"])
@pytest.mark.parametrize("command", [["build", "--output-dir", "o"], ["plan"], ["doctor"]])
def test_an_endpoint_that_is_no_address_is_one_sentence_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, command: list[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stated)
    monkeypatch.setenv("COLUMNS", "400")
    result = finish([*CTGPU, *command, "--device", "cpu"], cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    said = result.stdout if command == ["doctor"] else sentence(result)
    assert "is not an address that starts with https://" in said
    assert said.count("HF_ENDPOINT is 'http") == 1
    assert "secret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "o").exists()


def test_no_arguments_show_the_help_and_exit_2() -> None:
    result = finish(CTGPU)
    assert result.returncode == 2
    assert "Commands" in result.stdout


@pytest.mark.parametrize("command", [[], ["build"], ["convert"], ["verify"]])
def test_the_help_lists_the_exit_codes(command: list[str]) -> None:
    result = finish([*CTGPU, *command, "--help"])
    text = " ".join(result.stdout.split())
    assert result.returncode == 0
    assert "70 a defect of ctgpu; 130 and 143 stopped by SIGINT and SIGTERM" in text


# Streams

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@FULL
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["inspect", "{built}"],
        ["inspect", "{built}", "--json"],
        ["verify", "{built}"],
        ["build", "--output-dir", "{built}", "--device", "cpu"],
        ["build", "--output-dir", "{built}", "--device", "cpu", "--log-format", "json"],
    ],
    ids=" ".join,
)
def test_a_standard_output_that_is_full_exits_3(built: Path, arguments: list[str]) -> None:
    filled = [argument.format(built=built) for argument in arguments]
    for setting in ("unset PYTHONUNBUFFERED", "export PYTHONUNBUFFERED=1"):
        result = shell(f'{setting}; exec "$@" >/dev/full', *filled)
        assert result.returncode == 3, result.stderr
        assert "standard output: no space is left" in sentence(result)
        assert "Exception ignored" not in result.stderr


@FULL
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_that_cannot_be_written_does_not_stop_a_build_and_it_exits_3(
    tmp_path: Path, source: Path, log_format: str
) -> None:
    arguments = ("build", "--output-dir", tmp_path, "--source", source, *SMALL)
    result = shell('exec "$@" 2>/dev/full', *arguments, "--log-format", log_format)
    assert result.returncode == 3
    assert ctgpu.build(tmp_path, device="cpu").written == 0
    assert shell('exec "$@"', *arguments).returncode == 0


def test_a_log_that_nobody_reads_does_not_stop_a_build_and_it_exits_3(
    tmp_path: Path, source: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        arguments = ("build", "--output-dir", tmp_path, "--source", source, *SMALL)
        result = finish([*CTGPU, *arguments], stderr=write)
    finally:
        os.close(write)
    assert result.returncode == 3
    assert "num_samples: 2" in result.stdout


@FULL
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_mistake_keeps_its_code_where_it_cannot_be_said(redirection: str) -> None:
    result = shell(f'exec "$@" {redirection}', "build", "--nope")
    assert (result.returncode, result.stdout) == (2, "")


def test_a_closed_standard_output_is_refused_before_the_work(tmp_path: Path, source: Path) -> None:
    arguments = ("build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    result = shell('exec "$@" >&-', *arguments)
    assert result.returncode == 3
    assert "standard output is closed" in sentence(result)
    assert not (tmp_path / "out").exists()
    assert shell('exec "$@" <&- >&- 2>&-', *arguments).returncode == 3


def test_no_file_of_a_data_set_gets_the_number_of_a_closed_stream(
    tmp_path: Path, source: Path
) -> None:
    patch = """
import os, sys
import ctgpu.shards.work as w
take = w.NewShard.take
def print_like_native_code(self, result):
    os.write(2, b"a library complains")
    return take(self, result)
w.NewShard.take = print_like_native_code
from ctgpu.cli import main
main()
"""
    arguments = ("build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    result = finish(
        ["bash", "-c", 'exec "$@" <&- 2>&-', "bash", sys.executable, "-c", patch, *arguments]
    )
    assert result.returncode == 0
    assert verify_folder(tmp_path / "out").findings == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "{built}"], ["verify", "{built}", "--json"]], ids=" ".join
)
def test_a_reader_that_went_away_ends_the_command_as_sigpipe_does(
    built: Path, arguments: list[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        filled = [argument.format(built=built) for argument in arguments]
        result = finish([*CTGPU, *filled], stdout=write)
    finally:
        os.close(write)
    assert result.returncode == -signal.SIGPIPE
    assert result.stderr == ""


def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path, built: Path) -> None:
    folder = tmp_path / "size-中"
    folder.symlink_to(built)
    for command in ("manifest", "verify"):
        result = shell('PYTHONIOENCODING=iso8859-1 exec "$@"', command, folder)
        assert result.returncode == 0, result.stderr
        assert r"size-\u4e2d: 2" in result.stdout


# The working folder


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["build", "--output-dir", "out", "--source", "{source}"], 3),
        (["build", "--output-dir", "{out}", "--source", "{source}", *SMALL], 0),
        (["plan", "--source", "{source}", "--device", "cpu"], 3),
        (["demo"], 3),
        (["doctor", "--device", "cpu"], 3),
        (["inspect", "{built}"], 0),
        (["build", "--nope"], 2),
    ],
)
def test_a_working_folder_that_is_gone(
    tmp_path: Path, source: Path, built: Path, arguments: list[str], code: int
) -> None:
    names = {"source": source, "built": built, "out": tmp_path / "out"}
    (tmp_path / "gone").mkdir()
    result = shell(
        f'cd {tmp_path}/gone && rmdir ../gone && exec "$@"',
        *(argument.format(**names) for argument in arguments),
    )
    assert result.returncode == code, result.stderr
    if code:
        assert sentence(result)


# Signals


def test_ctrl_c_while_modules_are_imported_ends_the_process_without_a_word() -> None:
    patch = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "ctgpu.building.builder":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    result = patched(patch, "build", "--output-dir", "o")
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_either_kind_ends_the_process_at_once(
    tmp_path: Path, source: Path, first: signal.Signals, second: signal.Signals
) -> None:
    patch = f"""
import signal
import ctgpu.building.builder as b
def make(self, *arguments):
    signal.raise_signal({first.value})
def close(self):
    signal.raise_signal({second.value})
b.LocalExecutor.make, b.LocalExecutor.close = make, close
"""
    result = patched(patch, "build", "--output-dir", tmp_path, "--source", source, *SMALL)
    assert result.returncode == -second
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["build", "plan", "demo"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_sentence_and_128_more_than_its_number(
    tmp_path: Path, source: Path, command: str, number: signal.Signals
) -> None:
    patch = f"""
import signal
import ctgpu.building.builder as b
def make(self, *arguments):
    signal.raise_signal({number.value})
b.LocalExecutor.make = make
"""
    arguments: list[object] = ["--output-dir", tmp_path / "o", "--device", "cpu"]
    arguments += ["--source", source] if command != "demo" else []
    result = patched(patch, command, *arguments)
    assert result.returncode == 128 + number, result.stderr
    assert "ctgpu: stopped" in sentence(result)


def test_what_plan_wrote_is_removed_though_a_signal_comes_while_it_is_being_removed(
    tmp_path: Path, source: Path
) -> None:
    patch = """
import shutil, signal
rmtree = shutil.rmtree
def interrupted(*arguments, **options):
    shutil.rmtree = rmtree
    signal.raise_signal(signal.SIGTERM)
shutil.rmtree = interrupted
"""
    arguments = ("--output-dir", tmp_path, "--source", source, "--device", "cpu")
    result = patched(patch, "plan", *arguments, "--calibrate", "1")
    assert result.returncode == 143, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_to_go_on_with_can_be_pasted_whatever_the_folder_is_called(
    tmp_path: Path, source: Path
) -> None:
    patch = """
import signal
import ctgpu.building.builder as b
make = b.LocalExecutor.make
def stop(self, *arguments):
    signal.raise_signal(signal.SIGTERM)
b.LocalExecutor.make = stop
"""
    folder = tmp_path / "o\x1b[2J\nctgpu: 'done' \\x \x85"
    result = patched(patch, "build", "--output-dir", folder, "--source", source, *SMALL)
    assert result.returncode == 143, result.stderr
    _, _, command = sentence(result).partition("Go on with: ctgpu ")
    assert command.isprintable()
    again = finish(["bash", "-c", f"{' '.join(CTGPU)} {command} --device cpu"])
    assert again.returncode == 0, again.stderr
    assert (folder / "manifest.json").exists()
