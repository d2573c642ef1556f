"""``ctgpu demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ctgpu.cli.display import Display, show_summary
from ctgpu.cli.options import Debug, Device, log_level
from ctgpu.cli.stopping import stoppable
from ctgpu.cli.terminal import Console, LogFormat, configure_logging
from ctgpu.errors import UsageError
from ctgpu.testing.demo import BuiltSample, read_back, run_demo
from ctgpu.viewing import write_view

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu demo --output-dir demo"


def command(
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="Empty or new folder for source and shards; takes 0.5 GB."
        ),
    ] = Path("demo"),
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Make a small CT-RATE-like source of phantoms, build it, and show what came out."""
    errors, console = Console(stderr=True), Console()
    configure_logging(LogFormat.text, log_level(debug), errors)
    with stoppable(), Display(errors) as display:
        report = run_demo(output_dir, device=device, watch=display)
        display.finish(report)
    console.print(_samples_table(read_back(report.folder)))
    console.prose(f"{output_dir}/source is what went in, {output_dir}/shards what came out.")
    show_summary(report, console, shown=display.shown)
    console.prose(page_of(report.folder))
    raise typer.Exit(report.exit_code)


def page_of(folder: Path) -> str:
    """Where a page about the data set was written, or why none was."""
    try:
        return f"Look at them in a browser: {write_view(folder).path}"
    except UsageError as error:
        return f"There is no page to look at them: {error}"


def _samples_table(samples: list[BuiltSample]) -> Table:
    table = Table(title="What came out", title_justify="left")
    for name in ("sample", "voxels", "mm", "resized to", "min", "mean", "max"):
        table.add_column(name, justify="left" if name == "sample" else "right", no_wrap=True)
    for sample in samples:
        facts = sample.metadata
        table.add_row(
            sample.key,
            "×".join(map(str, facts["source"]["shape"])),
            " ".join(f"{s:g}" for s in facts["source"]["spacing_mm"]),
            "×".join(map(str, facts["resized_shape"])),
            *(f"{value:.2f}" for value in (sample.lowest, sample.mean, sample.highest)),
        )
    return table
