"""``ctgpu view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import Console, ShardBar
from ctgpu.printable import counted
from ctgpu.viewing import Viewed, write_view

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu view shards/valid --num-samples 8 --output valid.html"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The page to write. (default: DIR/view.html)"),
    ] = None,
    num_samples: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Show N samples in pictures, as far as there is room (needs Pillow); 0 for none.",
        ),
    ] = 4,
    reports: Annotated[
        bool,
        typer.Option(
            "--reports",
            help="Put the reports of these samples into the page, which then holds what was "
            "written about patients; else only how long they are.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Write one page about a data set, to be looked at in a browser.

    It shows samples in three planes, and what records and JSON say of all of them: scans, labels,
    failures, sizes, times, contract and provenance. It is one file below 5 MB, which needs no
    network. It holds the keys of the samples that it shows, and where the data set comes from.
    """
    with ShardBar("looking at shards", Console(stderr=True)) as bar:
        viewed = write_view(
            folder, output, num_samples=num_samples, reports=reports, looked_at=bar.looked_at
        )
    for line in lines_about(viewed):
        Console().prose(line)


def lines_about(viewed: Viewed) -> list[str]:
    """What a page that was written holds, to be said."""
    lines = [
        f"{viewed.path}: {viewed.samples} of {counted(viewed.planned, 'planned sample')}, "
        f"{viewed.shown} of them in pictures, {decimal(viewed.size_bytes)}; open it in a browser"
    ]
    if viewed.shown < viewed.asked:
        lines.append(f"there was no room for {counted(viewed.asked, 'sample')}, as was asked for")
    if viewed.damaged:
        lines.append(
            f"damaged samples: {viewed.damaged}, as the page says; `ctgpu verify` finds all damage"
        )
    return lines
