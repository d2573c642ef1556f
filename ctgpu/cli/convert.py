"""``ctgpu convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctgpu.arguments import path_of
from ctgpu.building.convert import ConvertRequest, convert
from ctgpu.cli import build
from ctgpu.cli.display import Display
from ctgpu.cli.help import HEADINGS
from ctgpu.cli.options import Debug, Log, log_level, takes
from ctgpu.cli.terminal import Console, LogFormat, configure_logging

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu convert --input-pattern old --output-dir new --compress rice"


@takes(
    ConvertRequest,
    split="train or valid, recorded. (default: as the input says)",
    num_workers="Threads that read; as many inflate, up to the cores.",
    shards="Do only shards A-B of the plan, both included.",
    intensity="auto, hu, or rescale: raw volumes need the JSON's slope and intercept.",
    force="Convert again what is finished already.",
)
def command(
    input_pattern: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=HEADINGS["where"],
            help="Tars to convert: a folder, or '…/shard-{000000..000314}.tar', quoted.",
        ),
    ],
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            rich_help_panel=HEADINGS["where"],
            help="Another folder, for shards and manifest.",
        ),
    ],
    *,
    options: ConvertRequest,
    log_format: Log = LogFormat.text,
    debug: Debug = False,
) -> None:
    """Make shards from the tars of a WebDataset, raw or preprocessed by older scripts.

    Of finished shards it makes such of another compression. Run it again to go on where it stopped.
    """
    console = Console(stderr=True)
    configure_logging(log_format, log_level(debug), console)
    first = ["convert", "--input-pattern", input_pattern, "--output-dir", str(output_dir)]
    again = first + ["--force"] * options.force + ["--retry-failed"] * options.retry_failed
    again += ["--delete-after"] * options.delete_after
    with build.resumable(output_dir, again), Display(console) as display:
        folder = path_of("output_dir", output_dir)
        report = convert(folder, path_of("input_pattern", input_pattern), options, display)
        display.finish(report)
    build.finish(report, log_format, first, display.shown)
