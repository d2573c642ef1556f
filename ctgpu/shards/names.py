"""Names of the files in a data set's folder."""

from __future__ import annotations

import re

PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"
FAILURES_NAME = "failures.jsonl"

#: Whatever ends so is rubbish once it has not been touched for an hour.
TEMPORARY_SUFFIX = ".ctgpu-tmp"

_LEASE = re.compile(r"(.+)\.lease\.\d")
_SHARD = re.compile(r"shard-(\d{6,})\.(tar|json|idx|tar\.partial|journal)")


def shard_name(index: int) -> str:
    """The tar of shard `index`, such as ``shard-000000.tar``."""
    return f"shard-{index:06d}.tar"


def record_name(index: int) -> str:
    """Its record; where it exists, the shard is committed."""
    return f"shard-{index:06d}.json"


def index_name(index: int) -> str:
    """Its DALI index."""
    return f"shard-{index:06d}.idx"


def partial_name(index: int) -> str:
    """Its tar while it is being written."""
    return f"shard-{index:06d}.tar.partial"


def journal_name(index: int) -> str:
    """What is known to be complete in the partial tar."""
    return f"shard-{index:06d}.journal"


def lease_name(name: str, slot: int) -> str:
    """A lease on the file `name`."""
    return f"{name}.lease.{slot}"


def parse_lease_name(name: str) -> str | None:
    """The file that a lease is on; None for any other file."""
    match = _LEASE.fullmatch(name)
    return match[1] if match else None


def session_name(session: str) -> str:
    """The heartbeat of one process that holds leases."""
    return f".session-{session}{TEMPORARY_SUFFIX}"


def parse_shard_name(name: str) -> tuple[int, str] | None:
    """``shard-000012.idx`` to ``(12, "idx")``; None for any other file.

    The second item is ``"tar"``, ``"json"``, ``"idx"``, ``"tar.partial"`` or ``"journal"``.
    """
    match = _SHARD.fullmatch(name)
    return (int(match[1]), match[2]) if match else None
