"""``ctgpu inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ctgpu.checking.facts import SampleFacts, inspect_samples
from ctgpu.checking.sheet import View, draw_originals, draw_sheet, label_words, require_drawable
from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import Console, say_json
from ctgpu.errors import UsageError
from ctgpu.printable import counted, printable_lines, to_json
from ctgpu.volume.orientation import Orientation

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu inspect shards --num-samples 2 --preview sheet.png"


def command(
    where: Annotated[
        str,
        typer.Argument(
            metavar="PATH|PATTERN|DIR", help="A data set, tars (braces and globs), or a volume."
        ),
    ],
    num_samples: Annotated[int, typer.Option(metavar="N", help="Look at the first N samples.")] = 4,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Draw them here, such as sheet.png (needs matplotlib)."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The originals, to be drawn below each sample."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a sample.")] = False,
    debug: Debug = False,
) -> None:
    """Show what is in a data set, in tars, or in a volume file."""
    if source is not None and preview is None:
        raise UsageError("--source is what --preview draws below each sample; give both")
    if preview is not None:
        require_drawable(preview)
    console = Console()
    views: list[View] = []
    drawn = (view.title for view in views)
    originals = draw_originals(where, source, drawn) if source is not None else None
    for facts, view in inspect_samples(where, num_samples=num_samples):
        if as_json:
            say_json(facts.to_dict())
        else:
            console.print(_table(facts))
        if preview is not None:
            views.append(view)
    if preview is None:
        return
    if originals is not None:
        views = [view for pair in zip(views, originals, strict=True) for view in pair]
    draw_sheet(views, preview)


def _table(facts: SampleFacts) -> Table:
    table = Table(title=f"{facts.key} in {facts.file}", title_justify="left", show_header=False)
    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in facts.members.items())
    normalised = "HU" if facts.dtype == "int16" else "normalised"
    units = normalised if facts.preprocessed else "as stored"
    rows = [
        ("members", sizes),
        ("volume", f"{facts.shape} {facts.layout} {facts.dtype}"),
        ("values", f"{facts.lowest:g} to {facts.highest:g}, mean {facts.mean:.4g} ({units})"),
        ("spacing", " ".join(f"{s:g}" for s in facts.spacing_mm) + " mm")
        if facts.spacing_mm
        else ("spacing", "not stated"),
        ("orientation", _orientation(facts.orientation)),
        *(("contradiction", sentence) for sentence in facts.contradictions),
        ("labels", _labels(facts.labels)),
        *(() if facts.mask is None else (("mask", _mask(facts.mask)),)),
        ("report", facts.report or "none"),
    ]
    if facts.source:
        rows.append(("source", to_json(facts.source)))
    if facts.engine:
        rows.append(("engine", to_json(facts.engine)))
    table.add_column(no_wrap=True)
    # What is longer than its box goes on in the next line, and is not cut.
    table.add_column(overflow="fold")
    for name, text in rows:
        # In its box, a report may keep its lines.
        table.add_row(name, Text(printable_lines(text)))
    return table


def _orientation(orientation: Orientation | None) -> str:
    if orientation is None:
        return "not stated"
    tilt, shear = orientation.tilt_degrees, orientation.shear_degrees
    return f"{orientation.codes}, tilted by {tilt:g}°, sheared by {shear:g}°"


def _labels(labels: dict[str, float] | None) -> str:
    return "none" if labels is None else ", ".join(label_words(labels))


def _mask(voxels: dict[str, int]) -> str:
    found = [f"{name} {count:,}" for name, count in voxels.items() if count]
    return f"{', '.join(found)} voxels" if found else f"empty, of {counted(len(voxels), 'label')}"
