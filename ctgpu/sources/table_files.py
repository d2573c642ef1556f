"""The rows of a table as text, whatever kind of file it is."""

from __future__ import annotations

import csv
import datetime
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ctgpu.decode.mistaken import HEAD_BYTES, mistaken_for
from ctgpu.errors import UsageError
from ctgpu.installation import install_command
from ctgpu.sources.text import text_of

#: Of files that are read as tables.
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".parquet")

#: Of those among them that are no text.
BINARY_SUFFIXES = (".xlsx", ".xlsm", ".parquet")

_EXTRA = "tables"
_QUOTED = re.compile(r'"[^"]*"?')
_PARQUET_ROWS = 4096

#: The line that a row begins in, from 1, and its cells.
Row = tuple[int, list[str]]


def rows_of(path: str, content: bytes, errors: str = "strict") -> Iterator[Row]:
    """The rows of a table, its header first.

    Parameters
    ----------
    path : str
        Its suffix tells the format: ``.parquet``, ``.xlsx`` (its first sheet), or else text, with
        tabs where the suffix is ``.tsv`` or ``.tab``, with the separator that its header has where
        that is not a comma.
    content : bytes
        The file.
    errors : {"strict", "replace"}
        What to do about bytes that are no text.

    Raises
    ------
    UsageError
        If it cannot be read as that, or the extra is missing that reads it.
    UnicodeDecodeError
        If `errors` is "strict" and it is not in the encoding that it seems to be in.
    """
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    if suffix in BINARY_SUFFIXES and (instead := mistaken_for(content[:HEAD_BYTES])) is not None:
        raise UsageError(f"{path} {instead}")
    if suffix == ".parquet":
        return _parquet_rows(path, content)
    if suffix in (".xlsx", ".xlsm"):
        return _excel_rows(path, content)
    if suffix == ".xls":
        raise UsageError(f"{path} is of an Excel before 2007; save it as .xlsx or as CSV")
    return _text_rows(path, text_of(content, errors), suffix)


def _text_rows(path: str, text: TextIO, suffix: str) -> Iterator[Row]:
    lines = csv.reader(text, delimiter=_separator(text, suffix))
    end = 0
    try:
        for cells in lines:
            begin, end = end + 1, lines.line_num
            if cells:
                yield begin, cells
    except csv.Error as error:
        raise UsageError(
            f"{path} is no CSV from line {lines.line_num}: {error}; "
            "look for a quote that is not closed"
        ) from error


def _separator(text: TextIO, suffix: str) -> str:
    """What stands between the cells: a spreadsheet writes semicolons where commas are decimal."""
    if suffix in (".tsv", ".tab"):
        return "\t"
    header = _QUOTED.sub("", text.readline())
    text.seek(0)
    # Of as many, the first.
    return max(",;\t", key=header.count)


def _excel_rows(path: str, content: bytes) -> Iterator[Row]:
    with _needing(path, "openpyxl"):
        import openpyxl
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        # What some programs state is less than there is.
        sheet.reset_dimensions()
        width = 0
        for line, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            row = [_text(cell) for cell in cells]
            while row and not row[-1] and len(row) > width:
                del row[-1]
            if any(row):
                width = width or len(row)
                yield line, row + [""] * (width - len(row))
    # A damaged workbook fails in any of the parsers beneath.
    except Exception as error:
        raise UsageError(
            f"{path} is not a workbook that can be read ({error}); save it again"
        ) from error
    if not width:
        raise UsageError(
            f"{path} has nothing in its first sheet, {sheet.title!r}, and no other one is read; "
            "move the table there, or save it as CSV"
        )


def _parquet_rows(path: str, content: bytes) -> Iterator[Row]:
    with _needing(path, "pyarrow"):
        import pyarrow
        import pyarrow.parquet
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        yield 1, list(file.schema_arrow.names)
        line = 1
        for batch in file.iter_batches(_PARQUET_ROWS):
            columns = [_values(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                line += 1
                yield line, [_text(cell) for cell in cells]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(
            f"{path} is not a Parquet file that can be read ({error}); save it again"
        ) from error


def _values(column: Any) -> list[Any]:
    """What a column holds; of times, microseconds are enough, and all that Python has."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    values: list[Any] = column.to_pylist()
    return values


@contextmanager
def _needing(path: str, package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"{path} is read by {package}, which is not installed; run "
            f"`{install_command(_EXTRA)}`, or save the table as CSV"
        ) from error


def _text(cell: Any) -> str:
    """A cell as a CSV would have it."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        # Excel has no whole numbers, and a study is not called 12.0.
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        # Excel has no days, only their first moment.
        cell = cell.date()
    if isinstance(cell, datetime.date):
        return cell.isoformat()
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    return str(cell)
