"""``ctgpu plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from ctgpu.cli.display import Display
from ctgpu.cli.options import Axes, Debug, Device, HuGuard, MaxTiltDegrees, log_level, parse_size
from ctgpu.cli.stopping import stoppable
from ctgpu.cli.terminal import Console, LogFormat, configure_logging, say_json
from ctgpu.estimate import Estimate, estimate_build
from ctgpu.planning import Request
from ctgpu.spec import PRESETS


def command(
    output_dir: Annotated[
        Path, typer.Option(help="Where the build would write; nothing stays there.")
    ] = Path(),
    split: Annotated[str | None, typer.Option(help="train or valid. (default: valid)")] = None,
    source: Annotated[
        Path | None, typer.Option(help="A local copy or raw tars, instead of the Hub.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Data set on the Hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    device: Device = "auto",
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that download. (default: what is suggested)")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Bytes for volumes in flight, such as 16G.")
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Samples in a shard. (default: 128)")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N samples.")] = None,
    recon: Annotated[str | None, typer.Option(help="all or first. (default: all)")] = None,
    axes: Axes = None,
    max_tilt_degrees: MaxTiltDegrees = None,
    hu_guard: HuGuard = None,
    preset: Annotated[str, typer.Option(help=f"Spec: {', '.join(PRESETS)}.")] = "ct-rate",
    calibrate: Annotated[
        int, typer.Option(help="Build so many samples to measure; 0 for none.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a build would take: volumes, bytes, memory, time. Exits with 3 if there is no room.

    A few samples are built to measure this machine, and removed again.
    """
    if preset not in PRESETS:
        raise typer.BadParameter(f"it is one of {', '.join(PRESETS)}", param_hint="--preset")
    errors = Console(stderr=True)
    configure_logging(LogFormat.text, log_level(debug), errors)
    with stoppable(), Display(errors) as display:
        estimate = estimate_build(
            output_dir,
            Request(
                split=split,
                source=source,
                repo_id=repo_id,
                revision=revision,
                spec=PRESETS[preset],
                samples_per_shard=samples_per_shard,
                selection={
                    "limit": limit,
                    "recon": recon,
                    "axes": axes,
                    "max_tilt_degrees": max_tilt_degrees,
                    "hu_guard": hu_guard,
                },
            ),
            device=device,
            num_workers=num_workers,
            memory_limit_bytes=parse_size(memory_limit) if memory_limit is not None else None,
            calibrate=calibrate,
            watch=display,
        )
    if as_json:
        say_json(estimate.to_dict())
    else:
        _show(estimate, Console())
    raise typer.Exit(estimate.exit_code)


def _show(estimate: Estimate, console: Console) -> None:
    storage = estimate.storage
    table = Table(title="What the build would take", title_justify="left", show_header=False)
    room = "fits" if estimate.fits else "does not fit: free some, or build parts with --shards"
    free = "unknown, for the file system does not say"
    if estimate.free_bytes is not None:
        free = f"{decimal(estimate.free_bytes)}: {room}"
    rows = [
        ("volumes", ", ".join(f"{n} {what}" for what, n in estimate.counts.items() if n)),
        ("shards", f"{storage.shards}, {decimal(storage.full_shard_bytes)} each when full"),
        ("to read", decimal(estimate.source_bytes)),
        ("to store", f"{decimal(storage.needed_bytes)}, {storage.sample_bytes:,} bytes a volume"),
        ("free", free),
        ("memory", f"up to {decimal(estimate.memory_bytes)} for volumes in flight"),
    ]
    for stage in estimate.stages:
        mark = ", the bottleneck" if stage is estimate.bottleneck else ""
        rows.append((stage.name, f"{_hours(stage.wall_s)} with threads: {stage.threads}{mark}"))
    if estimate.stages:
        rows.append(("together", f"{_hours(estimate.wall_s)}, as the stages overlap"))
    rows.append(("suggested", f"--num-workers {estimate.num_workers}"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if estimate.stages:
        console.print(
            f"Times come from {estimate.calibrated_on} volumes; a network's speed varies by more."
        )


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
