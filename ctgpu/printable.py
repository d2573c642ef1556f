"""Text that is shown: from outside made safe (file names, reports, headers), and numbers in words.

A terminal obeys control characters, and a reader of logs believes that a line is one event.  So
whatever is shown goes through here on its way out, in the sinks (:mod:`ctgpu.cli.terminal`), and no
caller has to think of it.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: object) -> str:
    r"""`text` on one line, what cannot be seen in it written as an escape such as ``\x1b``.

    Escaped are control characters, what turns the direction of writing or has no width, separators
    of lines and paragraphs, and bytes of a file name that are no UTF-8; spaces of any width stay.

    Examples
    --------
    >>> printable("valid_1\n\x1b[2J")
    'valid_1\\n\\x1b[2J'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def printable_lines(text: object, indent: str = "") -> str:
    """Like :func:`printable`, but lines stay lines, each with `indent` before it.

    For what is shown as a block: a report in its table cell, a traceback below its log line.
    """
    lines = str(text).replace("\r\n", "\n").split("\n")
    return "\n".join(indent + printable(line) for line in lines)


def counted(number: int, one: str, many: str | None = None, *, grouped: bool = False) -> str:
    """A number of things in words.

    Parameters
    ----------
    number : int
        How many.
    one : str
        What one of them is called.
    many : str, optional
        What others are called; by default `one` with an s.
    grouped : bool
        Whether thousands are parted by commas.

    Examples
    --------
    >>> counted(1, "shard"), counted(0, "shard"), counted(2, "axis", "axes")
    ('1 shard', '0 shards', '2 axes')
    """
    digits = f"{number:,}" if grouped else str(number)
    return f"{digits} {one if number == 1 else many or f'{one}s'}"


def to_json(value: object) -> str:
    r"""One line of strict JSON in ASCII, which any parser reads and any terminal shows.

    NaN and infinite numbers become ``null``; bytes of a file name that are no UTF-8, which JSON
    cannot hold, become text such as ``\xff``.
    """
    # DEL is the one control character that JSON may hold as it is.
    return json.dumps(_strict(value), allow_nan=False).replace("\x7f", r"\u007f")


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if character in _NAMED:
        return _NAMED[character]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _strict(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(_shown(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
