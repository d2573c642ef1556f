"""An entry of the ledger goes to JSON and back, and nothing else becomes one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shard_samples import fail, make_plan

from ctgpu.shards.ledger import LedgerEntry

ENTRY = fail(make_plan().samples[2])


def test_an_entry_goes_to_json_and_back() -> None:
    values = json.loads(json.dumps(ENTRY.to_dict()))
    assert list(values) == ["key", "path", "stage", "error_class", "message", "attempts"]
    assert LedgerEntry.from_dict(values) == ENTRY


def test_an_entry_that_counts_no_attempts_is_of_the_first() -> None:
    values = ENTRY.to_dict()
    del values["attempts"]
    assert LedgerEntry.from_dict(values).attempts == 1


@pytest.mark.parametrize(
    "change",
    [
        {"key": 1},
        {"key": "a\0b"},
        {"path": None},
        {"stage": "a\0"},
        {"message": ["not a volume"]},
        {"attempts": -1},
        {"attempts": 1.5},
        {"attempts": 2**63},
    ],
)
def test_what_is_no_entry_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        LedgerEntry.from_dict(ENTRY.to_dict() | change)


@pytest.mark.parametrize("name", ["key", "path", "stage", "error_class", "message"])
def test_an_entry_that_lacks_a_field_is_refused(name: str) -> None:
    values = ENTRY.to_dict()
    del values[name]
    with pytest.raises(ValueError, match=name):
        LedgerEntry.from_dict(values)
