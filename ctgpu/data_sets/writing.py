"""A description as a TOML file, with remarks for whoever goes on with it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import tomlkit
from tomlkit.items import Item, Table

from ctgpu.data_sets.description import Description
from ctgpu.printable import printable

# Of a terminal, on which most read them first.
_WIDTH = 80
_COMMAND = re.compile("`[^`]*`")
_SINGLE = ("layout", "volumes", "arrays", "masks")
_SECTIONS = ("layout", "splits", "volumes", "arrays", "masks", "tables", "leave_out")


@dataclass(slots=True)
class Draft:
    """A description in the making, and the remarks that go along, by their place.

    Attributes
    ----------
    description : Description
        What is settled.
    remarks : dict of str to list of str
        As :func:`to_toml` takes them.
    """

    description: Description
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def change(self, **parts: object) -> None:
        """State these fields of the description."""
        self.description = msgspec.structs.replace(self.description, **parts)

    def say(self, place: str, sentence: str) -> None:
        """A remark in words, over as many lines as it takes."""
        width = _WIDTH - len("# ")
        # A name is not broken, as it may be searched for, nor a command, as it may be copied.
        whole = _COMMAND.sub(lambda found: found[0].replace(" ", "\0"), printable(sentence))
        lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
        self.offer(place, *(line.replace("\0", " ") for line in lines))

    def offer(self, place: str, *lines: str) -> None:
        """Remarks that stay as they are: fields to be had by taking the ``#`` away, commands."""
        self.remarks.setdefault(place, []).extend(lines)

    def to_toml(self) -> str:
        """The file."""
        return to_toml(self.description, self.remarks)


def to_toml(data_set: Description, remarks: Mapping[str, Sequence[str]] | None = None) -> str:
    """The file of a description.

    Parameters
    ----------
    data_set : Description
        What to write; reading it back gives the same.
    remarks : mapping of str to sequence of str, optional
        Lines that go along as comments: under ``""`` at the begin, under ``"top"`` after the fields
        that belong to no section, under the name of a section at its end (``tables[0]`` of one that
        repeats), also where there is no such section, and under ``"end"`` last.

    Returns
    -------
    str
        TOML in which every character can be seen.
    """
    said = remarks or {}
    content = data_set.content
    document = tomlkit.document()
    _comment(document, said.get("", ()))
    for name, value in content.items():
        if name not in _SECTIONS:
            document.add(name, _item(value))
    _comment(document, said.get("top", ()))
    for name in _SECTIONS:
        value = content.get(name)
        if isinstance(value, list):
            sections = tomlkit.aot()
            for place, one in enumerate(value):
                sections.append(_table(one, said.get(f"{name}[{place}]", ())))
            document.add(name, sections)
        elif name == "splits" and value is not None:
            splits = tomlkit.table(is_super_table=True)
            for split, rule in value.items():
                splits.add(split, _table(rule, said.get(f"splits.{split}", ())))
            document.add(name, splits)
        elif value is not None:
            document.add(name, _table(value, said.get(name, ())))
        elif name in said:
            document.add(tomlkit.nl())
            if name in _SINGLE:
                _comment(document, [f"[{name}]"])
        if not isinstance(value, dict) or name == "splits":
            _comment(document, said.get(name, ()))
    if "end" in said:
        document.add(tomlkit.nl())
        _comment(document, said["end"])
    return _visible(tomlkit.dumps(document))


def field_line(name: str, value: object) -> str:
    """A field on one line, such as ``carry = ["age"]``; for those that are offered only."""
    return f"{name} = {_visible(tomlkit.item(value).as_string())}"


def ascii_only(toml: str) -> str:
    r"""The same TOML for a stream that takes no more than ASCII: ``ü`` becomes ``\u00fc``.

    Parameters
    ----------
    toml : str
        In which texts with other characters are in double quotes, as :func:`to_toml` writes them.
    """
    return "".join(c if c.isascii() else _escaped(c) for c in toml)


def _visible(toml: str) -> str:
    """What cannot be seen in it as an escape: all of that is in double quotes, or in comments."""
    if toml.replace("\n", "").isprintable():
        return toml
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in toml)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _table(values: Mapping[str, Any], remarks: Iterable[str]) -> Table:
    table = tomlkit.table()
    for name, value in values.items():
        if name in ("files", "labels") and isinstance(value, dict):
            inner = tomlkit.table()
            for key, one in value.items():
                inner.add(key, _item(one))
            table.add(name, inner)
        else:
            table.add(name, _item(value))
    _comment(table, remarks)
    return table


def _item(value: Any) -> Item:
    if isinstance(value, dict):
        inline = tomlkit.inline_table()
        inline.update(value)
        return inline
    item: Item = tomlkit.item(value)
    if isinstance(value, list) and len(item.as_string()) > _WIDTH // 2:
        array = tomlkit.array()
        array.extend(value)
        array.multiline(True)
        return array
    return item


def _comment(where: Any, lines: Iterable[str]) -> None:
    for line in lines:
        # What a remark quotes may hold anything; in a comment it must not begin a line of its own.
        where.add(tomlkit.comment(printable(line)))
