"""Prose at the width of a terminal, which breaks between words, and commands, which never do."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

from rich.cells import cell_len

# A command in backticks is one word, as it is to be copied.
_WORDS = re.compile(r"( *)((?:[^ `]*`[^`]*`)+[^ ]*|[^ ]+)")


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """A paragraph as lines.

    Parameters
    ----------
    text : str
        Words, and commands in backticks, which stay whole.
    width : int
        Columns of a line.  Only a word that is longer by itself goes beyond.
    indent : str
        What lines begin with.
    first : str, optional
        What the first one begins with instead.

    Returns
    -------
    list of str
        At least one.

    Examples
    --------
    >>> wrap("see `ctgpu presets` for more", 20)
    ['see `ctgpu presets`', 'for more']
    """
    line = indent if first is None else first
    lines, is_empty = [], True
    for gap, word in _WORDS.findall(text):
        # As wide as it was: it may be part of a file's name.
        if not is_empty and cell_len(line + gap + word) > width:
            lines.append(line)
            line = indent + word
        else:
            line += word if is_empty else gap + word
        is_empty = False
    return [*lines, line]


def shell_line(arguments: Iterable[str]) -> str:
    """A call of ``ctgpu`` that a shell takes, also where a name has to be written with escapes."""
    return " ".join(("ctgpu", *map(_quoted, arguments)))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # As bytes: a shell knows only the characters of its locale.
    escaped = (
        c
        if c.isprintable() and c not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
        for c in word
    )
    return f"$'{''.join(escaped)}'"
