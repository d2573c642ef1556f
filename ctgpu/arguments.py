"""What callers pass to a function, held against what it takes."""

from __future__ import annotations

import numbers
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from ctgpu.errors import UsageError

#: Largest number of anything that may be asked for, where nothing else bounds it.
MOST = 10**9
#: Threads that fetch: past some hundred, no source and no machine gets faster.
MOST_WORKERS = 1024
#: What a size in bytes, or a seed, is counted up to.
MOST_INT64 = 2**63 - 1

#: What an option is about: the groups of ``--help``.
Group = Literal["what", "where", "contract", "machine", "again"]

_LONGEST = 60
_T = TypeVar("_T")

_LEARNING = threading.Lock()
_LEARNED: set[Any] = set()


class _Unsaid:
    """Marks a missing value where None is a value."""


UNSAID = _Unsaid()
#: Likewise, of what is recorded only where it is given.
WHERE_GIVEN = _Unsaid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How the command line offers a field of a dataclass, and what the field takes.

    Attributes
    ----------
    help : str
        In ``--help``.
    flag : str or None
        Default the field's name.
    written : {"plain", "path", "size", "range", "numbers", "number"}
        In which notation: ``8G`` is a size in bytes, ``0-9`` a range, ``1,2,3`` are numbers.
    example : str
        Of numbers.
    choices : tuple of str
        The words that it takes; empty for any.
    least, most : int
        Of whole numbers.
    selects : object
        What a plan records where the option is not given: ``WHERE_GIVEN`` for nothing, ``UNSAID``
        where plans do not record it at all.
    none : str or None
        The word that stands for None, where that is a value.
    group : str
        What it is about.
    """

    help: str
    flag: str | None = None
    written: Literal["plain", "path", "size", "range", "numbers", "number"] = "plain"
    example: str = ""
    choices: tuple[str, ...] = ()
    least: int = 1
    most: int = MOST
    selects: Any = UNSAID
    none: str | None = None
    group: Group = "what"


def option(default: Any = None, **how: Any) -> Any:
    """A field of a dataclass that the command line offers, as :class:`Option` says."""
    return field(default=default, metadata={"option": Option(**how)})


def options_of(kind: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of a dataclass that the command line offers, and how."""
    for one in fields(kind):
        if (offered := one.metadata.get("option")) is not None:
            yield one, offered


def checked(one: Field[Any], value: Any) -> Any:
    """A value as its field takes it: NumPy's scalars become Python's, text a path.

    Raises
    ------
    UsageError
        If the field takes something else.
    """
    value, offered = plain(value), one.metadata.get("option")
    if value is None or offered is None:
        return value
    kind = str(one.type).removesuffix(" | None")
    if offered.choices:
        require_choice(one.name, value, offered.choices)
    elif kind == "int":
        require_whole_number(one.name, value, least=offered.least, most=offered.most)
    elif kind == "bool":
        require_flag(one.name, value)
    elif kind == "str":
        require_kind(one.name, value, str, "text")
    elif offered.written == "path":
        return path_of(one.name, value)
    return value


def shown(value: object) -> str:
    """A value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of some words.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} is {shown(value)}; it is {' or '.join(choices)}")


def require_kind(
    name: str, value: object, kind: type | tuple[type, ...], wanted: str, *, optional: bool = True
) -> None:
    """Refuse a value of another type; None counts as not given if `optional`.

    Parameters
    ----------
    name : str
        What a message calls it.
    value : object
        What was passed.
    kind : type or tuple of type
        The types that are taken.
    wanted : str
        The same in words.
    optional : bool
        Whether it may be None.

    Raises
    ------
    UsageError
    """
    if (optional and value is None) or isinstance(value, kind):
        return
    raise UsageError(f"{name} is {shown(value)}; wanted {wanted}")


def require_whole_number(name: str, value: int | None, *, least: int = 1, most: int = MOST) -> None:
    """Refuse all but whole numbers from `least` to `most`; None counts as not given.

    Raises
    ------
    UsageError
        Naming the option `name`.
    """
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or not least <= value <= most:
        raise UsageError(
            f"{name} is {shown(value)}; it takes a whole number from {least} to {most}"
        )


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false: a text is true whatever it says.

    Raises
    ------
    UsageError
    """
    require_kind(name, plain(value), bool, "True or False", optional=False)


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


def converted(values: Any, kind: type[_T]) -> _T:
    """Values of JSON as a type that ``msgspec`` knows, such as a dataclass.

    Raises
    ------
    ValueError
        If they are anything else; the message says where.
    """
    learn(kind)
    return msgspec.convert(values, kind)


def learn(kind: Any) -> None:
    """Let ``msgspec`` look at a type, in one thread at a time.

    It does so when the type is first used, and a second thread that uses the type meanwhile works
    with a half-made description of it, which crashes the process (msgspec 0.22).
    """
    if kind not in _LEARNED:
        with _LEARNING:
            msgspec.json.Decoder(kind)
            _LEARNED.add(kind)


def plain(value: Any) -> Any:
    """A scalar of NumPy as one of Python, which JSON holds; anything else as it is."""
    numpy = sys.modules.get("numpy")  # its scalars exist only once it is imported
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value
