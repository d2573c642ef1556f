"""``ctgpu relabel``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ctgpu.building.relabelling import RelabelReport, relabel
from ctgpu.cli.build import resumable
from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import Console, LogFormat, ShardBar, configure_logging
from ctgpu.printable import counted

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu relabel shards --source volumes"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the tables are; volumes are not needed. (default: the data set's source)",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write labels, reports and metadata of finished samples again from the tables.

    Volumes are copied, not made again, and only shards in which something differs are rewritten.
    Exits with 1 where a sample cannot be as the tables say.
    """
    console = Console(stderr=True)
    configure_logging(LogFormat.text, logging.DEBUG if debug else logging.INFO, console)
    again = ["relabel", str(folder), *(["--source", str(source)] if source is not None else [])]
    with resumable(folder, again), ShardBar("looking at shards", console) as bar:
        report = relabel(folder, source=source, looked_at=bar.looked_at)
    console = Console()
    for key, reason in report.left.items():
        console.prose(f"{key}: {reason}")
    console.prose(_summary(report))
    raise typer.Exit(report.exit_code)


def _summary(report: RelabelReport) -> str:
    card = report.manifest
    left = ""
    if report.left:
        verb = "is" if len(report.left) == 1 else "are"
        left = f"; {len(report.left)} {verb} not as the tables say"
    samples = counted(card["total_samples"], "sample")
    shards = counted(card["total_shards"], "shard")
    return (
        f"{report.folder}: {len(report.relabelled)} of {samples} relabelled, "
        f"{report.shards} of {shards} rewritten; "
        f"{counted(card['unlabelled_samples'], 'sample')} without labels{left}"
    )
