"""Tables of made-up data sets, without a folder that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctgpu.data_sets import Description
from ctgpu.sources.tables import Tables


@dataclass
class Shelf:
    """A source of tables."""

    data_set: Description
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    listed_split: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        name = next((name for name in names if name in self.files), None)
        if name is None:
            return None
        content = self.files[name]
        return name, content.encode() if isinstance(content, str) else content


def load(
    table: str | bytes | None,
    class_names: Sequence[str] | None = None,
    *,
    data_set: Any = None,
    **rule: Any,
) -> Tables:
    """Tables of a data set with one of them, ``t.csv``."""
    rules = [{"files": ["t.csv"], "key": "scan", **rule}]
    description = Description.of({"name": "x", "tables": rules, **(data_set or {})})
    return Tables.load(
        Shelf(description, {} if table is None else {"t.csv": table}), "valid", class_names
    )


def load_many(
    files: Mapping[str, str | bytes],
    *rules: Mapping[str, Any],
    split: str = "valid",
    **content: Any,
) -> Tables:
    described = [{"key": "scan", **rule} for rule in rules]
    description = Description.of({"name": "x", "tables": described, **content})
    return Tables.load(Shelf(description, files), split)


def labels_of(tables: Tables, study_id: str = "a") -> list[float | None]:
    """Labels of a volume; None for those that are not known."""
    labels = tables.row(study_id).labels
    assert labels.dtype == np.float32
    return [None if math.isnan(value) else value for value in labels.tolist()]
