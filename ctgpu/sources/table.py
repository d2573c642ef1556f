"""One table of a source, by the volumes that its rows are about."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from ctgpu.errors import TableError, UsageError, reason_of
from ctgpu.printable import counted
from ctgpu.shards.untrusted import read_file
from ctgpu.sources.cells import ANY, in_words, is_usable, number_in
from ctgpu.sources.table_files import BINARY_SUFFIXES, Row, rows_of
from ctgpu.sources.text import encoding_of, no_text
from ctgpu.volume.ref import normal_form, strip_volume_suffix

_log = logging.getLogger(__name__)

# Of fewer rows, all may be wrong by accident; of so many, the column is another one.
_MANY_ROWS = 16
#: Reports of 50,000 scans take a tenth of it.
TABLE_LIMIT_BYTES = 1 << 30
_CONTRADICTION = "rows that contradict each other"
_NO_WORDS: Mapping[str, float] = MappingProxyType({})

#: Reads the first of some small files that exists: its path and its bytes, or None.
Read = Callable[..., tuple[str, bytes] | None]


def read_first(read: Read, paths: Sequence[str]) -> tuple[str, bytes] | None:
    """The first of some files that exists, by path, and its bytes; else None.

    Parameters
    ----------
    read : callable
        Reads those that lie below the source.
    paths : sequence of str
        Best first; one that is absolute lies on this machine, whatever the source is.

    Raises
    ------
    UsageError
        If an absolute one cannot be read.
    """
    for path in paths:
        if path.startswith("/"):
            try:
                return path, read_file(Path(path), TABLE_LIMIT_BYTES)
            except OSError as error:
                raise UsageError(
                    f"{path} cannot be read: {reason_of(error)}; bring the table back"
                ) from error
    return read(*paths) if paths else None


class Table:
    """One table, keyed by study id.

    Parameters
    ----------
    path : str
        For messages.
    columns : list of str
        Those kept, without the volume's name.
    rows : mapping
        By study id the cells in the order of `columns`, or what is wrong with them.
    lines : sequence of int
        For each of `rows` the line of the file, from 1, in which it begins; empty where unknown.
    key : str
        The column that names the volumes.
    """

    def __init__(
        self,
        path: str,
        columns: list[str],
        rows: Mapping[str, list[str] | str],
        lines: Sequence[int] = (),
        key: str = "",
    ) -> None:
        self.path = path
        self.key = key
        self._columns = columns
        self._rows = {normal_form(study_id): row for study_id, row in rows.items()}
        self._lines = lines

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, study_id: str) -> bool:
        return normal_form(study_id) in self._rows

    @classmethod
    def read(
        cls,
        path: str,
        content: bytes,
        keys: Sequence[str],
        required: Iterable[str] = (),
        optional: Iterable[str] | None = (),
    ) -> Table:
        """A table out of its file.

        Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; bytes that are none are replaced
        by U+FFFD, with one warning per file.

        Parameters
        ----------
        path : str
            For messages; its suffix tells the format.
        content : bytes
            The file.
        keys : sequence of str
            The column that names the volumes; of several, the first that there is.
        required, optional : iterable of str
            The columns to keep; with ``optional=None``, all.

        Raises
        ------
        UsageError
            If it lacks a column, or has one twice, or is no table.
        """
        wanted = None if optional is None else frozenset((*required, *optional))
        needed = tuple(dict.fromkeys(required))
        try:
            try:
                return cls._of_rows(path, rows_of(path, content), keys, needed, wanted)
            except UnicodeDecodeError:
                rows = rows_of(path, content, "replace")
                result = cls._of_rows(path, rows, keys, needed, wanted)
        except UsageError as error:
            is_text = not path.lower().endswith(BINARY_SUFFIXES)
            if is_text and (instead := no_text(content)) is not None:
                raise UsageError(f"{path} {instead}") from error
            raise
        _log.warning(
            "%s is not %s; bytes that cannot be read are replaced by U+FFFD",
            *(path, encoding_of(content)),
        )
        return result

    @classmethod
    def _of_rows(
        cls,
        path: str,
        lines: Iterable[Row],
        keys: Sequence[str],
        needed: Sequence[str],
        wanted: frozenset[str] | None,
    ) -> Table:
        lines = iter(lines)
        header = [name.strip() for name in next(lines, (1, []))[1]]
        key_name = next((name for name in keys if name in header), keys[0])
        if missing := [name for name in (key_name, *needed) if name not in header]:
            raise UsageError(
                f"{path} lacks the column{'s' if len(missing) > 1 else ''} "
                f"{', '.join(missing)}; it has {', '.join(header)[:200] or 'none'}"
            )
        key = header.index(key_name)
        places = [
            k for k, name in enumerate(header) if k != key and (wanted is None or name in wanted)
        ]
        kept = [key_name, *(header[k] for k in places)]
        if doubled := [n for n in dict.fromkeys(kept) if n and header.count(n) > 1]:
            raise UsageError(
                f"{path} has more than one column of the name {', '.join(doubled)[:200]}; "
                "rename all but one"
            )
        rows: dict[str, list[str] | str] = {}
        # Eight bytes a row, where a mapping would take a hundred.
        begins = array("Q")
        for begin, cells in lines:
            study_id = study_id_in(cells[key]) if len(cells) > key else ""
            if not study_id:
                continue
            row: list[str] | str
            if len(cells) == len(header):
                row = [cells[k] for k in places]
            else:
                row = (
                    f"a row of {counted(len(cells), 'value')} for {counted(len(header), 'column')}"
                )
            known = rows.setdefault(study_id, row)
            if len(rows) > len(begins):
                begins.append(begin)
            if known != row:
                rows[study_id] = _CONTRADICTION
        return cls(path, [header[k] for k in places], rows, begins, key_name)

    def renamed(self, aliases: Mapping[str, str]) -> Table:
        """The same table with study ids in the place of their aliases.

        Two rows that then are of one volume contradict each other unless they say the same.
        """
        rows: dict[str, list[str] | str] = {}
        lines = array("Q")
        for place, (name, row) in enumerate(self._rows.items()):
            known = rows.setdefault(aliases.get(name, name), row)
            if len(rows) > len(lines):
                lines.append(self._lines[place] if place < len(self._lines) else 0)
            if known != row:
                rows[aliases.get(name, name)] = _CONTRADICTION
        return Table(self.path, self._columns, rows, lines, self.key)

    @property
    def columns(self) -> Sequence[str]:
        """Those kept, in the order of the header, without the volume's name."""
        return self._columns

    def find(self, study_id: str) -> dict[str, str] | None:
        """The row of a study, without the volume's name; None where there is none.

        Raises
        ------
        TableError
            If there are rows that contradict each other, or one of another width than the header.
        """
        if study_id not in self:
            return None
        cells = self._rows[normal_form(study_id)]
        if isinstance(cells, str):
            raise TableError(
                f"{self.path} has {cells} for {study_id}{self.in_line(study_id)}; correct them"
            )
        return dict(zip(self._columns, cells, strict=True))

    def number(
        self,
        row: Mapping[str, str],
        study_id: str,
        column: str,
        within: tuple[float, float] = ANY,
        words: Mapping[str, float] = _NO_WORDS,
    ) -> float:
        """A cell as a number; NaN where it is missing, empty or says so.

        Parameters
        ----------
        row, study_id, column
            Which cell: of :meth:`find`.
        within : tuple of float
            Lowest and highest value.
        words : mapping
            What cells that are no numbers stand for.

        Raises
        ------
        TableError
            If it is something else.
        """
        text = row.get(column, "")
        if words and (value := words.get(text.strip().casefold())) is not None:
            return value
        try:
            return number_in(text, within)
        except ValueError:
            also = f", or {', '.join(words)}" if words else ""
            raise TableError(
                f"{self.path} has {column} {text[:60]!r}{self.in_line(study_id)} for {study_id}; "
                f"wanted a number{in_words(within)}{also}"
            ) from None

    def require_usable(
        self,
        columns: Iterable[str],
        within: tuple[float, float] = ANY,
        words: Collection[str] = (),
    ) -> None:
        """Refuse a table with a column in which no row has a number: it is another one.

        Parameters
        ----------
        columns : iterable of str
            Those to look at.
        within, words
            As :meth:`number` takes them.

        Raises
        ------
        UsageError
            If there is one, in a table of many rows.
        """
        if len(self) < _MANY_ROWS:
            return

        def is_one(cell: str) -> bool:
            return cell.strip().casefold() in words or is_usable(cell, within)

        for column in columns:
            place = self._columns.index(column)
            cells = (row[place] for row in self._rows.values() if not isinstance(row, str))
            if (first := next(cells, None)) is None:
                return
            if not is_one(first) and not any(map(is_one, cells)):
                raise UsageError(
                    f"{self.path} has no usable value in the column {column}, only such as "
                    f"{first[:60]!r}; wanted numbers{in_words(within)}: correct the column"
                )

    def in_line(self, study_id: str) -> str:
        """Where the row of a study is, as part of a sentence; empty where that is not known."""
        line = self._line_of.get(normal_form(study_id))
        return "" if line is None else f" in line {line}"

    @cached_property
    def _line_of(self) -> Mapping[str, int]:
        return dict(zip(self._rows, self._lines, strict=False))


def study_id_in(cell: str) -> str:
    """The study that a cell names: a study id, or a file with or without folders."""
    return normal_form(strip_volume_suffix(cell.strip().rsplit("/", 1)[-1]))
