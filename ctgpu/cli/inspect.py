"""``ctgpu inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ctgpu.cli.options import Debug
from ctgpu.errors import UsageError
from ctgpu.inspect import SampleFacts, draw_originals, draw_sheet, inspect_samples


def command(
    where: Annotated[
        str,
        typer.Argument(
            metavar="PATH|PATTERN|DIR", help="A data set, tars (braces and globs), or a volume."
        ),
    ],
    num_samples: Annotated[int, typer.Option(help="Look at the first N samples.", min=1)] = 4,
    preview: Annotated[
        Path | None, typer.Option(help="Draw them here, such as sheet.png (needs matplotlib).")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="The originals, to be drawn below each sample.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a sample.")] = False,
    debug: Debug = False,
) -> None:
    """Show what is in a data set, in tars, or in a volume file."""
    if source is not None and preview is None:
        raise UsageError("--source is what --preview draws below each sample; give both")
    console = Console()
    views = []
    for facts, view in inspect_samples(where, num_samples=num_samples):
        if as_json:
            typer.echo(json.dumps(facts.to_dict()))
        else:
            console.print(_table(facts))
        if preview is not None:
            views.append(view)
    if preview is None:
        return
    if source is not None:
        originals = draw_originals(where, source, [view.title for view in views])
        views = [view for pair in zip(views, originals, strict=True) for view in pair]
    draw_sheet(views, preview)


def _table(facts: SampleFacts) -> Table:
    table = Table(title=f"{facts.key} in {facts.file}", title_justify="left", show_header=False)
    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in facts.members.items())
    units = "normalised" if facts.preprocessed else "as stored"
    rows = [
        ("members", sizes),
        ("volume", f"{facts.shape} {facts.layout} {facts.dtype}"),
        ("values", f"{facts.lowest:g} to {facts.highest:g}, mean {facts.mean:.4g} ({units})"),
        ("spacing", " ".join(f"{s:g}" for s in facts.spacing_mm) + " mm")
        if facts.spacing_mm
        else ("spacing", "not stated"),
        ("labels", _labels(facts.labels)),
        ("report", facts.report or "none"),
    ]
    if facts.source:
        rows.append(("source", json.dumps(facts.source)))
    if facts.engine:
        rows.append(("engine", facts.engine))
    for name, text in rows:
        table.add_row(name, text.replace("[", r"\["))
    return table


def _labels(labels: dict[str, float] | None) -> str:
    if labels is None:
        return "none"
    unknown = sum(value != value for value in labels.values())
    if unknown:
        return f"{unknown} of {len(labels)} not known"
    return ", ".join(name for name, value in labels.items() if value > 0) or "none is positive"
