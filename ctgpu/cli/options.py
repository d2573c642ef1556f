"""Options and values that several subcommands share."""

from __future__ import annotations

import json
import logging
import re
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand

from ctgpu.engines.registry import DEVICE_HELP
from ctgpu.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class LogFormat(StrEnum):
    """How log lines look."""

    text = "text"
    json = "json"


Debug = Annotated[bool, typer.Option("--debug", help="Log details; show tracebacks of errors.")]
Device = Annotated[str, typer.Option(help=f"Where to compute: {DEVICE_HELP}.")]


class RayCommand(TyperCommand):
    """A command whose ``--ray`` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, word in enumerate(args):
            if word == "--ray" and (place + 1 == len(args) or args[place + 1].startswith("-")):
                args = [*args[:place], "--ray=auto", *args[place + 1 :]]
        return super().parse_args(ctx, args)


def parse_size(text: str) -> int:
    """``8G``, ``500M`` (decimal) or ``8GiB`` (binary) to bytes.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(ib|b)?", text.strip().lower())
    if not match or (match[3] == "ib" and not match[2]):
        raise UsageError(f"{text!r} is not a size; write 8G, 500M or 8GiB")
    units = _BINARY_UNITS if match[3] == "ib" else _UNITS
    return int(float(match[1]) * units[match[2]])


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """``0.75,0.75,1.5`` to numbers.

    Raises
    ------
    UsageError
        If a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{name} is {text!r}; write numbers with commas between them") from None


def parse_range(text: str) -> range:
    """``3-7`` (inclusive) or ``3`` to a range.

    Raises
    ------
    UsageError
        If it is neither.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UsageError(f"--shards is {text!r}; write A-B, both included, such as 0-9")
    return range(first, last + 1)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(log_format: LogFormat, debug: bool, console: Console) -> None:
    """Send log lines to standard error: above the live display on a terminal, else plain."""
    handler: logging.Handler
    if log_format is LogFormat.json:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("ctgpu")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
