"""What callers pass to a function, held against what it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.errors import UsageError

_LONGEST = 60


def shown(value: object) -> str:
    """A value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of some words.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} is {shown(value)}; it is {' or '.join(choices)}")


def require_kind(
    name: str, value: object, kind: type | tuple[type, ...], wanted: str, *, optional: bool = True
) -> None:
    """Refuse what is of another type; None was not given, where that may be.

    Parameters
    ----------
    name : str
        What a message calls it.
    value : object
        What was passed.
    kind : type or tuple of type
        What it is to be.
    wanted : str
        That in words.
    optional : bool
        Whether it may be None.

    Raises
    ------
    UsageError
    """
    if (optional and value is None) or isinstance(value, kind):
        return
    raise UsageError(f"{name} is {shown(value)}; wanted {wanted}")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false: a text is true whatever it says.

    Raises
    ------
    UsageError
    """
    require_kind(name, value, (bool, np.bool_), "True or False", optional=False)


def path_of(name: str, value: Any) -> Path:
    """A path that a caller passes as text or as a path.

    Raises
    ------
    UsageError
        If it is neither, or names no file.
    """
    require_kind(name, value, (str, PathLike), "a path", optional=False)
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise UsageError(f"{name} is {shown(path)}; wanted a path")
    return Path(path)


def plain(value: Any) -> Any:
    """A scalar of NumPy as one of Python, which JSON holds; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
