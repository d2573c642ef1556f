"""What the samples of a WebDataset say about themselves, as rows of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.data_sets import Description
from ctgpu.data_sets.fields import TableRule
from ctgpu.decode.stored import metadata_facts
from ctgpu.errors import (
    DecodeError,
    TableError,
)
from ctgpu.shards.record import checksum
from ctgpu.shards.tar import VOLUMES
from ctgpu.sources.columns import report_text
from ctgpu.sources.table import Table
from ctgpu.sources.tables import Joined, SampleRow, Tables
from ctgpu.sources.tar_samples import LABEL_EXTENSIONS, SMALL_LIMIT_BYTES, TarSample
from ctgpu.spec import CT_RATE
from ctgpu.volume.raw import Spacing

_REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
_WHERE, _KEY = "the tars", "key"


@dataclass(frozen=True, slots=True)
class _ReadSample(TarSample):
    """Remembers the checksums of the small members that were read."""

    read_xxh3_128: dict[str, str] = field(default_factory=dict)

    def read(self, extension: str, limit_bytes: int = SMALL_LIMIT_BYTES) -> bytes:
        content = TarSample.read(self, extension, limit_bytes)
        self.read_xxh3_128[extension] = checksum(content)
        return content


class TarTables(Tables):
    """Rows made of the samples' own members, read when they are asked for."""

    def __init__(
        self,
        samples: Iterable[TarSample],
        class_names: Sequence[str],
        *,
        adopted: bool,
        data_set: Description,
    ) -> None:
        self._samples = {sample.key.rsplit("/", 1)[-1]: sample for sample in samples}
        self._adopted = adopted

        def having(extensions: Sequence[str], **says: Any) -> Joined:
            named = (
                k for k, s in self._samples.items() if not s.members.keys().isdisjoint(extensions)
            )
            table = Table(_WHERE, [], dict.fromkeys(named, ""))
            return Joined(table, TableRule(files=(_WHERE,), key=_KEY, **says))

        super().__init__(
            (
                having(("json",), spacing_mm=("XYSpacing", "ZSpacing")),
                having(LABEL_EXTENSIONS, labels="classes"),
                having(("txt",), text=_REPORT_COLUMNS),
            ),
            class_names=class_names,
            data_set=data_set,
        )

    def row(self, study_id: str, *, spacing_from_header: bool = False) -> SampleRow:
        try:
            sample = self._samples[study_id]
        except KeyError:
            raise TableError(f"{study_id} is gone from the tars; bring its tar back") from None
        sample = _ReadSample(sample.tar, sample.key, sample.members, sample.stamp)
        try:
            facts, text = sample.facts(), sample.text()
            labels = sample.labels(len(self.class_names))
            spacing_mm: Spacing | None = metadata_facts(study_id, facts).get("spacing_mm")
        except DecodeError as error:
            raise TableError(str(error)) from error
        if labels is not None and self.class_names == self.data_set.class_names:
            _require_within(sample, labels, self.class_names, self.data_set.label_range)
        if spacing_mm is not None and any(map(math.isnan, spacing_mm)):
            spacing_mm = None
        source = "json"
        if spacing_mm is None and self._adopted:
            spacing_mm, source = CT_RATE.target_spacing_mm, "assumed"
        if spacing_mm is None and sample.volume_extension in VOLUMES:
            raise TableError(
                f"{sample.tar}: {sample.key}.json states no XYSpacing and ZSpacing, and a bare "
                "array has no header: write them"
            )
        return SampleRow(
            labels if labels is not None else np.full(len(self.class_names), np.nan, np.float32),
            labels is not None,
            _report(facts, text),
            text,
            spacing_mm,
            _rescale_pair(facts),
            _shape_hint(facts),
            spacing_source=source,
            read_xxh3_128=sample.read_xxh3_128,
        )


def _require_within(
    sample: TarSample,
    labels: npt.NDArray[np.float32],
    names: Sequence[str],
    within: tuple[float, float] | None,
) -> None:
    """Refuse labels that are neither in the data set's range of labels nor NaN."""
    if within is None:
        return
    low, high = within
    wrong = np.flatnonzero(~(((labels >= low) & (labels <= high)) | np.isnan(labels)))
    if wrong.size:
        first = int(wrong[0])
        raise TableError(
            f"{sample.tar}: {sample.key}.{sample.label_extension} has {labels[first]:g} for "
            f"{names[first]}; wanted a number from {low:g} to {high:g}, or NaN: correct it, then "
            "use --retry-failed"
        )


def _report(facts: Mapping[str, Any], text: str) -> dict[str, str]:
    """The raw columns where the JSON has them and they make the text; else the text alone."""
    stated = facts.get("report", facts)
    if isinstance(stated, dict):
        columns = {k: v for k, v in stated.items() if k.endswith("_EN") and isinstance(v, str)}
        if any(name in columns for name in _REPORT_COLUMNS) and (
            report_text(columns, _REPORT_COLUMNS) == text
        ):
            return columns
    return {_REPORT_COLUMNS[0]: text} if text else {}


def _rescale_pair(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    try:
        return float(facts["RescaleSlope"]), float(facts["RescaleIntercept"])
    except (KeyError, TypeError, ValueError):
        return None


def _shape_hint(facts: Mapping[str, Any]) -> tuple[int, int, int] | None:
    try:
        h, w, d = (int(n) for n in facts["volume_shape"])
    except (KeyError, TypeError, ValueError):
        return None
    return h, w, d
