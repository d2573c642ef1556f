"""The tables of a source, joined to its volumes by study id."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ctgpu.data_sets import Description, built_in
from ctgpu.data_sets.fields import TableRule
from ctgpu.errors import TableError, UsageError
from ctgpu.sources.cells import ANY, is_blank
from ctgpu.sources.columns import (
    highest,
    label_columns,
    report_text,
    rescale_pair,
    rest_of,
    shape_hint,
    spacing_in,
)
from ctgpu.sources.table import Table, read_first, study_id_in
from ctgpu.sources.text import no_text, text_of
from ctgpu.volume.raw import Spacing

_NONE_LEFT_OUT: Mapping[str, str] = MappingProxyType({})


class HasTables(Protocol):
    """The part of a :class:`ctgpu.sources.base.Source` that tables are read from."""

    @property
    def data_set(self) -> Description:
        """Where its tables are, and what is in them."""

    @property
    def listed_split(self) -> str | None:
        """The split whose volumes were found where the description has them; else None."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """What tables may call volumes beside their study ids, and these."""

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these small files that exists, by path, and its bytes; else None."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """What the tables say about one volume.

    Attributes
    ----------
    labels : numpy.ndarray
        float32, shape (classes,), in the order of :attr:`Tables.class_names`; all NaN without a
        row.
    has_labels : bool
        Whether there is a row of labels.
    report : dict
        Columns of the report as they are; empty without a row.
    text : str
        The report as one text.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D); None where the file's header is to be used.
    rescale_pair : tuple of float or None
        Slope and intercept; None where they are not stated.
    shape_hint : tuple of int or None
        Voxels along (H, W, D), for estimates only; None where that is not stated.
    carried : dict
        Cells that go into the sample's JSON, by column.
    spacing_source : str
        Where `spacing_mm` is from; recorded.
    default_spacing_mm : tuple of float or None
        What the data set's description says of volumes of which nothing else does.
    read_xxh3_128 : dict or None
        Checksums, by extension, of the members that the row was read from; None of tables that
        describe many samples.
    """

    labels: npt.NDArray[np.float32]
    has_labels: bool = False
    report: dict[str, str] = field(default_factory=dict)
    text: str = ""
    spacing_mm: Spacing | None = None
    rescale_pair: tuple[float, float] | None = None
    shape_hint: tuple[int, int, int] | None = None
    carried: dict[str, str] = field(default_factory=dict)
    spacing_source: str = "csv"
    default_spacing_mm: Spacing | None = None
    read_xxh3_128: dict[str, str] | None = None

    def choose_spacing_mm(self, header_spacing_mm: Spacing | None) -> tuple[Spacing, str]:
        """The spacing to use and where it is from: the table, else the file, else the description.

        Parameters
        ----------
        header_spacing_mm : tuple of float or None
            What the file itself says.

        Returns
        -------
        tuple
            Spacing (H, W, D) in millimetres, and :attr:`spacing_source`, ``"header"`` or
            ``"description"``.

        Raises
        ------
        TableError
            If none of them states one.
        """
        if self.spacing_mm is not None:
            return self.spacing_mm, self.spacing_source
        if header_spacing_mm is not None:
            return header_spacing_mm, "header"
        if self.default_spacing_mm is not None:
            return self.default_spacing_mm, "description"
        raise TableError(
            "no spacing is stated, neither by a metadata CSV nor by the file; add the volume to "
            "the metadata CSV, or state arrays.spacing_mm in the description of the data set"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A table, what its columns say, and another one that says how it names volumes."""

    table: Table
    rule: TableRule
    names: Table | None = None

    def name_of(self, study_id: str) -> str | None:
        """What the table calls a volume; None where the other table does not say."""
        if self.names is None or self.rule.through is None:
            return study_id
        row = self.names.find(study_id)
        return None if row is None else study_id_in(row[self.rule.through]) or None

    def find(self, study_id: str) -> dict[str, str] | None:
        """The row of a volume; None where there is none.

        Raises
        ------
        TableError
            If there are rows that contradict each other.
        """
        name = self.name_of(study_id)
        return None if name is None else self.table.find(name)

    def __contains__(self, study_id: object) -> bool:
        try:
            name = self.name_of(str(study_id))
        except TableError:
            return False
        return name is not None and name in self.table


class Tables:
    """The tables of one split.

    Parameters
    ----------
    joined : sequence of Joined
        Those that the source has.
    left_out : mapping of str to str
        Study ids, in normal form, of volumes that lists leave out, and why.
    class_names : sequence of str
        Names of the labels, in order; none where nothing says what the classes are.
    data_set : Description, optional
        By default CT-RATE's.
    """

    def __init__(
        self,
        joined: Sequence[Joined] = (),
        left_out: Mapping[str, str] = _NONE_LEFT_OUT,
        class_names: Sequence[str] = (),
        data_set: Description | None = None,
    ) -> None:
        self.joined = tuple(joined)
        self.left_out = left_out
        self.class_names = tuple(class_names)
        self.data_set = data_set or built_in()

    @classmethod
    def load(
        cls, source: HasTables, split: str, class_names: Sequence[str] | None = None
    ) -> Tables:
        """Read what the source has of a split's tables.

        Parameters
        ----------
        source : HasTables
            What has been listed already.
        split : str
            The split.
        class_names : sequence of str, optional
            Names of the labels, in order, as a plan has them; no labels are read where there are
            none.  By default the description's, or those of the table's header, where there is
            such a table or the volumes lie where the description has them; else there are no
            classes.

        Raises
        ------
        UsageError
            If a table lacks a column or is no table, or the one that leads to it is missing, or no
            label in a column is a number; or a list of volumes to leave out is no text.
        AccessError, SourceError
            If the source cannot be read.
        """
        data_set = source.data_set
        wants_labels = class_names is None or len(class_names) > 0
        joined: list[Joined] = []
        names = data_set.class_names if class_names is None else tuple(class_names)
        found_labels = False
        for rule in data_set.tables:
            if rule.labels is not None and not wants_labels and rule.roles == ("labels",):
                continue
            if (found := read_first(source.read_table, data_set.paths(rule, split))) is None:
                continue
            read = rule if wants_labels else msgspec.structs.replace(rule, labels=None)
            table = _read(*found, read, names)
            if rule.labels is not None and wants_labels:
                found_labels = True
                by_class = label_columns(table, rule, names)
                names = names or tuple(by_class)
                columns = itertools.chain.from_iterable(by_class.values())
                words = {word.casefold() for word in rule.label_words}
                table.require_usable(columns, rule.label_range or ANY, words)
            joined.append(Joined(table.renamed(source.aliases) if source.aliases else table, rule))
        joined = _led_to(joined, data_set, split)
        if class_names is None and not found_labels and source.listed_split is None:
            names = ()
        return cls(joined, left_out_by_lists(source, split), names, data_set)

    @cached_property
    def labels(self) -> Joined | None:
        """The table of labels; None where there is none, or there are no classes."""
        of_labels = (one for one in self.joined if one.rule.labels is not None)
        return next(of_labels, None) if self.class_names else None

    @cached_property
    def reports(self) -> Joined | None:
        """The table of reports; None where there is none."""
        return next((one for one in self.joined if one.rule.text), None)

    @cached_property
    def metadata(self) -> Joined | None:
        """The table of spacings, or else of slopes and intercepts; None where there is none."""
        return next(
            (one for one in self.joined if one.rule.spacing_mm),
            next((one for one in self.joined if one.rule.rescale), None),
        )

    @cached_property
    def _rescale(self) -> Joined | None:
        return next((one for one in self.joined if one.rule.rescale), None)

    @cached_property
    def _words(self) -> Mapping[str, float]:
        words = self.labels.rule.label_words if self.labels else {}
        values = {word: math.nan if isinstance(v, str) else v for word, v in words.items()}
        return {word.casefold(): value for word, value in values.items()}

    @cached_property
    def _columns_of_classes(self) -> Sequence[Sequence[str]]:
        """For each class the columns that its label is the highest of."""
        if self.labels is None:
            return ()
        table, rule = self.labels.table, self.labels.rule
        by_class = label_columns(table, rule, self.class_names)
        return [by_class[name] for name in self.class_names]

    def row(self, study_id: str, *, spacing_from_header: bool = False) -> SampleRow:
        """What the tables say about one volume, so that it can fail before it is downloaded.

        Parameters
        ----------
        study_id : str
            File name without suffix, or what the description takes for it.
        spacing_from_header : bool
            Accept a missing or NaN spacing, for which the file's header then serves
            (``--spacing-fallback header``).

        Raises
        ------
        TableError
            If there are rows that contradict each other, a value is no number, a label is not
            within the range of labels, or the source has a table of spacings and none in it for
            this volume.
        """
        labels, has_labels = np.full(len(self.class_names), np.nan, np.float32), False
        if self.labels is not None:
            table, rule = self.labels.table, self.labels.rule
            if (row := self.labels.find(study_id)) is not None:
                has_labels = True
                within = rule.label_range or ANY
                name_there = self.labels.name_of(study_id) or study_id
                for place, columns in enumerate(self._columns_of_classes):
                    labels[place] = highest(
                        table.number(row, name_there, name, within, self._words) for name in columns
                    )
        labels.flags.writeable = False
        spacing_mm = pair = shape = None
        if self.metadata is not None:
            table, rule = self.metadata.table, self.metadata.rule
            facts = self.metadata.find(study_id) or {}
            name_there = (facts and self.metadata.name_of(study_id)) or study_id
            spacing_mm = spacing_in(table, rule.spacing_mm, facts, name_there)
            if rule.spacing_mm and spacing_mm is None and not spacing_from_header:
                found = "a row without a spacing" if facts else "no row"
                raise TableError(
                    f"{table.path} has {found} for {study_id}; correct it, or pass "
                    "--spacing-fallback header to use the file's own spacing"
                )
            shape = shape_hint(facts, rule.shape)
        if self._rescale is not None:
            table, rule = self._rescale.table, self._rescale.rule
            if facts := self._rescale.find(study_id) or {}:
                name_there = self._rescale.name_of(study_id) or study_id
                pair = rescale_pair(table, rule.rescale, facts, name_there)
        report, text = self._report(study_id)
        return SampleRow(
            labels,
            has_labels,
            report,
            text,
            spacing_mm,
            pair,
            shape,
            self._carried(study_id),
            default_spacing_mm=self.data_set.arrays.spacing_mm,
        )

    @property
    def tells_splits(self) -> bool:
        """Whether a column says which split a volume belongs to."""
        return any(one.rule.split is not None for one in self.joined)

    def facts_of(self, study_id: str, role: str) -> str | None:
        """What the table that has it says of a volume's ``"patient"`` or ``"split"``; else None.

        Raises
        ------
        TableError
            If there are rows that contradict each other.
        """
        for one in self.joined:
            column = one.rule.patient if role == "patient" else one.rule.split
            if column is not None and (row := one.find(study_id)) is not None:
                return None if is_blank(row[column]) else row[column].strip()
        return None

    def _report(self, study_id: str) -> tuple[dict[str, str], str]:
        """The columns of a report, and its text; both empty without a row."""
        if self.reports is None:
            return {}, ""
        rule = self.reports.rule
        row = self.reports.find(study_id)
        if row is None:
            return {}, ""
        kept = {n: row[n] for n in self._columns_of_report}
        return kept, report_text(row, rule.text, self.data_set.text_separator)

    @cached_property
    def _columns_of_report(self) -> Sequence[str]:
        """Columns of the report that are kept as they are."""
        if self.reports is None:
            return ()
        table, rule = self.reports.table, self.reports.rule
        if rule.report != "rest":
            return rule.report or rule.text
        kept = {*rest_of(table, rule), *rule.text}
        if rule.labels == "classes":
            kept -= set(self.class_names)
        return [name for name in table.columns if name in kept]

    def _carried(self, study_id: str) -> dict[str, str]:
        carried: dict[str, str] = {}
        for one in self.joined:
            if one.rule.carry:
                row = one.find(study_id) or {}
                carried |= {n: row[n] for n in one.rule.carry if not is_blank(row.get(n, ""))}
        return carried


def left_out_by_lists(source: HasTables, split: str) -> dict[str, str]:
    """Study ids, in normal form, of the volumes that the source's lists leave out, and why.

    Raises
    ------
    UsageError
        If a list is no text.
    AccessError, SourceError
        If the source cannot be read.
    """
    left_out: dict[str, str] = {}
    for rule in source.data_set.leave_out:
        found = read_first(source.read_table, source.data_set.paths(rule, split))
        path, content = found or ("", b"")
        if content and (instead := no_text(content)) is not None:
            raise UsageError(f"{path} {instead}")
        for line in text_of(content, "replace"):
            if study_id := study_id_in(line):
                left_out.setdefault(source.aliases.get(study_id, study_id), rule.reason)
    return left_out


def _led_to(joined: Sequence[Joined], data_set: Description, split: str) -> list[Joined]:
    """Some tables, each with the one that says how it names volumes.

    Raises
    ------
    UsageError
        If that one is missing: no row of the other would be found.
    """
    others = {name: one.table for one in joined for name in one.rule.other_names}
    for one in joined:
        if one.rule.through is not None and one.rule.through not in others:
            rules = (rule for rule in data_set.tables if one.rule.through in rule.other_names)
            paths = [path for rule in rules for path in data_set.paths(rule, split)]
            raise UsageError(
                f"{one.table.path} names volumes by {one.rule.through}, which "
                f"{' or '.join(paths) or 'another table'} is to explain and the source does not "
                "have; bring that table there"
            )
    return [
        replace(one, names=others[one.rule.through]) if one.rule.through else one for one in joined
    ]


def _read(path: str, content: bytes, rule: TableRule, class_names: Sequence[str]) -> Table:
    columns = [*rule.text, *rule.spacing_mm, *rule.carry, *rule.other_names]
    columns += [name for name in (rule.patient, rule.split) if name is not None]
    if rule.labels == "classes":
        columns += class_names
    elif isinstance(rule.labels, tuple):
        columns += rule.labels
    if isinstance(rule.report, tuple):
        columns += rule.report
    takes_all = "rest" in (rule.labels, rule.report)
    optional = None if takes_all else (*(rule.rescale or ()), *(rule.shape or ()))
    return Table.read(path, content, rule.keys, columns, optional)
