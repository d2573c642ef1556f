"""Names of the files in a data set's folder."""

from __future__ import annotations

import re

PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"
FAILURES_NAME = "failures.jsonl"
#: The folder of what must not leave the machine: whom the samples of DICOM show.
PRIVATE_NAME = "private"

#: A file that ends so is rubbish once it has not been touched for an hour.
TEMPORARY_SUFFIX = ".ctgpu-tmp"

_LEASE = re.compile(r"(.+)\.lease\.[0-9]")
_FENCE = re.compile(r"\.shard-([0-9]{6,})\.[0-9a-f]+\.fence" + re.escape(TEMPORARY_SUFFIX))
_SHARD = re.compile(r"shard-([0-9]{6}|[1-9][0-9]{6,})\.(tar|json|idx|tar\.partial|journal)")
_MOST_DIGITS = 1000


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


def fence_name(index: int, writer: str) -> str:
    """The folder of one writer of shard `index`; ``*`` for `writer` matches those of all."""
    return f".shard-{index:06d}.{writer}.fence{TEMPORARY_SUFFIX}"


def parse_fence_name(name: str) -> int | None:
    """The shard whose writer's folder this is; None for any other file."""
    match = _FENCE.fullmatch(name)
    return int(match[1]) if match else None


def parse_shard_name(name: str) -> tuple[int, str] | None:
    """``shard-000012.idx`` to ``(12, "idx")``; None for any other file.

    The second item is ``"tar"``, ``"json"``, ``"idx"``, ``"tar.partial"`` or ``"journal"``.
    """
    match = _SHARD.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def natural_key(path: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``valid_2`` comes before ``valid_10``."""
    return tuple(
        # No file is named with more digits; a member of a tar may be, and is refused later.
        (0, int(part[:_MOST_DIGITS]), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", path)
    )
