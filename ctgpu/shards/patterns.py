"""Which tars a path or a pattern names: one grammar for loader, verify, convert and inspect.

``{000000..000314}`` and ``{a,b}`` stand for each of their values, ``*``, ``?`` and ``[…]`` for what
exists.  A path that exists means itself, and so does each of its folders: what looks like a pattern
in ``runs/x[ab]/shard-*.tar`` is one only where there is no folder ``runs/x[ab]``.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ctgpu.errors import UsageError
from ctgpu.shards.names import natural_key

_SPECIAL = re.compile(r"[*?\[{]")
# As in a shell, braces around a single value stand for themselves.
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_NUMBERS = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MOST_TARS = 1_000_000


def is_tar_name(name: str) -> bool:
    """Whether a file is called as a tar is; a shard's record and index are not."""
    return name.endswith(".tar")


def expand_pattern(pattern: str | os.PathLike[str]) -> list[Path]:
    """Every tar that a pattern names, in natural order, those that are not there included.

    Parameters
    ----------
    pattern : str or path
        A folder (its ``*.tar``), a tar, or a pattern of either.

    Raises
    ------
    UsageError
        If it names nothing.
    """
    tars: list[Path] = []
    for path in expand_paths(pattern):
        if os.path.isdir(path):
            within = _glob(os.path.join(path, ""), "*.tar", is_tar_name)
            tars += map(Path, sorted(within, key=natural_key))
        else:
            tars.append(path)
    if not tars:
        raise UsageError(
            f"{os.fspath(pattern)} names no tar; give a folder of shards, a tar, or a quoted "
            "pattern such as 'shards/shard-{000000..000009}.tar'"
        )
    return list(dict.fromkeys(tars))


def expand_paths(
    pattern: str | os.PathLike[str], matched: Callable[[str], bool] = is_tar_name
) -> list[Path]:
    """Every folder and file that a pattern names, in natural order.

    Parameters
    ----------
    pattern : str or path
        As :func:`expand_pattern` takes it.
    matched : callable
        By their names, which of the files that ``*``, ``?`` and ``[…]`` match are meant; folders
        that they match at the end of a pattern are not.  What is named without them is always.

    Returns
    -------
    list of Path
        Those that are named in full are in it also where they do not exist; none where only what
        exists was asked for, and nothing does.

    Raises
    ------
    UsageError
        If the pattern is empty, a range is not one, or it names more than a million paths.
    """
    text = os.fspath(pattern)
    if not text:
        raise UsageError("the path is empty; give a folder of shards, or '.' for this one")
    found = list(itertools.islice(_expand("", text, matched), _MOST_TARS + 1))
    if len(found) > _MOST_TARS:
        raise UsageError(f"{text} names more than {_MOST_TARS:,} tars; give smaller ranges")
    return [Path(path) for path in sorted(set(found), key=natural_key)]


def _expand(stem: str, text: str, matched: Callable[[str], bool]) -> Iterator[str]:
    """What `text` names after `stem`, which stands for itself."""
    special = _SPECIAL.search(text)
    if special is None:
        yield stem + text
        return
    start = text.rfind("/", 0, special.start()) + 1
    stem, text = stem + text[:start], text[start:]
    part, rest = _first_part(text)
    if os.path.lexists(stem + part):
        yield from _expand(stem + part, rest, matched)
    elif braces := _BRACES.search(part):
        for value in _values(braces):
            yield from _expand(
                stem, part[: braces.start()] + value + part[braces.end() :] + rest, matched
            )
    elif glob.has_magic(part):
        if not rest:
            yield from _glob(stem, part, matched)
        else:
            for path in glob.glob(glob.escape(stem) + part):
                yield from filter(os.path.lexists, _expand(path, rest, matched))
    else:
        yield from _expand(stem + part, rest, matched)


def _glob(stem: str, part: str, matched: Callable[[str], bool]) -> Iterator[str]:
    """The files that match `part` after `stem`."""
    for path in glob.glob(glob.escape(stem) + part):
        if matched(os.path.basename(path)) and not os.path.isdir(path):
            yield path


def _first_part(text: str) -> tuple[str, str]:
    """Split before the first slash that is not within braces."""
    depth = 0
    for place, character in enumerate(text):
        if character == "/" and depth == 0:
            return text[:place], text[place:]
        depth += (character == "{") - (character == "}" and depth > 0)
    if depth:  # a brace that is never closed holds nothing together
        part, slash, rest = text.partition("/")
        return part, slash + rest
    return text, ""


def _values(braces: re.Match[str]) -> Iterable[str]:
    if "," in braces[1]:
        return braces[1].split(",")
    numbers = _NUMBERS.fullmatch(braces[1])
    if numbers and len(braces[1]) < 64:
        first, last = int(numbers[1]), int(numbers[2])
        if first <= last < first + _MOST_TARS:
            return (f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1))
    raise UsageError(
        f"{braces.string}: {braces[0]} is no range of at most {_MOST_TARS:,} numbers; write "
        "{000000..000314}"
    )
