"""What the tables of a folder that nobody has described say about its volumes.

A table is joined where one of its columns names volumes.  Of its other columns the content decides,
and for reports the name: what stays open is named, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import msgspec

from ctgpu.data_sets import Description
from ctgpu.data_sets.fields import TableRule
from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.sources.cells import ANY, is_blank, is_usable
from ctgpu.sources.table import study_id_in
from ctgpu.sources.table_files import BINARY_SUFFIXES, rows_of
from ctgpu.sources.text import no_text

_REPORT = re.compile(r"report|finding|impression|conclusion|diagnosis text|narrative", re.I)
_PATIENT = re.compile(r"(patient|subject|participant|person)([ _-]?(id|name|key))?", re.I)
# A word of its own: a folder is no fold.
_SPLIT = re.compile(
    r"(?:^|[^a-zA-Z]|(?<=[a-z])(?=[A-Z]))(?i:split|subset|fold|partition)s?(?![a-z])"
)
# What a report's name may be about besides its words.
_OF_REPORT = re.compile(r"(?:[ _-]|(?<=[a-z]))(?:[Ii][Dd]|UID|[Dd]ate|[Tt]ime|[Cc]ode|[Ff]ile)$")
# Numbers that are often from 0 to 1, and no labels.
_SIZE = re.compile(r"spacing|thickness|slope|intercept|voxel|pixel|^unnamed", re.I)
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "positive": 1.0, "negative": 0.0}
_SHARES = (0.0, 1.0)
#: A cell of so many characters is a text, whatever its column is called.
_LONG_TEXT = 80
_MOST_SPLITS = 8
_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SeenTable:
    """A table that was looked at.

    Attributes
    ----------
    path : str
        Where it is.
    key : str or None
        The column that names volumes; None where none does.
    rows, volumes : int
        Of the table, and of the volumes that have a row in it.
    labels, text : tuple of str
        Columns of numbers from 0 to 1 or of words such as True, and of reports.
    words : dict of str to float
        What the words in the columns of labels stand for.
    patient, split : str or None
        Columns that may name whom a volume shows, and which split it belongs to.
    open : tuple of str
        Columns of which nothing is known.
    fault : str or None
        Why it cannot be read.
    contradicts : str or None
        What is wrong with rows of a volume, which would fail by that; None where nothing is.
    """

    path: str
    key: str | None = None
    rows: int = 0
    volumes: int = 0
    labels: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    words: Mapping[str, float] = field(default_factory=dict)
    patient: str | None = None
    split: str | None = None
    open: tuple[str, ...] = ()
    fault: str | None = None
    contradicts: str | None = None


def look_at_table(
    path: str,
    content: bytes,
    study_ids: Collection[str],
    key: str | None = None,
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> SeenTable:
    """What a table says about some volumes.

    Parameters
    ----------
    path : str
        Its suffix tells the format.
    content : bytes
        The file.
    study_ids : collection of str
        Of the volumes, in normal form.
    key : str, optional
        The column that names volumes; by default the one that names most of them, the first of
        several.
    aliases : mapping of str to str
        What a table may call volumes beside their study ids, and these.

    Raises
    ------
    UsageError
        If there is no such column.
    """

    def named_in(cell: str) -> str:
        name = study_id_in(cell)
        return aliases.get(name, name)

    is_text = not path.lower().endswith(BINARY_SUFFIXES)
    if is_text and (instead := no_text(content)) is not None:
        return SeenTable(path, fault=f"{path} {instead}")
    try:
        lines = [cells for _, cells in rows_of(path, content, "replace")]
    except UsageError as error:
        return SeenTable(path, fault=str(error))
    header = [name.strip() for name in lines[0]] if lines else []
    rows = [cells for cells in lines[1:] if len(cells) == len(header)]
    # Of columns of one name none can be told from the other.
    places = {name: k for k, name in enumerate(header) if name and header.count(name) == 1}
    doubled = [n for n in dict.fromkeys(header) if n and n not in places]
    columns = {name: [cells[k] for cells in rows] for name, k in places.items()}
    if key is not None and key not in columns:
        raise UsageError(
            f"key_column is {key!r}, and {path} has no such column, only "
            f"{', '.join(columns)[:200] or 'none'}; pass --key-column with one of these"
        )
    named = {
        name: {study_id for cell in columns[name] if (study_id := named_in(cell)) in study_ids}
        for name in ([key] if key is not None else columns)
    }
    best = max(named, key=lambda name: len(named[name]), default=None)
    if best is None or (not named[best] and key is None):
        return SeenTable(path, rows=len(rows), open=(*columns, *doubled))
    seen = SeenTable(path, best, len(rows), len(named[best]), open=tuple(doubled))
    seen = _with_roles(seen, {name: cells for name, cells in columns.items() if name != best})
    used = [places[name] for name in (*seen.labels, *seen.text, seen.patient) if name is not None]
    return replace(
        seen,
        contradicts=_contradiction(lines[1:], len(header), places[best], used, study_ids, named_in),
    )


def _contradiction(
    rows: Iterable[Sequence[str]],
    width: int,
    key: int,
    used: Sequence[int],
    study_ids: Collection[str],
    named_in: Callable[[str], str],
) -> str | None:
    """The first volume whose rows no sample could be made of, and why; None where all are good."""
    known: dict[str, list[str]] = {}
    for cells in rows:
        study_id = named_in(cells[key]) if len(cells) > key else ""
        if study_id not in study_ids:
            continue
        if len(cells) != width:
            return (
                f"a row of {counted(len(cells), 'value')} for {counted(width, 'column')} for "
                f"{study_id}"
            )
        said = [cells[k] for k in used]
        if known.setdefault(study_id, said) != said:
            return f"rows that contradict each other for {study_id}"
    return None


def describe_tables(base: Description, tables: Iterable[SeenTable]) -> Description:
    """A description with what was recognised: labels, reports and patients, of one table each.

    Parameters
    ----------
    base : Description
        The rest of it.
    tables : iterable of SeenTable
        Where two say the same, the one that knows more volumes counts, the first of several.  None
        counts whose rows contradict each other: nobody has asked for it, and its volumes would
        fail.
    """
    rules: list[TableRule] = []
    taken: set[str] = set()
    for seen in sorted(tables, key=lambda seen: -seen.volumes):
        if seen.key is None or seen.volumes == 0 or seen.contradicts is not None:
            continue
        says = {"labels": seen.labels, "text": seen.text, "patient": seen.patient}
        new: dict[str, Any] = {
            name: value for name, value in says.items() if value and name not in taken
        }
        if not new:
            continue
        taken |= new.keys()
        if "labels" in new and seen.words:
            new["label_words"] = dict(seen.words)
        rules.append(msgspec.convert({"files": (seen.path,), "key": seen.key, **new}, TableRule))
    return msgspec.structs.replace(base, tables=(*base.tables, *rules))


def _with_roles(seen: SeenTable, columns: Mapping[str, Sequence[str]]) -> SeenTable:
    labels, text, left = [], [], []
    words: dict[str, float] = {}
    patient = split = None
    for name, cells in columns.items():
        said = [cell.strip() for cell in cells if not is_blank(cell)]
        distinct = set(said)
        if not said:
            left.append(name)
        elif _PATIENT.fullmatch(name) and patient is None:
            patient = name
        elif _SPLIT.search(name) and split is None and len(distinct) <= _MOST_SPLITS:
            split = name
        elif all(cell.casefold() in _WORDS or is_usable(cell, _SHARES) for cell in distinct):
            if _SIZE.search(name):
                left.append(name)
                continue
            labels.append(name)
            words |= {c: _WORDS[c.casefold()] for c in distinct if c.casefold() in _WORDS}
        elif _is_report(name, distinct):
            text.append(name)
        else:
            left.append(name)
    return replace(
        seen,
        labels=tuple(labels),
        text=tuple(text),
        words=dict(sorted(words.items())),
        patient=patient,
        split=split,
        open=(*left, *seen.open),
    )


def _is_report(name: str, distinct: Collection[str]) -> bool:
    """Whether cells are sentences, by the name of their column or by their length."""
    if all(is_usable(cell, ANY) for cell in distinct):
        return False
    if _REPORT.search(name) and not _OF_REPORT.search(name):
        return True
    # Paths and addresses are long too, and have no spaces.
    longest = max(distinct, key=len)
    return len(longest) >= _LONG_TEXT and (" " in longest or not re.search(r"[/\\]", longest))
