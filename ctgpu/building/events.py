"""What happens in a build, as events for those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ctgpu.building.described import JoinedTable
from ctgpu.building.pipeline import Failure


@dataclass(frozen=True, slots=True)
class Listing:
    """The source is being listed; nothing is known yet."""

    source: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan stands and the first sample is about to be fetched.

    Attributes
    ----------
    counts : mapping
        Files listed, left out and why.
    samples, shards : int
        Of the whole plan.
    pending_shards : int
        Not finished yet, of those that this run was asked for.
    pending_samples : int
        Of those shards, the kept ones of interrupted shards included.
    data_set : str
        Name of the description that it goes by.
    tables : tuple of JoinedTable
        What was joined to the samples; empty where the plan was made by an earlier run.
    """

    counts: Mapping[str, int]
    samples: int
    shards: int
    pending_shards: int
    pending_samples: int
    data_set: str = ""
    tables: tuple[JoinedTable, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardResumed:
    """An interrupted shard goes on; its first samples need not be made again."""

    shard: int
    kept_samples: int


@dataclass(frozen=True, slots=True)
class SampleWritten:
    """One sample is in its shard; `orientation` is how its source is stored, where it says so."""

    key: str
    shard: int
    source_bytes: int
    stored_bytes: int
    orientation: str | None = None


@dataclass(frozen=True, slots=True)
class SampleFailed:
    """One sample has a ledger entry instead."""

    key: str
    shard: int
    path: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class ShardCommitted:
    """A shard has its final name and its record."""

    shard: int
    samples: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ShardElsewhere:
    """Another live process works on this shard; `holder` says which, in words."""

    shard: int
    holder: str


@dataclass(frozen=True, slots=True)
class ShardDoneElsewhere:
    """A shard that was to be made here was finished by another process."""

    shard: int
    samples: int


Event = (
    Listing
    | Planned
    | ShardResumed
    | SampleWritten
    | SampleFailed
    | ShardCommitted
    | ShardElsewhere
    | ShardDoneElsewhere
)
Watcher = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A watcher that does nothing."""
