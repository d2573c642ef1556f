"""``ctgpu build``."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ctgpu.builder import Executor, build
from ctgpu.cli.display import Display, show_summary
from ctgpu.cli.options import (
    Axes,
    Debug,
    Device,
    HuGuard,
    MaxTiltDegrees,
    log_level,
    parse_numbers,
    parse_range,
    parse_size,
    spec_of,
)
from ctgpu.cli.stopping import Stopped, stoppable
from ctgpu.cli.terminal import Console, LogFormat, configure_logging
from ctgpu.distribute.slurm import part_from_environment
from ctgpu.planning import Part
from ctgpu.report import BuildReport
from ctgpu.sources import DEFAULT_REPO_ID
from ctgpu.spec import PRESETS

log = logging.getLogger(__name__)


def command(
    output_dir: Annotated[Path, typer.Option(help="Folder for shards and manifest.")],
    split: Annotated[
        str | None, typer.Option(help="train or valid. (default: valid, or the plan's)")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="A local copy of CT-RATE, or any folder of volumes, instead of the Hub."),
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(help=f"Data set on the Hub. (default: {DEFAULT_REPO_ID})")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; pinned to a commit. (default: main)")
    ] = None,
    device: Device = "auto",
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that download; as many inflate, up to the cores.")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Bytes for volumes in flight on a machine, such as 16G. (default: half of memory)"
        ),
    ] = None,
    temp_dir: Annotated[
        Path | None, typer.Option(help="Spool downloads here instead of holding them in memory.")
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Samples in a shard. (default: 128)")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            help="Do only shards A-B of the plan, both included. (default: all, or in a SLURM job "
            "array its element's part)"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Make the shards on a Ray cluster, HOST:PORT; without ADDRESS the one this "
            "machine belongs to, or a new one on it.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="A trial plan of the first N samples.")] = None,
    recon: Annotated[
        str | None,
        typer.Option(help="all or first: one reconstruction of each scan. (default: all)"),
    ] = None,
    order: Annotated[str | None, typer.Option(help="path or shuffled. (default: path)")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of --order shuffled.")] = None,
    keep_no_chest: Annotated[
        bool | None, typer.Option("--keep-no-chest", help="Keep volumes listed as no chest.")
    ] = None,
    spacing_fallback: Annotated[
        str | None,
        typer.Option(
            help="header: take the file's spacing where the CSV has none. (default: fail)"
        ),
    ] = None,
    axes: Axes = None,
    max_tilt_degrees: MaxTiltDegrees = None,
    hu_guard: HuGuard = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Spec to start from: {', '.join(PRESETS)}.")
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(help="auto, hu (never use the CSV's slope and intercept) or rescale."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="HWD, or DHW (contiguous to train on).")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Target voxel size H,W,D in mm. (default: 0.75,0.75,1.5)")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Target shape H,W,D. (default: 480,480,240)")
    ] = None,
    hu_window: Annotated[
        str | None, typer.Option(help="HU mapped to -1 and 1. (default: -1000,1000)")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="before or after resampling. (default: before)")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again what is finished already.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Re-do only the samples that failed.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines as text or json.")] = (
        LogFormat.text
    ),
    debug: Debug = False,
) -> None:
    """Make WebDataset shards of training-ready volumes.

    Run it again to go on where it stopped: what an earlier run was told need not be repeated.
    """
    console = Console(stderr=True)
    configure_logging(log_format, log_level(debug), console)
    again = ["build", "--output-dir", str(output_dir)]
    again += ["--force"] * force + ["--retry-failed"] * retry_failed
    again += ["--ray", ray] if ray is not None else []
    with resumable(output_dir, again), Display(console) as display:
        report = build(
            output_dir,
            split=split,
            source=source,
            repo_id=repo_id,
            revision=revision,
            spec=spec_of(
                preset,
                target_spacing_mm=spacing and parse_numbers(spacing, "--spacing", "0.75,0.75,1.5"),
                shape_hwd=shape and parse_numbers(shape, "--shape", "480,480,240"),
                hu_window=hu_window and parse_numbers(hu_window, "--hu-window", "-1000,1000"),
                layout=layout,
                intensity=intensity,
                clip=clip,
            ),
            device=device,
            num_workers=num_workers,
            memory_limit_bytes=parse_size(memory_limit) if memory_limit is not None else None,
            temp_dir=temp_dir,
            samples_per_shard=samples_per_shard,
            shards=parse_range(shards) if shards is not None else None,
            part=_part_of_job_array() if ray is None else None,
            limit=limit,
            recon=recon,
            order=order,
            seed=seed,
            keep_no_chest=keep_no_chest,
            spacing_fallback=spacing_fallback,
            axes=axes,
            max_tilt_degrees=max_tilt_degrees,
            hu_guard=hu_guard,
            force=force,
            retry_failed=retry_failed,
            executor=_ray_executor(ray) if ray is not None else None,
            watch=display,
        )
        display.finish(report)
    finish(report, log_format)


def _part_of_job_array() -> Part | None:
    part = part_from_environment(os.environ, on_terminal=os.isatty(0))
    if part is not None:
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
        stopped.sentence = (
            f"stopped; {folder} keeps every finished sample. Go on with: {_shell(again)}"
        )
        raise


def finish(report: BuildReport, log_format: LogFormat) -> None:
    """Show the summary on standard output and exit with the build's code."""
    if log_format is LogFormat.json:
        typer.echo(report.to_json())
    else:
        show_summary(report, Console())
    raise typer.Exit(report.exit_code)


def _shell(arguments: Sequence[str]) -> str:
    """A command that a shell takes, also where a name has to be written with escapes."""
    return " ".join(("ctgpu", *map(_quoted, arguments)))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # Bytes, for of characters a shell knows only those of its locale.
    escaped = (
        c
        if c.isprintable() and c not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
        for c in word
    )
    return f"$'{''.join(escaped)}'"
