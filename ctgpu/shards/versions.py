"""Which version of the format a file is of, and what to say of one that is too new.

A file is of the first version unless it says what only a later one can say: so data sets that do
without are the same bytes as ever, and an older ctgpu goes on reading them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctgpu.errors import NewerFormatError
from ctgpu.shards.untrusted import decode

Kind = Literal["plan", "shard", "manifest"]

FIRST, SECOND, THIRD, FOURTH, FIFTH = 1, 2, 3, 4, 5

#: Of each kind of file, the newest version that this ctgpu writes.
_NEWEST: dict[Kind, int] = {"plan": FIFTH, "shard": FOURTH, "manifest": FOURTH}

_STATED = re.compile(r"ctgpu-([a-z]+)-([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class _Formatted:
    format: str


def format_name(kind: Kind, version: int) -> str:
    """What a file of the version states, such as ``"ctgpu-plan-1"``."""
    return f"ctgpu-{kind}-{version}"


def parse_version(stated: str, kind: Kind) -> int:
    """The version that :func:`format_name` was given.

    Raises
    ------
    NewerFormatError
        If this ctgpu does not know it yet.
    ValueError
        If it is no version of such a file.
    """
    match = _STATED.fullmatch(stated)
    if match is None or match[1] != kind:
        raise ValueError(f"its format is not {format_name(kind, FIRST)}")
    if (version := int(match[2])) > (newest := _NEWEST[kind]):
        raise NewerFormatError(f"its format is {stated}, and {format_name(kind, newest)} is known")
    return version


def version_of(content: bytes, kind: Kind) -> int:
    """The version that the ``format`` of a JSON object states; whatever else it holds.

    Raises
    ------
    NewerFormatError, ValueError
        As :func:`parse_version`.
    """
    return parse_version(decode(content, _Formatted).format, kind)


def of_newer(path: Path, error: NewerFormatError) -> NewerFormatError:
    """What was found too new, with the file that it was found in, and the way out."""
    return NewerFormatError(
        f"{path} was written by a newer ctgpu; update ctgpu to go on with it ({error})"
    )
