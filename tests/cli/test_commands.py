"""All subcommands in one application: help, version, and mistakes in the arguments."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("command", [[], ["build"], ["convert"], ["verify"]])
def test_the_help_lists_the_exit_codes(command: list[str]) -> None:
    result = run_here(*command, "--help")
    text = " ".join(result.stdout.split())
    assert result.returncode == 0
    assert "70 a defect of ctgpu; 130 and 143 stopped by SIGINT and SIGTERM" in text


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("ctgpu ")
    assert "build" in run_here("--help").stdout


def test_each_module_of_a_command_is_a_command() -> None:
    helpers = {"commands", "display", "exits", "options", "stopping", "terminal"}
    modules = {module.name for module in pkgutil.iter_modules(ctgpu.cli.__path__)}
    names = {command.name for command in app.registered_commands}
    assert names == {name for name in modules - helpers if not name.startswith("_")}
    shown = run_here("--help").stdout
    assert all(f" {name} " in shown for name in names)
