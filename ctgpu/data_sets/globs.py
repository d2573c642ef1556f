"""Globs of a data set's paths, in which ``{key}`` and ``{patient}`` stand for what they name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ctgpu.volume.ref import normal_form

_TOKEN = re.compile(r"((?<![^/])\*\*/|\*+|\?|\[!?\]?[^\]/]+\]|\[!?\]\]|\{\w+\})")
_MAGIC = re.compile(r"[*?\[{]")
_NAMES = ("key", "patient")
_BRACES = "it takes {key} and {patient}, once, and [{] for a brace itself"


class Found(NamedTuple):
    """A path that fits a glob, and what it says; None where the glob does not ask for it."""

    key: str | None = None
    patient: str | None = None


@functools.lru_cache(maxsize=1024)
def compiled(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression of whole paths.

    Parameters
    ----------
    glob : str
        ``**`` stands for any folders, ``*`` and ``?`` for what is within one name, ``[…]`` for one
        character, ``{key}`` and ``{patient}`` for a name or a part of one.

    Raises
    ------
    ValueError
        If it names something else in braces, or one of them twice, or no path can fit it, or a set
        in it is none.
    """
    folders = glob.split("/")
    if glob.startswith("/") or ".." in folders:
        raise ValueError(f"{glob!r} leads out of the source; write it relative to that")
    if not {"", "."}.isdisjoint(folders):
        raise ValueError(
            f"{glob!r} has a part that no path has; leave out './', '//' and a last '/'"
        )
    names: set[str] = set()
    parts = []
    for place, token in enumerate(_TOKEN.split(normal_form(glob))):
        if place % 2 == 0:
            if brace := re.search(r"\{[^}]*\}?|\}", token):
                raise ValueError(f"{glob!r} says {brace[0]}; {_BRACES}")
            parts.append(re.escape(token))
        elif token == "**/":
            parts.append("(?:[^/]+/)*")
        elif token.startswith("**"):
            parts.append(".*")
        elif token == "*":
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif token[0] == "[":
            parts.append(_set(token))
        else:
            name = token[1:-1]
            if name not in _NAMES or name in names:
                raise ValueError(f"{glob!r} says {token}; {_BRACES}")
            names.add(name)
            parts.append(f"(?P<{name}>[^/]+?)")
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{glob!r} has brackets that are no set: {error.msg}") from error


def _set(token: str) -> str:
    """A set of characters, such as ``[!a-f]``, as a regular expression of one within a name."""
    negated, inner = ("^", token[2:-1]) if token[1] == "!" != token[1:-1] else ("", token[1:-1])
    ranges = re.sub(
        r"(.)(-(?=.))?", lambda m: re.escape(m[1]) + (m[2] or ""), inner, flags=re.DOTALL
    )
    return f"(?!/)[{negated}{ranges}]"


def find(globs: Iterable[str], path: str) -> Found | None:
    """What the first glob that a path fits says of it; None where none fits."""
    path = normal_form(path)
    for glob in globs:
        if (match := compiled(glob).fullmatch(path)) is not None:
            return Found(**match.groupdict())
    return None


def glob_of_name(name: str) -> str:
    """A glob that a name fits, and nothing else."""
    return re.sub(r"([*?\[{}])", r"[\1]", name)


def folder_of(glob: str) -> str:
    """The folder that everything lies in which fits a glob; empty where that is the source."""
    folders = glob.split("/")[:-1]
    fixed = next((k for k, name in enumerate(folders) if _MAGIC.search(name)), len(folders))
    return "/".join(folders[:fixed])


def folders_of(globs: Iterable[str]) -> Iterator[str]:
    """The folders that all lies in which fits one of some globs; none within another."""
    folders = dict.fromkeys(map(folder_of, globs))
    for folder in folders:
        if not any(
            other != folder and f"{folder}/".startswith(f"{other}/" if other else "")
            for other in folders
        ):
            yield folder
