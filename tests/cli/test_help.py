"""What ``--help`` shows, of every command."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ctgpu.arguments import options_of
from ctgpu.building.request import Request
from ctgpu.cli.commands import app
from ctgpu.cli.help import HEADINGS, Command, example
from ctgpu.spec import Spec
from support.command_line import run_here

ROOT: Any = typer.main.get_command(app)
NAMES = list(ROOT.commands)
every_command = pytest.mark.parametrize("words", [[], *([name] for name in NAMES)], ids=str)


def help_of(*words: str, columns: int = 80) -> str:
    result = run_here(*words, "--help", COLUMNS=str(columns))
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def sections(text: str) -> dict[str, str]:
    """The groups of a help, by their headings."""
    parts = re.split(r"^(\S.*):\n(?=  )", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@every_command
def test_a_help_fits_into_80_columns_and_breaks_no_word(words: list[str]) -> None:
    shown = help_of(*words)
    assert max(map(len, shown.splitlines())) <= 80
    # What is shown is the same words at any width, so that none was broken, cut or left out.
    assert shown.split() == help_of(*words, columns=60).split()
    assert "\x1b" not in shown


@every_command
def test_a_help_names_every_option_with_what_it_takes_and_says(words: list[str]) -> None:
    command = ROOT.commands[words[0]] if words else ROOT
    shown = " ".join(help_of(*words).split())
    with command.make_context("ctgpu", [], resilient_parsing=True) as context:
        parameters = command.get_params(context)
    assert len(parameters) >= 2
    for one in parameters:
        assert one.help, one.name
        assert " ".join(one.help.split()) in shown, one.name
        assert one.param_type_name == "argument" or one.is_flag or one.metavar, one.name
        assert all(flag in shown for flag in (*one.opts, *one.secondary_opts) if flag[0] == "-")
    assert "None" not in shown


@every_command
def test_a_help_has_an_example_that_is_understood(words: list[str]) -> None:
    (line,) = sections(help_of(*words))["Example"].partition("\n\n")[0].splitlines()
    program, name, *rest = shlex.split(line)
    assert program == "ctgpu"
    assert [name] == words or not words
    with ROOT.commands[name].make_context(name, rest) as context:
        given = {key for key, value in context.params.items() if value not in (None, False)}
    assert {word[2:].replace("-", "_") for word in rest if word.startswith("--")} <= given


@pytest.mark.parametrize("name", ["build", "plan"])
def test_the_options_of_a_build_are_grouped(name: str) -> None:
    found = sections(help_of(name))
    assert [heading for heading in found if heading in HEADINGS.values()] == [*HEADINGS.values()]
    groups = {
        **{one.name: (o, o.group) for one, o in options_of(Request)},
        **{one.name: (o, "contract") for one, o in options_of(Spec)},
    }
    assert len(groups) > 40
    for field, (offered, group) in groups.items():
        flag = (offered.flag or f"--{field.replace('_', '-')}").partition("/")[0]
        where = [h for h, text in found.items() if re.search(rf"^  {flag}[ /\n]", text, re.M)]
        assert where == [HEADINGS[group]], flag
    assert "--output-dir" in found[HEADINGS["where"]]
    assert "--ray" in found[HEADINGS["machine"]]


def test_plan_takes_every_option_of_build_and_says_that_it_builds_a_trial() -> None:
    flags = {
        name: {flag for p in ROOT.commands[name].params for flag in (*p.opts, *p.secondary_opts)}
        for name in ("build", "plan")
    }
    assert flags["build"] < flags["plan"]
    text = " ".join(help_of("plan").split())
    assert "It takes every option of `ctgpu build`" in text
    assert "It builds a trial" in text


def test_what_an_option_is_by_default_is_said_once() -> None:
    shown = " ".join(help_of("build").split())
    assert "or reference. (default: auto)" in shown
    assert "Samples in a shard. (default: 128) --" in shown
    assert "shards and manifest. (required)" in shown
    assert shown.startswith("Usage: ctgpu build --output-dir PATH [OPTIONS] Make")
    assert help_of("verify").startswith("Usage: ctgpu verify [OPTIONS] [DIR]\n")


def test_a_hidden_option_is_not_shown_and_a_command_stays_in_one_line() -> None:
    tried = typer.Typer()

    @tried.command(cls=Command, epilog=example("tried " + "x" * 90))
    def command(secret: str = typer.Option("", hidden=True)) -> None:
        """Take `a command of many words` as one word.

        And this, too.
        """

    shown = CliRunner().invoke(tried, ["--help"], env={"COLUMNS": "52"}).output
    assert "secret" not in shown
    assert "\n  tried " + "x" * 90 in shown
    assert "\nTake `a command of many words` as one word.\n\nAnd this, too.\n" in shown
