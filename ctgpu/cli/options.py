"""Options and values that several subcommands share."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ctgpu.engines.registry import DEVICE_HELP
from ctgpu.errors import UsageError
from ctgpu.orientation import DEFAULT_MAX_TILT_DEGREES
from ctgpu.spec import PRESETS, Spec

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


_SPEC_OPTIONS = {
    "target_spacing_mm": "--spacing",
    "shape_hwd": "--shape",
    "hu_window": "--hu-window",
    "layout": "--layout",
    "intensity": "--intensity",
    "clip": "--clip",
}

Debug = Annotated[bool, typer.Option("--debug", help="Log details; show tracebacks of errors.")]
Axes = Annotated[
    str | None,
    typer.Option(
        help="checked: refuse volumes whose third axis is not the patient's long one; stored: take "
        "every volume as it lies. (default: checked)"
    ),
]
MaxTiltDegrees = Annotated[
    float | None,
    typer.Option(
        help="Refuse volumes whose axes are further than this from the patient's, or sheared by "
        f"more. (default: {DEFAULT_MAX_TILT_DEGREES:g})"
    ),
]
HuGuard = Annotated[
    str | None,
    typer.Option(
        help="What to do about volumes that are not HU (normalised, grey values, labels, rescaled "
        "twice or never): refuse, or warn and take them. (default: refuse)"
    ),
]
Device = Annotated[str, typer.Option(help=f"Where to compute: {DEVICE_HELP}.")]


def log_level(debug: bool) -> int:
    """What ``--debug`` makes of the log."""
    return logging.DEBUG if debug else logging.INFO


def shorten(text: str) -> str:
    """What was given, for a message, however long it is."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


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
        If it is none of these, or nothing at all.
    """
    match = re.fullmatch(
        r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)(ib|b)?", text.strip().lower()
    )
    if not match or (match[3] == "ib" and not match[2]):
        raise UsageError(f"--memory-limit: {shorten(text)} is not a size; write 8G, 500M or 8GiB")
    units = _BINARY_UNITS if match[3] == "ib" else _UNITS
    size_bytes = int(Decimal(match[1]) * units[match[2]])
    if size_bytes < 1:
        raise UsageError(f"--memory-limit: {text!r} is less than a byte; write 8G, 500M or 8GiB")
    return size_bytes


def parse_numbers(text: str, name: str, example: str) -> tuple[float, ...]:
    """``0.75,0.75,1.5`` to as many numbers as the example has.

    Raises
    ------
    UsageError
        If there are more or fewer, or a part is no number.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    count = len(example.split(","))
    if len(numbers) != count:
        raise UsageError(
            f"{name} is {shorten(text)}; write {count} numbers with commas between them, such as "
            f"{example}"
        )
    return numbers


def spec_of(preset: str | None, **values: object) -> Spec | None:
    """The spec that options describe; None where they say nothing.

    Parameters
    ----------
    preset : str or None
        Where to start from; by default CT-RATE's.
    **values
        Fields of the spec; None where the option was not given.

    Raises
    ------
    UsageError
        Naming the option, if a value cannot be.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset is {shorten(preset)}; it is one of {', '.join(PRESETS)}")
    given: dict[str, Any] = {name: v for name, v in values.items() if v is not None}
    if preset is None and not given:
        return None
    try:
        return replace(PRESETS[preset or "ct-rate"], **given)
    except UsageError as error:
        field, is_, rest = str(error).partition(" is ")
        raise UsageError(_SPEC_OPTIONS.get(field, field) + is_ + rest) from None


def parse_range(text: str) -> range:
    """``3-7`` (inclusive) or ``3`` to a range.

    Raises
    ------
    UsageError
        If it is neither.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UsageError(f"--shards is {shorten(text)}; write A-B, both included, such as 0-9")
    return range(first, last + 1)
