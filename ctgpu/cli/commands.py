"""All subcommands in one application."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from ctgpu.cli import (
    build,
    convert,
    demo,
    describe,
    doctor,
    export,
    inspect,
    manifest,
    plan,
    presets,
    relabel,
    verify,
    view,
)
from ctgpu.cli.help import Command, CommandGroup, example
from ctgpu.cli.options import RayCommand, names_flags
from ctgpu.cli.terminal import Console, LogFormat, configure_logging, say
from ctgpu.errors import UsageError
from ctgpu.installation import __version__

_EXIT_CODES = (
    "Exit codes: 0 all is well; 1 complete but for failed samples, or a check found something; "
    "2 the request cannot be honoured; 3 the environment fails; 70 a defect of ctgpu; "
    "130 and 143 stopped by SIGINT and SIGTERM."
)

app = typer.Typer(
    name="ctgpu",
    cls=CommandGroup,
    help="3-D CT volumes from archives into training-ready WebDataset shards.",
    epilog=f"{example('ctgpu demo')}\n\n{_EXIT_CODES}",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (
    *(build, plan, verify, inspect, view, export, convert, relabel, manifest),
    *(describe, presets, doctor, demo),
):
    app.command(
        _module.__name__.rpartition(".")[2],
        cls=RayCommand if _module in (build, plan) else Command,
        epilog=f"{example(_module.EXAMPLE)}\n\n{_EXIT_CODES}",
    )(names_flags(_module.command))


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"ctgpu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before the subcommand."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def invoke() -> int:
    """Do what the command line asks for.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    UsageError
        If it cannot be understood.
    """
    # What only reads has nothing to tell but warnings.
    configure_logging(LogFormat.text, logging.WARNING, Console(stderr=True))
    try:
        return app(prog_name="ctgpu", standalone_mode=False) or 0
    except _Mistake as error:
        raise UsageError(_sentence(error)) from error
    except SystemExit as ended:
        # So typer ends what it does for shells, before any command.
        if _COMPLETING in os.environ or sys.argv[1:2] in _COMPLETION:
            return ended.code if isinstance(ended.code, int) else 0
        raise


#: The variable by which a shell asks how a line may go on.
_COMPLETING = "_CTGPU_COMPLETE"
_COMPLETION = (["--install-completion"], ["--show-completion"])

# What click, which typer brings or holds, calls UsageError: any mistake in the arguments.
_Mistake: type[Exception] = typer.BadParameter.__bases__[0]


def _sentence(mistake: Any) -> str:
    command = mistake.ctx.command_path if mistake.ctx is not None else "ctgpu"
    message = mistake.format_message().rstrip(".")
    return f"{message}; `{command} --help` lists what there is"
