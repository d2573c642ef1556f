"""Which samples have no output, and why.

The failures of a shard are part of its journal and then of its record; ``failures.jsonl`` is
derived from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ctgpu.arguments import converted
from ctgpu.shards.untrusted import Count, Text


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One sample that failed for good.

    Attributes
    ----------
    key, path : str
        The sample's key, and its path in the source.
    stage : str
        Where it failed: ``fetch``, ``decode``, ``tables``, ``geometry``, ``intensity`` …
    error_class, message : str
        Class and text of the error.
    attempts : int
        Runs that have tried the sample.
    """

    key: Text
    path: Text
    stage: Text
    error_class: Text
    message: str
    attempts: Count = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LedgerEntry:
        """What :meth:`to_dict` made.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        return converted(values, cls)
