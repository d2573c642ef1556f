"""``ctgpu convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctgpu.cli import build
from ctgpu.cli.display import Display
from ctgpu.cli.options import (
    Axes,
    Debug,
    Device,
    HuGuard,
    MaxTiltDegrees,
    log_level,
    parse_range,
    parse_size,
    spec_of,
)
from ctgpu.cli.terminal import Console, LogFormat, configure_logging
from ctgpu.convert import convert_tars
from ctgpu.spec import PRESETS


def command(
    input_pattern: Annotated[
        str,
        typer.Option(help="Tars to convert: a folder, or '…/shard-{000000..000314}.tar', quoted."),
    ],
    output_dir: Annotated[Path, typer.Option(help="Another folder, for shards and manifest.")],
    split: Annotated[
        str | None, typer.Option(help="train or valid, recorded. (default: as the input says)")
    ] = None,
    device: Device = "auto",
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that read; as many inflate, up to the cores.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Bytes for volumes in flight, such as 16G.")
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Samples in a shard. (default: 128)")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Do only shards A-B of the plan, both included.")
    ] = None,
    axes: Axes = None,
    max_tilt_degrees: MaxTiltDegrees = None,
    hu_guard: HuGuard = None,
    preset: Annotated[
        str | None, typer.Option(help=f"What to make of raw volumes: {', '.join(PRESETS)}.")
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(help="auto, hu, or rescale: raw volumes need the JSON's slope and intercept."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Convert again what is finished already.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Re-do only the samples that failed.")
    ] = False,
    delete_after: Annotated[
        bool,
        typer.Option(
            "--delete-after",
            help="Delete a tar once all that it says is in committed and verified shards; what is "
            "kept is named.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Convert and delete nothing: say what --delete-after would delete."
        ),
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines as text or json.")] = (
        LogFormat.text
    ),
    debug: Debug = False,
) -> None:
    """Make shards from the tars of a WebDataset, raw or preprocessed by older scripts.

    Run it again to go on where it stopped.
    """
    console = Console(stderr=True)
    configure_logging(log_format, log_level(debug), console)
    again = ["convert", "--input-pattern", input_pattern, "--output-dir", str(output_dir)]
    again += ["--force"] * force + ["--retry-failed"] * retry_failed
    again += ["--delete-after"] * delete_after
    with build.resumable(output_dir, again), Display(console) as display:
        report = convert_tars(
            input_pattern,
            output_dir,
            split=split,
            spec=spec_of(preset, intensity=intensity),
            device=device,
            num_workers=num_workers,
            memory_limit_bytes=parse_size(memory_limit) if memory_limit is not None else None,
            samples_per_shard=samples_per_shard,
            shards=parse_range(shards) if shards is not None else None,
            axes=axes,
            max_tilt_degrees=max_tilt_degrees,
            hu_guard=hu_guard,
            force=force,
            retry_failed=retry_failed,
            delete_after=delete_after,
            dry_run=dry_run,
            watch=display,
        )
        display.finish(report)
    build.finish(report, log_format)
