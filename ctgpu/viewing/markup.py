"""HTML that is safe by its making: text becomes a part of it by being escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from ctgpu.printable import printable, printable_lines

_VOID = frozenset({"br", "img", "input", "link", "meta"})


class Html(str):
    """Markup, complete and safe to be shown as it is."""

    __slots__ = ()


#: What an element may hold: markup as it is, anything else as text, None as nothing.
Content: TypeAlias = "Html | str | int | float | Iterable[Content] | None"


def escaped(text: object) -> Html:
    """Text as markup that shows it: lines stay lines, and what cannot be seen becomes an escape."""
    return Html(html.escape(printable_lines(text)))


def joined(*contents: Content) -> Html:
    """Several contents, one after the other."""
    return Html("".join(_parts(contents)))


def tag(name: str, /, *contents: Content, **attributes: str | int | float | bool | None) -> Html:
    """An element.

    Parameters
    ----------
    name : str
        Of the element.
    *contents
        What it holds.
    **attributes
        By name, ``_`` for ``-`` and with one at the end for a word that Python has taken.  True
        stands alone, False and None are left out.
    """
    stated = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{stated}>")
    return Html(f"<{name}{stated}>{joined(*contents)}</{name}>")


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(printable(value))}"'


def _parts(contents: Iterable[Content]) -> Iterable[str]:
    for content in contents:
        if isinstance(content, Html):
            yield content
        elif isinstance(content, str | int | float):
            yield escaped(content)
        elif content is not None:
            yield from _parts(content)
