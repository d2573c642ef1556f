"""What a cell of a table says."""

from __future__ import annotations

import math
import re

# What Python's float takes beyond that (1_0, digits of other scripts, infinity) is a typing error.
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan)", re.ASCII | re.I)
#: Where no bounds were named.
ANY = (-math.inf, math.inf)


def is_blank(text: str) -> bool:
    """Whether a cell says nothing: empty, NaN or "Not given."."""
    return text.strip().rstrip(".").casefold() in ("", "nan", "not given")


def is_usable(text: str, within: tuple[float, float]) -> bool:
    """Whether :func:`number_in` takes a cell."""
    try:
        number_in(text, within)
    except ValueError:
        return False
    return True


def in_words(within: tuple[float, float]) -> str:
    """How a sentence about a number goes on: where it must lie."""
    return "" if within == ANY else f" from {within[0]:g} to {within[1]:g}, or nothing"


def number_in(text: str, within: tuple[float, float] = ANY) -> float:
    """A cell as a finite decimal number, NaN where it is blank; a ValueError if it is neither."""
    if not _NUMBER.fullmatch(text.strip()):
        if is_blank(text):
            return math.nan
        raise ValueError(f"{text!r} is no number")
    value = float(text)
    if value < within[0] or value > within[1] or math.isinf(value):
        raise ValueError(f"{text!r} is no number{in_words(within)}")
    return value
