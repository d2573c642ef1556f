"""All subcommands in one application: help, version, and mistakes in the arguments."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import ctgpu.cli
from ctgpu.cli.commands import app
from support.command_line import run, run_here, sentence


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
    result = run_here(*arguments)
    assert result.returncode == 2
    assert words in sentence(result)
    assert "--help` lists what there is" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("stated", ["http://user:secret@hub:port", "http://[::1"])
@pytest.mark.parametrize("command", [["build", "--output-dir", "o"], ["plan"], ["doctor"]])
def test_an_endpoint_that_is_no_address_is_one_sentence_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, command: list[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stated)
    monkeypatch.setenv("COLUMNS", "400")
    result = run(*command, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    said = result.stdout if command == ["doctor"] else sentence(result)
    assert "is not an address that starts with https://" in said
    assert said.count("HF_ENDPOINT is 'http") == 1
    assert "secret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "o").exists()


def test_no_arguments_show_the_help_and_exit_2() -> None:
    result = run()
    assert result.returncode == 2
    assert "Commands" in result.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in get_command(app).commands)])
def test_each_help_lists_the_exit_codes(command: list[str]) -> None:
    result = run_here(*command, "--help")
    text = " ".join(result.stdout.split())
    assert result.returncode == 0
    assert "70 a defect of ctgpu; 130 and 143 stopped by SIGINT and SIGTERM" in text


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("ctgpu ")
    assert "build" in run_here("--help").stdout


def test_each_module_of_a_command_is_a_command() -> None:
    helpers = {"commands", "display", "exits", "help", "options", "stopping", "terminal"}
    helpers |= {"wrapping"}
    modules = {module.name for module in pkgutil.iter_modules(ctgpu.cli.__path__)}
    names = {command.name for command in app.registered_commands}
    assert names == {name for name in modules - helpers if not name.startswith("_")}
    shown = run_here("--help").stdout
    assert all(f" {name} " in shown for name in names)


# What a shell asks, as the script says that `--show-completion` shows


def completed(shell: str, line: str) -> list[str]:
    """What could stand at the end of a line."""
    asked = {
        "_CTGPU_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = run_here(**asked)
    assert (result.returncode, result.stderr) == (0, "")
    return re.findall(r"(?<![\w-])(?:--)?[a-z]+(?:-[a-z]+)*(?=\t|\n|\":)", result.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_a_line_may_go_on(shell: str) -> None:
    assert completed(shell, "ctgpu ver") == ["verify"]
    assert completed(shell, "ctgpu build --out") == ["--output-dir", "--output-range"]
    assert set(completed(shell, "ctgpu ")) >= {"build", "plan", "doctor"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_the_shell_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    result = run_here("--install-completion", HOME=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{shell} completion installed in {tmp_path}" in result.stdout
    shown = run_here("--show-completion", HOME=str(tmp_path))
    assert (shown.returncode, shown.stderr) == (0, "")
    # What was shown is what was installed.
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(shown.stdout.strip() in text for text in files)


@pytest.mark.slow
def test_bash_completes_a_line_by_what_is_shown(tmp_path: Path) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash here")
    command = tmp_path / "ctgpu"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ctgpu.cli "$@"\n')
    command.chmod(0o755)
    asked = f"""
    export PATH="{tmp_path}:$PATH"
    eval "$(_CTGPU_COMPLETE=source_bash ctgpu)"
    complete -p ctgpu
    COMP_WORDS=(ctgpu pres) COMP_CWORD=1
    _ctgpu_completion ctgpu
    echo "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run([bash, "-c", asked], capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "complete -o default -F _ctgpu_completion ctgpu",
        "presets",
    ]


def test_a_command_that_ends_as_completion_does_is_a_defect_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(folder: Path) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("ctgpu.cli.manifest.write_manifest", end)
    assert run_here("manifest", "--install-completion").returncode == 2
    assert run_here("manifest", "DIR").returncode == 70
