"""What ``--help`` shows: plain text in groups, with an example that can be copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from rich.cells import cell_len
from typer.core import TyperCommand, TyperGroup

from ctgpu.arguments import Group
from ctgpu.cli.wrapping import wrap

#: Headings of the groups of options, in their order.
HEADINGS: dict[Group, str] = {
    "what": "What",
    "where": "Where from, and where to",
    "contract": "Contract of the output",
    "machine": "Machine",
    "again": "Going on",
}
_OTHERS = "Options"
_COLUMN = 28


class Command(TyperCommand):
    """A command whose help is :func:`lines_of`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(lines_of(self, ctx, formatter.width)) + "\n")


class CommandGroup(TyperGroup):
    """The same of what holds the commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(lines_of(self, ctx, formatter.width)) + "\n")


def example(command: str) -> str:
    """An epilog that shows how a command is called."""
    return f"Example:\n  {command}"


def lines_of(command: Any, context: Any, width: int) -> Iterator[str]:
    """The help of a command, line by line.

    Parameters
    ----------
    command : Command or CommandGroup
    context : typer.Context
        Of its call.
    width : int
        Columns of a line.
    """
    parameters = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    options = [p for p in parameters if p.param_type_name == "option"]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    usage = [context.command_path, *(_call(p) for p in options if p.required), "[OPTIONS]"]
    usage += [p.metavar for p in arguments]
    usage += ["COMMAND [ARGS]..."] * isinstance(command, CommandGroup)
    yield from wrap(" ".join(usage), width, "  ", "Usage: ")
    yield from _paragraphs(command.help, width)
    yield from _section("Arguments", [(p.metavar, p.help or "") for p in arguments], width)
    if isinstance(command, CommandGroup):
        inner = ((name, command.get_command(context, name)) for name in command.commands)
        rows = [(name, _first_paragraph(one.help)) for name, one in inner if one is not None]
        yield from _section("Commands", rows, width)
    headings = dict.fromkeys(p.rich_help_panel for p in options if p.rich_help_panel)
    known = [heading for heading in HEADINGS.values() if heading in headings]
    for heading in (*known, *(h for h in headings if h not in known), None):
        rows = [(_call(p), _help(p)) for p in options if (p.rich_help_panel or None) == heading]
        yield from _section(heading or _OTHERS, rows, width)
    yield from _paragraphs(command.epilog, width)


def _paragraphs(text: str | None, width: int) -> Iterator[str]:
    """Each after an empty line; a line that is indented stays as it is."""
    for paragraph in (text or "").split("\n\n"):
        if not paragraph.strip():
            continue
        yield ""
        prose: list[str] = []
        for line in paragraph.strip("\n").split("\n"):
            if line.startswith(" "):
                yield from wrap(" ".join(prose), width) if prose else ()
                prose.clear()
                yield line
            else:
                prose.append(line)
        yield from wrap(" ".join(prose), width) if prose else ()


def _section(heading: str, rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield f"{heading}:"
    column = min(_COLUMN, max(cell_len(name) for name, _ in rows) + 4)
    for name, text in rows:
        first = f"  {name}"
        if cell_len(first) + 2 > column:
            yield first
            first = ""
        yield from wrap(text, width, " " * column, first.ljust(column))


def _call(option: Any) -> str:
    """How an option is written: ``-h, --help``, ``--masks/--no-masks``, ``--limit N``."""
    flags = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        flags += f"/{option.secondary_opts[0]}"
    return flags if option.is_flag else f"{flags} {option.metavar}"


def _help(option: Any) -> str:
    text, default = option.help or "", option.default
    if option.required:
        return f"{text} (required)"
    if option.is_flag or default is None or "(default: " in text:
        return text
    return f"{text} (default: {default.value if isinstance(default, Enum) else default})"


def _first_paragraph(text: str | None) -> str:
    return re.sub(r"\s+", " ", (text or "").partition("\n\n")[0])
