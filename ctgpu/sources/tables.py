"""The CSVs of a source, joined to its volumes by study id."""

from __future__ import annotations

import csv
import logging
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TextIO

import numpy as np
import numpy.typing as npt

from ctgpu.errors import TableError, UsageError
from ctgpu.sources.cells import ANY, in_words, is_blank, is_usable, number_in
from ctgpu.sources.ct_rate import table_names
from ctgpu.sources.text import encoding_of, no_text, text_of
from ctgpu.volume.raw import Spacing
from ctgpu.volume.ref import Split, normal_form, strip_volume_suffix

_log = logging.getLogger(__name__)

#: CT-RATE's abnormalities, in the order of its label vector.
LABEL_NAMES = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)

_KEY = "VolumeName"
_SPACING = ("XYSpacing", "ZSpacing")
_REPORT = ("Findings_EN", "Impressions_EN")
_PATIENT = ("Manufacturer", "PatientSex", "PatientAge")
_SHAPE = ("Rows", "Columns", "NumberofSlices")
_RESCALE = ("RescaleSlope", "RescaleIntercept")

_LABEL = (0.0, 1.0)
# Of fewer rows, all may be wrong by accident; of so many, the column is another one.
_MANY_ROWS = 16


class HasTables(Protocol):
    """The part of a :class:`ctgpu.sources.base.Source` that tables are read from."""

    @property
    def listed_split(self) -> Split | None:
        """CT-RATE's split in whose folder its volumes lie; None for any other folder."""

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these small files that exists, by path, and its bytes; else None."""


def report_text(report: Mapping[str, str]) -> str:
    """The text of a report: findings, a newline, impressions.

    A part that is empty, NaN or "Not given." is left out together with the newline.

    Parameters
    ----------
    report : mapping
        Raw columns of the reports CSV.
    """
    parts = (report.get(name, "") for name in _REPORT)
    return "\n".join(part for part in parts if not is_blank(part))


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """What the CSVs say about one volume.

    Attributes
    ----------
    labels : numpy.ndarray
        float32, shape (classes,), in the order of :attr:`Tables.class_names`; all NaN without a
        row.
    has_labels : bool
        Whether there is a row of labels.
    report : dict
        Raw columns of the reports CSV; empty without a row.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D), ``(XYSpacing[0], XYSpacing[1], ZSpacing)``; None where the file's
        header is to be used.
    rescale_pair : tuple of float or None
        ``(RescaleSlope, RescaleIntercept)``; None where it is not stated.
    shape_hint : tuple of int or None
        ``(Rows, Columns, NumberofSlices)``, for estimates only; None where it is not stated.
    metadata : dict
        ``Manufacturer``, ``PatientSex`` and ``PatientAge`` as stated.
    spacing_source : str
        Where `spacing_mm` is from; recorded.
    read_xxh3_128 : dict or None
        Checksums, by extension, of the members that the row was read from; None of tables that
        describe many samples.
    """

    labels: npt.NDArray[np.float32]
    has_labels: bool = False
    report: dict[str, str] = field(default_factory=dict)
    spacing_mm: Spacing | None = None
    rescale_pair: tuple[float, float] | None = None
    shape_hint: tuple[int, int, int] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    spacing_source: str = "csv"
    read_xxh3_128: dict[str, str] | None = None

    def choose_spacing_mm(self, header_spacing_mm: Spacing | None) -> tuple[Spacing, str]:
        """The spacing to use and where it is from: the CSV, else the file's header.

        Parameters
        ----------
        header_spacing_mm : tuple of float or None
            What the file itself says.

        Returns
        -------
        tuple
            Spacing (H, W, D) in millimetres, and :attr:`spacing_source` or ``"header"``.

        Raises
        ------
        TableError
            If neither states one.
        """
        if self.spacing_mm is not None:
            return self.spacing_mm, self.spacing_source
        if header_spacing_mm is not None:
            return header_spacing_mm, "header"
        raise TableError(
            "no spacing is stated, neither by a metadata CSV nor by the file; "
            "add the volume to the metadata CSV"
        )


class Tables:
    """The CSVs of one split.

    Parameters
    ----------
    metadata, labels, reports : Table or None
        None where the source has no such CSV.
    no_chest : frozenset of str
        Study ids of volumes that show no chest.
    class_names : sequence of str
        Names of the labels, in order; none where nothing says what the classes are.
    """

    def __init__(
        self,
        metadata: Table | None = None,
        labels: Table | None = None,
        reports: Table | None = None,
        no_chest: frozenset[str] = frozenset(),
        class_names: Sequence[str] = (),
    ) -> None:
        self.metadata = metadata
        self.labels = labels
        self.reports = reports
        self.no_chest = no_chest
        self.class_names = tuple(class_names)

    @classmethod
    def load(
        cls, source: HasTables, split: Split, class_names: Sequence[str] | None = None
    ) -> Tables:
        """Read what the source has of a split's CSVs.

        They are UTF-8, or UTF-16 or UTF-32 with a byte order mark; bytes that are none are replaced
        by U+FFFD, with one warning per file.

        Parameters
        ----------
        source : HasTables
            What has been listed already.
        split : {"train", "valid"}
            The split.
        class_names : sequence of str, optional
            Names of the labels, in order; no CSV of labels is read where there are none.  By
            default CT-RATE's where there is such a CSV or the volumes lie in CT-RATE's folders;
            else there are no classes.

        Raises
        ------
        UsageError
            If a CSV lacks a column or is no CSV, or no label in a column is from 0 to 1; or the
            list of volumes that show no chest is no text.
        AccessError, SourceError
            If the source cannot be read.
        """
        names = LABEL_NAMES if class_names is None else tuple(class_names)
        labels = Table.read(source, "labels", split, names) if names else None
        if labels is not None:
            labels.require_usable(_LABEL)
        if class_names is None and labels is None and source.listed_split is None:
            names = ()
        return cls(
            Table.read(source, "metadata", split, _SPACING, (*_RESCALE, *_SHAPE, *_PATIENT)),
            labels,
            Table.read(source, "reports", split, _REPORT, None),
            no_chest_of(source, split),
            names,
        )

    def row(self, study_id: str, *, spacing_from_header: bool = False) -> SampleRow:
        """What the CSVs say about one volume, so that it can fail before it is downloaded.

        Parameters
        ----------
        study_id : str
            File name without suffix.
        spacing_from_header : bool
            Accept a missing or NaN spacing, for which the file's header then serves
            (``--spacing-fallback header``).

        Raises
        ------
        TableError
            If there are rows that contradict each other, a value is no number, a label is not from
            0 to 1, or the source has a metadata CSV and no spacing in it for this volume.
        """
        labels, has_labels = np.full(len(self.class_names), np.nan, np.float32), False
        if self.labels is not None and (row := self.labels.find(study_id)) is not None:
            has_labels = True
            labels[:] = [
                self.labels.number(row, study_id, name, _LABEL) for name in self.class_names
            ]
        labels.flags.writeable = False
        report = (self.reports.find(study_id) if self.reports is not None else None) or {}
        if self.metadata is None:
            return SampleRow(labels, has_labels, report)
        facts = self.metadata.find(study_id) or {}
        spacing_mm = self._spacing_mm(self.metadata, facts, study_id)
        if spacing_mm is None and not spacing_from_header:
            found = "a row without a spacing" if facts else "no row"
            raise TableError(
                f"{self.metadata.path} has {found} for {study_id}; correct it, or pass "
                "--spacing-fallback header to use the file's own spacing"
            )
        slope, intercept = (self.metadata.number(facts, study_id, name) for name in _RESCALE)
        return SampleRow(
            labels,
            has_labels,
            report,
            spacing_mm,
            None if math.isnan(slope) or math.isnan(intercept) else (slope, intercept),
            _shape_hint(facts),
            {name: facts[name] for name in _PATIENT if not is_blank(facts.get(name, ""))},
        )

    @staticmethod
    def _spacing_mm(table: Table, facts: Mapping[str, str], study_id: str) -> Spacing | None:
        """None where it is missing or NaN."""
        in_plane = facts.get("XYSpacing", "").strip()
        if is_blank(in_plane):
            return None
        inner = in_plane.removeprefix("[").removesuffix("]").replace(",", " ").split()
        try:
            h, w = map(number_in, inner)
        except ValueError:
            raise TableError(
                f"{table.path} has XYSpacing {in_plane[:60]!r}{table.in_line(study_id)} for "
                f"{study_id}; wanted two numbers such as [0.75, 0.75]"
            ) from None
        spacing = h, w, table.number(facts, study_id, "ZSpacing")
        return None if any(map(math.isnan, spacing)) else spacing


def no_chest_of(source: HasTables, split: Split) -> frozenset[str]:
    """Study ids, in normal form, of the volumes that the source lists as showing no chest.

    Raises
    ------
    UsageError
        If the list is no text.
    AccessError, SourceError
        If the source cannot be read.
    """
    path, content = source.read_table(*table_names("no_chest", split)) or ("", b"")
    if content and (found := no_text(content)) is not None:
        raise UsageError(f"{path} {found}")
    return frozenset(
        study_id for line in text_of(content, "replace") if (study_id := _study_id(line))
    )


class Table:
    """One CSV, keyed by study id.

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
    """

    def __init__(
        self,
        path: str,
        columns: list[str],
        rows: Mapping[str, list[str] | str],
        lines: Sequence[int] = (),
    ) -> None:
        self.path = path
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
        source: HasTables,
        table: str,
        split: Split,
        required: tuple[str, ...],
        optional: tuple[str, ...] | None = (),
    ) -> Table | None:
        """The table of a split, or None where the source has none; see :meth:`Tables.load`.

        Only the columns named are kept; with ``optional=None``, all.
        """
        if (found := source.read_table(*table_names(table, split))) is None:
            return None
        path, content = found
        try:
            try:
                return cls._parse(path, text_of(content, "strict"), required, optional)
            except UnicodeDecodeError:
                result = cls._parse(path, text_of(content, "replace"), required, optional)
        except UsageError as error:
            if (instead := no_text(content)) is not None:
                raise UsageError(f"{path} {instead}") from error
            raise
        _log.warning(
            "%s is not %s; bytes that cannot be read are replaced by U+FFFD",
            *(path, encoding_of(content)),
        )
        return result

    @classmethod
    def _parse(
        cls,
        path: str,
        text: TextIO,
        required: tuple[str, ...],
        optional: tuple[str, ...] | None,
    ) -> Table:
        lines = csv.reader(text)
        rows: dict[str, list[str] | str] = {}
        # Eight bytes a row, where a mapping would take a hundred.
        begins = array("Q")
        try:
            header = [name.strip() for name in next(lines, [])]
            end = lines.line_num
            if missing := [name for name in (_KEY, *required) if name not in header]:
                raise UsageError(
                    f"{path} lacks the column{'s' if len(missing) > 1 else ''} "
                    f"{', '.join(missing)}; it has {', '.join(header)[:200] or 'none'}"
                )
            key = header.index(_KEY)
            wanted = header if optional is None else (*required, *optional)
            places = [k for k, name in enumerate(header) if k != key and name in wanted]
            for cells in lines:
                begin, end = end + 1, lines.line_num
                study_id = _study_id(cells[key]) if len(cells) > key else ""
                if not study_id:
                    continue
                row: list[str] | str
                if len(cells) == len(header):
                    row = [cells[k] for k in places]
                else:
                    row = f"a row of {len(cells)} values for {len(header)} columns"
                known = rows.setdefault(study_id, row)
                if len(rows) > len(begins):
                    begins.append(begin)
                if known != row:
                    rows[study_id] = "rows that contradict each other"
        except csv.Error as error:
            raise UsageError(
                f"{path} is no CSV from line {lines.line_num}: {error}; "
                "look for a quote that is not closed"
            ) from error
        return cls(path, [header[k] for k in places], rows, begins)

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
    ) -> float:
        """A cell as a number; NaN where it is missing, empty or says so.

        Parameters
        ----------
        row, study_id, column
            Which cell: of :meth:`find`.
        within : tuple of float
            Lowest and highest value.

        Raises
        ------
        TableError
            If it is something else.
        """
        text = row.get(column, "")
        try:
            return number_in(text, within)
        except ValueError:
            raise TableError(
                f"{self.path} has {column} {text[:60]!r}{self.in_line(study_id)} for {study_id}; "
                f"wanted a number{in_words(within)}"
            ) from None

    def require_usable(self, within: tuple[float, float] = ANY) -> None:
        """Refuse a table with a column in which no row has a number: it is another one.

        Raises
        ------
        UsageError
            If there is one, in a table of many rows.
        """
        if len(self) < _MANY_ROWS:
            return
        for place, column in enumerate(self._columns):
            cells = (row[place] for row in self._rows.values() if not isinstance(row, str))
            if (first := next(cells, None)) is None:
                return
            if not is_usable(first, within) and not any(is_usable(c, within) for c in cells):
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


def _study_id(volume_name: str) -> str:
    return normal_form(strip_volume_suffix(volume_name.strip().rsplit("/", 1)[-1]))


def _shape_hint(facts: Mapping[str, str]) -> tuple[int, int, int] | None:
    try:
        rows, columns, slices = (int(number_in(facts[name])) for name in _SHAPE)
    except (KeyError, ValueError):
        return None
    return rows, columns, slices
