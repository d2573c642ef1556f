"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ctgpu.spec import Spec
from support.phantoms import study_ids

STUDIES = study_ids(8)
#: Of these, in `source`: one that is cut short, and one that is not HU.
CUT, NOT_HU = STUDIES[3], STUDIES[4]
SPEC = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(44, 36, 24))
#: As it is built, so that a RawDataset shuffles likewise.
OPTIONS: Mapping[str, Any] = {"spec": SPEC, "samples_per_shard": 3, "device": "cpu"}


def studies(batches: Iterable[Mapping[str, Any]]) -> list[str]:
    """The study ids of batches, one after the other."""
    return [study for batch in batches for study in batch["study_id"]]


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two batches are alike, bit for bit."""
    return (
        one["study_id"] == other["study_id"]
        and one["report"] == other["report"]
        and one["labels"].equal(other["labels"])
        and one["volume"].dtype == other["volume"].dtype
        and one["volume"].equal(other["volume"])
    )
