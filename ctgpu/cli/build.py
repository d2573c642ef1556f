"""``ctgpu build``."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from ctgpu.builder import BuildReport, Executor, build
from ctgpu.cli.display import Display, show_summary
from ctgpu.cli.options import (
    Debug,
    Device,
    LogFormat,
    configure_logging,
    parse_numbers,
    parse_range,
    parse_size,
)
from ctgpu.distribute.slurm import part_from_environment
from ctgpu.errors import UsageError
from ctgpu.planning import Part
from ctgpu.sources import DEFAULT_REPO_ID
from ctgpu.spec import PRESETS, Spec

log = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGINT, or SIGTERM as a scheduler sends it."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number


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
    configure_logging(log_format, debug, console)
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
            spec=_spec(
                preset, spacing, shape, hu_window, layout=layout, intensity=intensity, clip=clip
            ),
            device=device,
            num_workers=num_workers,
            memory_limit_bytes=parse_size(memory_limit) if memory_limit else None,
            temp_dir=temp_dir,
            samples_per_shard=samples_per_shard,
            shards=parse_range(shards) if shards else None,
            part=_part_of_job_array() if ray is None else None,
            limit=limit,
            recon=recon,
            order=order,
            seed=seed,
            keep_no_chest=keep_no_chest,
            spacing_fallback=spacing_fallback,
            force=force,
            retry_failed=retry_failed,
            executor=_ray_executor(ray) if ray is not None else None,
            watch=display,
        )
    finish(report, log_format)


def _part_of_job_array() -> Part | None:
    part = part_from_environment(os.environ)
    if part is not None:
        log.info("SLURM: this is part %d of %d", part.index + 1, part.count)
    return part


def _ray_executor(address: str) -> Executor:
    from ctgpu.distribute.ray import RayExecutor

    return RayExecutor(address)


@contextlib.contextmanager
def resumable(folder: Path, again: Sequence[str]) -> Iterator[None]:
    """Turn a signal into an exit that says with which arguments `folder` goes on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        yield
    except _Stopped as stopped:
        typer.echo(
            f"ctgpu: stopped; {folder} keeps every finished sample. "
            f"Go on with: {shlex.join(['ctgpu', *again])}",
            err=True,
        )
        raise typer.Exit(stopped.exit_code) from None
    finally:
        # What comes now is the summary; nothing is lost where that is cut short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def finish(report: BuildReport, log_format: LogFormat) -> None:
    """Show the summary on standard output and exit with the build's code."""
    if log_format is LogFormat.json:
        typer.echo(report.to_json())
    else:
        show_summary(report, Console())
    raise typer.Exit(report.exit_code)


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal ends the process at once, which a folder survives as well.
    signal.signal(number, signal.SIG_DFL)
    raise _Stopped(number)


def _spec(
    preset: str | None,
    spacing: str | None,
    shape: str | None,
    hu_window: str | None,
    **choices: str | None,
) -> Spec | None:
    """The spec that the options describe; None where they say nothing."""
    values: dict[str, object] = {k: v for k, v in choices.items() if v is not None}
    if spacing is not None:
        values["target_spacing_mm"] = parse_numbers(spacing, "--spacing")
    if shape is not None:
        values["shape_hwd"] = parse_numbers(shape, "--shape")
    if hu_window is not None:
        values["hu_window"] = parse_numbers(hu_window, "--hu-window")
    if preset is None and not values:
        return None
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}; it is one of {', '.join(PRESETS)}")
    base = PRESETS[preset or "ct-rate"].to_dict()
    return Spec.from_dict(base | values)
