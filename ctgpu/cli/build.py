"""``ctgpu build``."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ctgpu.arguments import path_of
from ctgpu.building.builder import make_shards
from ctgpu.building.executor import Executor, LocalExecutor
from ctgpu.building.report import BuildReport
from ctgpu.building.request import Part, Request
from ctgpu.cli.display import Display, show_summary
from ctgpu.cli.help import HEADINGS
from ctgpu.cli.options import Debug, Log, log_level, takes
from ctgpu.cli.stopping import Stopped, stoppable
from ctgpu.cli.terminal import Console, LogFormat, configure_logging
from ctgpu.cli.wrapping import shell_line
from ctgpu.distribute.slurm import part_from_environment

log = logging.getLogger(__name__)


#: One call of it, as its help shows it.
EXAMPLE = "ctgpu build --source volumes --output-dir shards --limit 8"


@takes(Request)
def command(
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            rich_help_panel=HEADINGS["where"],
            help="Folder for shards and manifest.",
        ),
    ],
    *,
    options: Request,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            rich_help_panel=HEADINGS["machine"],
            help="Make the shards on a Ray cluster, HOST:PORT; without ADDRESS the one this "
            "machine belongs to, or a new one on it.",
        ),
    ] = None,
    log_format: Log = LogFormat.text,
    debug: Debug = False,
) -> None:
    """Make WebDataset shards of training-ready volumes.

    Run it again to go on where it stopped: the options of the earlier run need not be repeated.
    """
    console = Console(stderr=True)
    configure_logging(log_format, log_level(debug), console)
    first = ["build", "--output-dir", str(output_dir)]
    again = first + ["--force"] * options.force + ["--retry-failed"] * options.retry_failed
    again += ["--ray", ray] if ray is not None else []
    with resumable(output_dir, again), Display(console) as display:
        executor: Executor = LocalExecutor()
        if ray is not None:
            executor = _ray_executor(ray)
        else:
            options = replace(options, part=_part_of_job_array())
        report = make_shards(path_of("output_dir", output_dir), options, executor, display)
        display.finish(report)
    finish(report, log_format, first, display.shown)


def _part_of_job_array() -> Part:
    part = part_from_environment(os.environ, on_terminal=os.isatty(0))
    if part is None:
        return Part()
    log.info("SLURM: this is part %d of %d", part.index + 1, part.count)
    return part


def _ray_executor(address: str) -> Executor:
    from ctgpu.distribute.ray import RayExecutor

    return RayExecutor(address)


@contextlib.contextmanager
def resumable(folder: Path, again: Sequence[str]) -> Iterator[None]:
    """Turn a signal into an exit that says with which arguments `folder` goes on."""
    try:
        # What comes after it is the summary; nothing is lost where that is cut short.
        with stoppable():
            yield
    except Stopped as stopped:
        stopped.sentence = f"stopped; {folder} keeps every finished sample. Go on with:"
        stopped.command = shell_line(again)
        raise


def finish(
    report: BuildReport, log_format: LogFormat, again: Sequence[str], shown: Collection[str]
) -> None:
    """Show the summary on standard output and exit with the build's code.

    `again` are the arguments that go on with it, `shown` what was said of it before.
    """
    if log_format is LogFormat.json:
        typer.echo(report.to_json())
    else:
        show_summary(report, Console(), again, shown)
    raise typer.Exit(report.exit_code)
