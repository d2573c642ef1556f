"""What the columns of a table say of one volume, as their rule reads them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from ctgpu.data_sets.fields import TableRule
from ctgpu.errors import TableError, UsageError
from ctgpu.sources.cells import is_blank, number_in
from ctgpu.sources.table import Table
from ctgpu.volume.raw import Spacing

_EXAMPLES = {
    2: "two numbers such as [0.75, 0.75]",
    3: "three numbers such as [0.75, 0.75, 1.5]",
}


def report_text(report: Mapping[str, str], columns: Sequence[str], separator: str = "\n") -> str:
    """The text of a report: its columns in their order.

    A part that is empty, NaN or "Not given." is left out together with its separator.

    Parameters
    ----------
    report : mapping
        By column.
    columns : sequence of str
        Those that make the text.
    separator : str
        Between them.
    """
    parts = (report.get(name, "") for name in columns)
    return separator.join(part for part in parts if not is_blank(part))


def rest_of(table: Table, rule: TableRule) -> list[str]:
    """The columns that a rule says nothing else of, in order."""
    said = {*rule.keys, *rule.text, *rule.spacing_mm, *rule.carry, *rule.ignore, *rule.other_names}
    said |= {*(rule.rescale or ()), *(rule.shape or ()), rule.patient or "", rule.split or ""}
    for columns in (rule.labels, rule.report):
        said |= set(columns) if isinstance(columns, tuple) else set()
    # A column without a name is one that nothing is said of.
    said.discard("")
    return [name for name in table.columns if name not in said]


def label_columns(
    table: Table, rule: TableRule, class_names: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    """The columns of each class, in order.

    Raises
    ------
    UsageError
        If they are not those that a plan was made with.
    """
    columns: Sequence[str]
    if rule.labels == "classes":
        return {name: (name,) for name in class_names}
    if isinstance(rule.labels, tuple):
        columns = rule.labels
    else:
        columns = [name for name in rest_of(table, rule) if name]
    by_class: dict[str, list[str]] = {}
    for column in columns:
        name = column.split(rule.label_separator)[0] if rule.label_separator else column
        by_class.setdefault(name, []).append(column)
    if isinstance(rule.labels, tuple) and len(class_names) == len(by_class):
        return dict(zip(class_names, by_class.values(), strict=True))
    if missing := [name for name in class_names if name not in by_class]:
        raise UsageError(
            f"{table.path} has no labels for {', '.join(missing)[:200]}, which the data set was "
            "planned with; bring the table back that it had, or build into another folder"
        )
    return by_class


def highest(values: Iterable[float]) -> float:
    """The highest of some labels; those that are not known count for nothing."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def rescale_pair(
    table: Table, columns: tuple[str, str] | None, facts: Mapping[str, str], study_id: str
) -> tuple[float, float] | None:
    """Slope and intercept of a volume; None where they are not stated.

    Raises
    ------
    TableError
        If one is no number.
    """
    if columns is None:
        return None
    slope, intercept = (table.number(facts, study_id, name) for name in columns)
    return None if math.isnan(slope) or math.isnan(intercept) else (slope, intercept)


def spacing_in(
    table: Table, columns: Sequence[str], facts: Mapping[str, str], study_id: str
) -> Spacing | None:
    """The voxel size (H, W, D) in a volume's row; None where it is missing or NaN.

    Raises
    ------
    TableError
        If a cell does not hold as many numbers as its column is to.
    """
    values: list[float] = []
    for place, column in enumerate(columns):
        cell = facts.get(column, "").strip()
        # A pair of H and W and then D, or all three in one, as lists are written.
        wanted = {1: 3, 2: 2 - place, 3: 1}[len(columns)]
        if wanted == 1:
            values.append(table.number(facts, study_id, column))
            continue
        if is_blank(cell):
            return None
        inner = cell.strip("[]()").replace(",", " ").split()
        try:
            numbers = list(map(number_in, inner))
        except ValueError:
            numbers = []
        if len(numbers) != wanted:
            example = _EXAMPLES[wanted]
            raise TableError(
                f"{table.path} has {column} {cell[:60]!r}{table.in_line(study_id)} for "
                f"{study_id}; wanted {example}"
            )
        values += numbers
    if not values or any(map(math.isnan, values)):
        return None
    h, w, d = values
    return h, w, d


def shape_hint(
    facts: Mapping[str, str], columns: Collection[str] | None
) -> tuple[int, int, int] | None:
    """Voxels along (H, W, D) as a row states them; None where it does not."""
    try:
        h, w, d = (int(number_in(facts[name])) for name in columns or ())
    except (KeyError, ValueError):
        return None
    return h, w, d
