"""In which line of a TOML file a field stands, for messages: the parser does not tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A text in quotes, over several lines first, or a comment.
_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
_NAME = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[\w-]+)"
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*")
_FIELD = re.compile(rf"\s*({_DOTTED})\s*=")
_PART = re.compile(_NAME)


def line_of(text: str, field: str) -> int | None:
    """The line, from 1, of a field or else of what it is within; None where that is not seen.

    Parameters
    ----------
    text : str
        The file.
    field : str
        Such as ``tables[0].key`` or ``splits.train.volumes[1]``.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix = ""
    depth = 0
    for number, line in enumerate(_OPAQUE.sub(_in_one_line, text).split("\n"), 1):
        if depth == 0 and (header := _HEADER.fullmatch(line)) is not None:
            *outer, last = _PART.findall(header[2])
            prefix = _joined("", outer, counts)
            last = _joined(prefix, [last], {})
            if header[1] == "[[":
                counts[last] = counts.get(last, -1) + 1
            prefix = f"{last}[{counts[last]}]" if last in counts else last
            _note(lines, prefix, number)
            continue
        if depth == 0 and (found := _FIELD.match(line)) is not None:
            _note(lines, _joined(prefix, _PART.findall(found[1]), {}), number)
        bare = _OPAQUE.sub("", line)
        depth += sum(map(bare.count, "[{")) - sum(map(bare.count, "]}"))
    while field:
        if field in lines:
            return lines[field]
        field = _outer(field)
    return None


def _outer(field: str) -> str:
    """What a field is within; empty where that is the file."""
    return re.sub(r"(?:\[[^\]]*\]|\.?[^.\[\]]+|.)\Z", "", field, flags=re.DOTALL)


def _note(lines: dict[str, int], field: str, number: int) -> None:
    """Take down the line of a field, and of what it is within where nothing stood before."""
    while field and field not in lines:
        lines[field] = number
        field = _outer(field)


def _in_one_line(found: re.Match[str]) -> str:
    """A text as it is, or as long as it was and empty where it takes several lines."""
    if found[0].startswith("#"):
        return ""
    return found[0] if "\n" not in found[0] else '""' + "\n" * found[0].count("\n")


def _joined(prefix: str, names: Sequence[str], counts: dict[str, int]) -> str:
    """A field within another one; of sections that repeat, the last."""
    for name in names:
        prefix = f"{prefix}.{name.strip(chr(34) + chr(39))}".removeprefix(".")
        if prefix in counts:
            prefix = f"{prefix}[{counts[prefix]}]"
    return prefix
