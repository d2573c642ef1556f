"""The command line: one file a subcommand, each a thin skin over a Python function."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ctgpu import __version__
from ctgpu.cli import build, convert, demo, doctor, inspect, manifest, plan, verify
from ctgpu.cli.options import RayCommand
from ctgpu.errors import CtgpuError

app = typer.Typer(
    name="ctgpu",
    help="3-D CT volumes from archives into training-ready WebDataset shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("build", cls=RayCommand)(build.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)
app.command("inspect")(inspect.command)
app.command("convert")(convert.command)
app.command("manifest")(manifest.command)
app.command("plan")(plan.command)
app.command("verify")(verify.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ctgpu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before the subcommand."""


def main() -> None:
    """Run the command line; an error of ours is one sentence and an exit code."""
    try:
        app()
    except CtgpuError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        typer.echo(f"ctgpu: {error}", err=True)
        sys.exit(error.exit_code)
