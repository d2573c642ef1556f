"""Options and values that several subcommands share."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ctgpu.arguments import Option, options_of
from ctgpu.building.request import Common
from ctgpu.cli.help import HEADINGS, Command
from ctgpu.cli.terminal import LogFormat
from ctgpu.engines.registry import DEVICE_HELP
from ctgpu.errors import UsageError
from ctgpu.spec import Spec

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


Debug = Annotated[bool, typer.Option("--debug", help="Log details; show tracebacks of errors.")]
Device = Annotated[str, typer.Option(metavar="TEXT", help=f"Where to compute: {DEVICE_HELP}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Log = Annotated[LogFormat, typer.Option(metavar="text|json", help="How log lines look.")]


def log_level(debug: bool) -> int:
    """What ``--debug`` makes of the log."""
    return logging.DEBUG if debug else logging.INFO


def shorten(text: str) -> str:
    """What was given, for a message, however long it is."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


class RayCommand(Command):
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


def parse_number(text: str, name: str) -> float:
    """``-1.5`` to a number.

    Raises
    ------
    UsageError
        If it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name} is {shorten(text)}; write a number, such as -1") from None


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


def takes(
    kind: type[Common], *, without: Collection[str] = (), **helps: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a class of options, and it as `options` what they say.

    Parameters
    ----------
    kind : type
        A dataclass whose fields are :func:`ctgpu.arguments.option`.  Where one of them is a spec,
        the spec's own flags and ``--preset`` stand for it.
    without : collection of str
        Fields that mean nothing to this command.
    **helps : str
        Help that differs from the field's, by field.

    Returns
    -------
    callable
        A decorator.
    """
    offered = [(one, o) for one, o in options_of(kind) if one.name not in without]
    own = [*options_of(Spec)] if "spec" in {one.name for one in fields(kind)} else []
    flags = {one.name: o.flag or _flag(one.name) for one, o in (*offered, *own)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            said = {one.name: _read(given.pop(one.name), flags[one.name], o) for one, o in offered}
            if own:
                of_spec = {
                    one.name: _read(value, flags[one.name], o)
                    for one, o in own
                    if (value := given.pop(one.name)) is not None
                }
                said["spec"] = spec_of(given.pop("preset"), of_spec)
            command(options=kind(**said), **given)

        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in _parameters(command)
            if p.name != "options"
        ]
        # Behind what the command cannot do without.
        place = sum(p.default is p.empty for p in parameters)
        made = [_parameter(one, o, flags[one.name], helps, kind) for one, o in offered]
        if own:
            made += [_PRESET, *(_parameter(one, o, flags[one.name], helps, Spec) for one, o in own)]
        parameters[place:place] = made
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def names_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command's messages that begin with the name of a parameter begin with its flag."""
    flags = {}
    for parameter in _parameters(command):
        for how in get_args(parameter.annotation)[1:]:
            if isinstance(how, typer.models.OptionInfo):
                # Within Annotated, the first word is the default until typer looks closer.
                words = filter(None, (how.default, *(how.param_decls or ())))
                stated = [word for word in words if str(word).startswith("--")]
                flags[parameter.name] = (stated or [_flag(parameter.name)])[0]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
        except UsageError as error:
            name, is_, rest = str(error).partition(" is ")
            if is_ and name in flags:
                error.args = (f"{flags[name]} is {rest}",)
            raise

    return run


def spec_of(preset: str | None, said: Mapping[str, Any]) -> Spec | None:
    """The spec that options describe; None where they say nothing.

    Parameters
    ----------
    preset : str or None
        Where to start from; by default CT-RATE's.
    said : mapping
        Fields of the spec that were given.

    Raises
    ------
    UsageError
        If there is no such preset, or a value cannot be.
    """
    if preset is not None:
        return Spec.preset(preset, **said)
    return Spec(**said) if said else None


def flags_of(spec: Spec) -> str:
    """The flags that say a spec, as far as it is not the default one."""
    return " ".join(
        f"{o.flag or _flag(one.name)} {_written(value, o)}"
        for one, o in options_of(Spec)
        if (value := getattr(spec, one.name)) != one.default
    )


def _written(value: Any, offered: Option) -> str:
    """A value in its notation."""
    if value is None:
        return str(offered.none)
    numbers = value if isinstance(value, tuple) else (value,)
    if offered.written in ("number", "numbers"):
        return ",".join(str(n).removesuffix(".0") for n in numbers)
    return str(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# It evaluates every field of a class, and is asked for one at a time.
_hints = functools.cache(get_type_hints)


def _parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(command, eval_str=True).parameters.values())


def _parameter(
    one: Field[Any], offered: Option, flag: str, helps: Mapping[str, str], kind: type
) -> inspect.Parameter:
    """A field as typer wants it."""
    hint: Any = _hints(kind)[one.name]
    if offered.written == "path":
        hint = Path | None
    elif (
        offered.written in ("size", "range", "numbers", "number")
        or kind is Spec
        or str in get_args(hint)
    ):
        hint = str if isinstance(one.default, str) and kind is not Spec else str | None
    default = None if kind is Spec else one.default
    how = typer.Option(
        flag,
        help=helps.get(one.name, offered.help),
        metavar=_metavar(one, offered, kind),
        rich_help_panel=HEADINGS["contract" if kind is Spec else offered.group],
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, how]
    )


def _metavar(one: Field[Any], offered: Option, kind: type) -> str:
    """What stands behind the flag of a field."""
    if offered.written == "numbers":
        return "H,W,D" if offered.example.count(",") == 2 else "A,B"
    if offered.written != "plain":
        return {"path": "PATH", "size": "SIZE", "range": "A-B", "number": "X"}[offered.written]
    hint = _hints(kind)[one.name]
    words = offered.choices or get_args(hint)
    if words and all(isinstance(word, str) for word in words):
        return "|".join(words) if len("|".join(words)) <= _LONGEST_METAVAR else "WORD"
    hints = get_args(hint) or (hint,)
    return next((name for hint, name in _METAVARS.items() if hint in hints), "TEXT")


_LONGEST_METAVAR = 16
_METAVARS: Mapping[type, str] = {int: "N", float: "X"}

_PRESET = inspect.Parameter(
    "preset",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            rich_help_panel=HEADINGS["contract"],
            help="A public project's contract, such as merlin, in which other flags change single "
            "fields; `ctgpu presets` lists them.",
        ),
    ],
)


def _read(value: Any, flag: str, offered: Option) -> Any:
    """What was given, out of its notation."""
    if value is None:
        return None
    if offered.written == "size":
        return parse_size(value)
    if offered.written == "range":
        return parse_range(value)
    if offered.none is not None and value.strip().lower() == offered.none:
        return None
    if offered.written == "numbers":
        return parse_numbers(value, flag, offered.example)
    if offered.written == "number":
        return parse_number(value, flag)
    return value
