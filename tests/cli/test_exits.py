"""How commands end: the exit code, and what stands on standard error."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ctgpu
from ctgpu.checking.verify import verify_folder
from ctgpu.cli import exits
from ctgpu.cli.stopping import Stopped
from support.command_line import CTGPU, SMALL, finish, patched, run_here, sentence, shell

# What is raised, wherever it is


def manifest_raises(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    """Have ``ctgpu manifest`` end so."""

    def write_manifest(folder: Path) -> None:
        raise error

    monkeypatch.setattr("ctgpu.cli.manifest.write_manifest", write_manifest)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no one thought of it"),
        AssertionError,
        KeyError("key"),
        RecursionError("too deep"),
        OSError("without a number"),
        SystemExit(0),
        SystemExit,
        GeneratorExit,
        EOFError,
        EOFError("ctgpu: all is well\nctgpu: done\x1b[2J"),
    ],
)
def test_what_nobody_foresaw_exits_70_and_is_called_a_defect(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    manifest_raises(monkeypatch, error)
    result = run_here("manifest", "DIR")
    assert result.returncode == 70, result.stderr
    assert "this is a defect of ctgpu, please report it: " in sentence(result)
    assert "finished samples are kept" in result.stderr
    assert "--debug shows the traceback" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.slow
def test_debug_shows_the_traceback_of_a_defect_indented_and_escaped() -> None:
    patch = """
import ctgpu.cli.manifest as module
def write_manifest(folder):
    raise ValueError("first\\nctgpu: all is well\\x1b[2J")
module.write_manifest = write_manifest
"""
    result = patched(patch, "manifest", "DIR", "--debug")
    assert result.returncode == 70
    lines = result.stderr.splitlines()
    assert lines[0] == "  Traceback (most recent call last):"
    assert r"  ctgpu: all is well\x1b[2J" in lines
    assert lines[-1].startswith("ctgpu: this is a defect of ctgpu, please report it: ValueError: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError, "memory ran out"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (OSError(errno.EMFILE, "x"), "too many files are open"),
        (OSError(errno.ENOSPC, "x", "out"), "out: no space is left"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out cannot be used: Perm"),
        (OSError(errno.EIO, "Input/output error"), "the system refuses: Input/output error"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    ],
)
def test_what_the_machine_refuses_exits_3(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException], words: str
) -> None:
    manifest_raises(monkeypatch, error)
    result = run_here("manifest", "DIR")
    assert result.returncode == 3, result.stderr
    assert words in sentence(result)


BOOM = {
    "the_display": "ctgpu.cli.display.Display._planned",
    "the_display_in_a_thread": "ctgpu.cli.display.Display._advance",
    "the_writer": "ctgpu.shards.work.NewShard.take",
    "the_commit": "ctgpu.shards.work.NewShard.finish",
    "the_manifest_at_the_end": "ctgpu.building.builder.write_manifest",
    "the_summary": "ctgpu.cli.build.show_summary",
    "opening_the_engine": "ctgpu.building.builder.LocalExecutor.open",
    "closing_the_engine": "ctgpu.building.builder.LocalExecutor.close",
}


@pytest.mark.parametrize(
    ("where", "error", "code"),
    [
        *((where, ValueError("boom"), 70) for where in BOOM),
        *((where, MemoryError("boom"), 3) for where in BOOM),
        ("the_display_in_a_thread", SystemExit(0), 70),
        ("the_commit", SystemExit, 70),
        ("the_manifest_at_the_end", SystemExit(0), 70),
    ],
)
def test_an_error_anywhere_in_a_build_never_looks_like_a_build_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: Path,
    where: str,
    error: BaseException | type[BaseException],
    code: int,
) -> None:
    def boom(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(BOOM[where], boom)
    result = run_here("build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    assert result.returncode == code, result.stderr
    assert ("defect" in sentence(result)) == (code == 70)


@pytest.mark.slow
def test_a_thread_that_exits_with_0_ends_no_real_process_so(tmp_path: Path, source: Path) -> None:
    patch = """
import ctgpu.shards.work as w
def finish(self):
    raise SystemExit(0)
w.NewShard.finish = finish
"""
    result = patched(patch, "build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    assert result.returncode == 70, result.stderr
    assert "defect" in sentence(result)


@pytest.mark.slow
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
    result = run_here(
        *(command, name, tmp_path / "tars/shard-000000.tar", "--output-dir", tmp_path / "o")
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


# Streams

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "num_samples: 3" in result.stdout


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path, built: Path) -> None:
    folder = tmp_path / "size-中"
    folder.symlink_to(built)
    for command in ("manifest", "verify"):
        result = shell('PYTHONIOENCODING=iso8859-1 exec "$@"', command, folder)
        assert result.returncode == 0, result.stderr
        assert r"size-\u4e2d: 3" in result.stdout


# The working folder


@pytest.mark.slow
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_command_to_copy_is_in_a_line_of_its_own_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = Stopped(signal.SIGTERM)
    stopped.sentence = "stopped; shards keeps every finished sample. Go on with:"
    stopped.command = "ctgpu build --output-dir 'a  folder' --retry-failed"
    monkeypatch.setenv("COLUMNS", "40")
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            patch.setattr(exits, "_open_standard_streams", lambda: None)
            patch.setattr("ctgpu.cli.commands.invoke", raising(stopped))
            assert exits._run() == 143
        shown[stream.isatty()] = stream.getvalue()
    assert shown[False] == f"ctgpu: {stopped.sentence} {stopped.command}\n"
    assert shown[True] == (
        f"ctgpu: stopped; shards keeps every\nfinished sample. Go on with:\n  {stopped.command}\n"
    )


def raising(error: BaseException) -> Callable[[], int]:
    def invoke() -> int:
        raise error

    return invoke
