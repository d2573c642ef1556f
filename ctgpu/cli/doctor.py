"""``ctgpu doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctgpu.cli.options import Debug, Device
from ctgpu.cli.terminal import Console, say_json
from ctgpu.doctor import diagnose


def command(
    output_dir: Annotated[
        Path, typer.Option(help="Where a build would write; its free space is looked at.")
    ] = Path(),
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Say what this machine can do, and what stands in the way of a build."""
    report = diagnose(output_dir, device=device)
    if as_json:
        say_json(report.to_dict())
    else:
        Console().print(report.to_table())
    raise typer.Exit(report.exit_code)
