"""``ctgpu doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ctgpu.checking.doctor import Report, Status, diagnose
from ctgpu.cli.options import Debug, Device
from ctgpu.cli.terminal import Console, say_json
from ctgpu.printable import printable

_MARKS = {"ok": ("ok", "green"), "missing": ("--", "yellow"), "failed": ("no", "red")}


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
        Console().print(table_of(report))
    raise typer.Exit(report.exit_code)


def table_of(report: Report) -> Table:
    """A report for a terminal."""
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        table.add_row(*_row(check.status, check.name, check.text))
    chosen = f"--device {report.device}" if report.device else "no device works"
    status: Status = "ok" if report.device else "failed"
    table.add_row(*_row(status, "chosen device", f"{chosen}: {report.why}"))
    return table


def _row(status: Status, name: str, text: str) -> tuple[Text, Text, Text]:
    """As plain text, whatever console it comes to."""
    return Text(*_MARKS[status]), Text(name), Text(printable(text))
