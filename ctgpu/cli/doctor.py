"""``ctgpu doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ctgpu.checking.doctor import Report, Status, diagnose
from ctgpu.cli.options import Debug, Device, Json
from ctgpu.cli.terminal import Console, say_json
from ctgpu.cli.wrapping import wrap
from ctgpu.printable import printable

_MARKS = {"ok": ("ok", "green"), "missing": ("--", "yellow"), "failed": ("no", "red")}


#: One call of it, as its help shows it.
EXAMPLE = "ctgpu doctor --output-dir shards"


def command(
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="Where a build would write; its free space is looked at."
        ),
    ] = Path(),
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what this machine can do, and what stands in the way of a build."""
    report = diagnose(output_dir, device=device)
    if as_json:
        say_json(report.to_dict())
    else:
        console = Console()
        console.print(text_of(report, console.width), soft_wrap=True)
        console.print()
        console.print("Next:")
        for line in next_steps(report):
            console.print(f"  {line}", soft_wrap=True)
    raise typer.Exit(report.exit_code)


def text_of(report: Report, width: int) -> Text:
    """A report for a terminal of so many columns."""
    chosen = f"--device {report.device}" if report.device else "no device works"
    status: Status = "ok" if report.device else "failed"
    rows = [(check.status, check.name, check.text) for check in report.checks]
    rows.append((status, "chosen device", f"{chosen}: {report.why}"))
    longest = max(len(name) for _, name, _ in rows)
    lines = []
    for status, name, said in rows:
        mark, colour = _MARKS[status]
        first = f"  {name.ljust(longest)}  "
        # As plain text, whatever console it comes to.
        wrapped = wrap(printable(said), width, " " * (len(mark) + len(first)), mark + first)
        lines.append(Text("\n".join(wrapped)))
        lines[-1].stylize(colour, 0, len(mark))
    return Text("\n").join(lines)


def next_steps(report: Report) -> tuple[str, ...]:
    """What one would type now."""
    if report.next_command is not None:
        return (report.next_command, "ctgpu doctor")
    if report.exit_code:
        return ("ctgpu doctor  # once what is marked `no` is mended",)
    return ("ctgpu demo", "ctgpu plan --source FOLDER")
