"""The CSVs of a source, joined to its volumes by study id."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np
import numpy.typing as npt

from ctgpu.errors import TableError, UsageError
from ctgpu.sources.base import Source, Split, strip_volume_suffix
from ctgpu.sources.layout import table_names
from ctgpu.volume import Spacing

_log = logging.getLogger(__name__)

#: The abnormalities, in the order of the label vector.
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


def report_text(report: Mapping[str, str]) -> str:
    """The text of a report: findings, a newline, impressions.

    A part that is empty, NaN or "Not given." is left out together with the newline.

    Parameters
    ----------
    report : mapping
        Raw columns of the reports CSV.
    """
    parts = (report.get(name, "") for name in _REPORT)
    return "\n".join(part for part in parts if not _is_blank(part))


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """What the CSVs say about one volume.

    Attributes
    ----------
    labels : numpy.ndarray
        float32, shape (18,), in the order of :data:`LABEL_NAMES`; all NaN without a row.
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
    """

    labels: npt.NDArray[np.float32]
    has_labels: bool = False
    report: dict[str, str] = field(default_factory=dict)
    spacing_mm: Spacing | None = None
    rescale_pair: tuple[float, float] | None = None
    shape_hint: tuple[int, int, int] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    spacing_source: str = "csv"

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
    """

    def __init__(
        self,
        metadata: Table | None = None,
        labels: Table | None = None,
        reports: Table | None = None,
        no_chest: frozenset[str] = frozenset(),
    ) -> None:
        self.metadata = metadata
        self.labels = labels
        self.reports = reports
        self.no_chest = no_chest

    @classmethod
    def load(cls, source: Source, split: Split) -> Tables:
        """Read what the source has of a split's CSVs.

        Bytes that are not UTF-8 are replaced by U+FFFD, with one warning per file.

        Raises
        ------
        UsageError
            If a CSV lacks a column or is no CSV.
        AccessError, SourceError
            If the source cannot be read.
        """
        listed = source.read_table(*table_names("no_chest", split))
        no_chest = frozenset(
            study_id
            for line in (_text(listed[1], "replace") if listed else ())
            if (study_id := _study_id(line))
        )
        return cls(
            Table.read(source, "metadata", split, _SPACING, (*_RESCALE, *_SHAPE, *_PATIENT)),
            Table.read(source, "labels", split, LABEL_NAMES),
            Table.read(source, "reports", split, _REPORT, None),
            no_chest,
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
            If there are rows that contradict each other, a value is no number, or the source has a
            metadata CSV and no spacing in it for this volume.
        """
        labels, has_labels = np.full(len(LABEL_NAMES), np.nan, np.float32), False
        if self.labels is not None and (row := self.labels.find(study_id)) is not None:
            has_labels = True
            labels[:] = [self.labels.number(row, study_id, name) for name in LABEL_NAMES]
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
            {name: facts[name] for name in _PATIENT if not _is_blank(facts.get(name, ""))},
        )

    @staticmethod
    def _spacing_mm(table: Table, facts: Mapping[str, str], study_id: str) -> Spacing | None:
        """None where it is missing or NaN."""
        in_plane = facts.get("XYSpacing", "").strip()
        if _is_blank(in_plane):
            return None
        inner = in_plane.removeprefix("[").removesuffix("]").replace(",", " ").split()
        try:
            h, w = map(float, inner)
        except ValueError:
            raise TableError(
                f"{table.path} has XYSpacing {in_plane[:60]!r} for {study_id}; "
                "wanted two numbers such as [0.75, 0.75]"
            ) from None
        spacing = h, w, table.number(facts, study_id, "ZSpacing")
        return None if any(map(math.isnan, spacing)) else spacing


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
    """

    def __init__(self, path: str, columns: list[str], rows: Mapping[str, list[str] | str]) -> None:
        self.path = path
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, study_id: str) -> bool:
        return study_id in self._rows

    @classmethod
    def read(
        cls,
        source: Source,
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
            return cls._parse(path, _text(content, "strict"), required, optional)
        except UnicodeDecodeError:
            _log.warning("%s is not UTF-8; bytes that cannot be read are replaced by U+FFFD", path)
            return cls._parse(path, _text(content, "replace"), required, optional)

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
        try:
            header = [name.strip() for name in next(lines, [])]
            if missing := [name for name in (_KEY, *required) if name not in header]:
                raise UsageError(
                    f"{path} lacks the column{'s' if len(missing) > 1 else ''} "
                    f"{', '.join(missing)}; it has {', '.join(header) or 'none'}"
                )
            key = header.index(_KEY)
            wanted = header if optional is None else (*required, *optional)
            places = [k for k, name in enumerate(header) if k != key and name in wanted]
            for cells in lines:
                study_id = _study_id(cells[key]) if len(cells) > key else ""
                if not study_id:
                    continue
                row: list[str] | str
                if len(cells) == len(header):
                    row = [cells[k] for k in places]
                else:
                    row = f"a row of {len(cells)} values for {len(header)} columns"
                known = rows.setdefault(study_id, row)
                if known != row:
                    rows[study_id] = "rows that contradict each other"
        except csv.Error as error:
            raise UsageError(
                f"{path} is no CSV from line {lines.line_num}: {error}; "
                "look for a quote that is not closed"
            ) from error
        return cls(path, [header[k] for k in places], rows)

    def find(self, study_id: str) -> dict[str, str] | None:
        """The row of a study, without the volume's name; None where there is none.

        Raises
        ------
        TableError
            If there are rows that contradict each other, or one of another width than the header.
        """
        if study_id not in self._rows:
            return None
        cells = self._rows[study_id]
        if isinstance(cells, str):
            raise TableError(f"{self.path} has {cells} for {study_id}; correct them")
        return dict(zip(self._columns, cells, strict=True))

    def number(self, row: Mapping[str, str], study_id: str, column: str) -> float:
        """A cell as a number; NaN where it is missing, empty or says so.

        Raises
        ------
        TableError
            If it is something else.
        """
        text = row.get(column, "")
        if _is_blank(text):
            return math.nan
        try:
            return float(text)
        except ValueError:
            raise TableError(
                f"{self.path} has {column} {text[:60]!r} for {study_id}; wanted a number"
            ) from None


def _study_id(volume_name: str) -> str:
    return strip_volume_suffix(volume_name.strip().rsplit("/", 1)[-1])


def _is_blank(text: str) -> bool:
    return text.strip().rstrip(".").casefold() in ("", "nan", "not given")


def _shape_hint(facts: Mapping[str, str]) -> tuple[int, int, int] | None:
    try:
        rows, columns, slices = (int(float(facts[name])) for name in _SHAPE)
    except (KeyError, ValueError, OverflowError):
        return None
    return rows, columns, slices


def _text(content: bytes, errors: str) -> TextIO:
    """Text decoded as it is read: a table of reports is too large to hold twice."""
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", errors, newline="")
