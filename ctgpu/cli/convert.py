"""``ctgpu convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctgpu.cli import build
from ctgpu.cli.display import Display
from ctgpu.cli.options import (
    Debug,
    Device,
    LogFormat,
    configure_logging,
    parse_range,
    parse_size,
)
from ctgpu.convert import convert_tars
from ctgpu.errors import UsageError
from ctgpu.spec import PRESETS, Spec


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
            "--delete-after", help="Delete a tar once all it holds is committed and verified."
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
    configure_logging(log_format, debug, console)
    again = ["convert", "--input-pattern", input_pattern, "--output-dir", str(output_dir)]
    again += ["--force"] * force + ["--retry-failed"] * retry_failed
    again += ["--delete-after"] * delete_after
    with build.resumable(output_dir, again), Display(console) as display:
        report = convert_tars(
            input_pattern,
            output_dir,
            split=split,
            spec=_spec(preset, intensity),
            device=device,
            num_workers=num_workers,
            memory_limit_bytes=parse_size(memory_limit) if memory_limit else None,
            samples_per_shard=samples_per_shard,
            shards=parse_range(shards) if shards else None,
            force=force,
            retry_failed=retry_failed,
            delete_after=delete_after,
            watch=display,
        )
    build.finish(report, log_format)


def _spec(preset: str | None, intensity: str | None) -> Spec | None:
    if preset is None and intensity is None:
        return None
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}; it is one of {', '.join(PRESETS)}")
    base = PRESETS[preset or "ct-rate"].to_dict()
    return Spec.from_dict(base | ({"intensity": intensity} if intensity else {}))
