"""Which of a source's volumes become samples, and in which order.

Pure functions of the listing, the CSVs and the user's choices: the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from ctgpu.errors import UsageError
from ctgpu.sources.base import SampleRef, natural_key
from ctgpu.sources.tables import Table, Tables

Recon = Literal["all", "first"]
Order = Literal["path", "shuffled"]

_RECON_NAME = re.compile(r"((?:train|valid)_\d+_[A-Za-z]+)_(\d+)")


class Selection(NamedTuple):
    """The samples of a build, and how they were come by.

    Attributes
    ----------
    samples : list of SampleRef
        In plan order.
    counts : dict of str to int
        Volumes listed, left out and why, and samples that no CSV row was found for; the keys can
        be read after their numbers.
    """

    samples: list[SampleRef]
    counts: dict[str, int]


def select(
    refs: Sequence[SampleRef],
    tables: Tables,
    *,
    recon: Recon = "all",
    order: Order = "path",
    seed: int = 0,
    limit: int | None = None,
    keep_no_chest: bool = False,
) -> Selection:
    """Choose and order the samples of a build.

    Parameters
    ----------
    refs : sequence of SampleRef
        What the source lists.
    tables : Tables
        The CSVs of the split.
    recon : {"all", "first"}
        Every reconstruction of a scan, or only the lowest-numbered one that is left; names other
        than CT-RATE's are scans of their own.
    order : {"path", "shuffled"}
        Natural order of the paths, or one shuffled by `seed`.
    seed : int
        Gives the same order wherever and whenever it is used.
    limit : int, optional
        Keep so many samples, the first ones of the order.
    keep_no_chest : bool
        Keep volumes that the source's ``no_chest`` list names.

    Raises
    ------
    UsageError
        If two volumes would have the same name in the shards, or a name is not UTF-8.
    """
    refuse_bad_names(refs)
    kept = [ref for ref in refs if keep_no_chest or ref.study_id not in tables.no_chest]
    scans = _first_recons(kept) if recon == "first" else kept
    chosen = sorted(scans, key=_shuffled(seed) if order == "shuffled" else _by_path)[:limit]
    counts = {
        "listed": len(refs),
        "without a chest": len(refs) - len(kept),
        "other reconstructions": len(kept) - len(scans),
        "beyond the limit": len(scans) - len(chosen),
        "selected": len(chosen),
        "without labels": _missing(tables.labels, chosen),
        "without a report": _missing(tables.reports, chosen),
        "without metadata": _missing(tables.metadata, chosen),
    }
    return Selection(chosen, counts)


def refuse_bad_names(refs: Iterable[SampleRef]) -> None:
    """Make sure that every volume has a name of its own in the shards.

    Raises
    ------
    UsageError
        If two volumes have the same study id (in two formats or folders), or the same key (dots
        become ``_``), or a name is not UTF-8; the message names the files.
    """
    paths: dict[str, str] = {}
    for ref in refs:
        try:
            ref.path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{ref.path!a} has a name that is not UTF-8; rename it") from None
        other = paths.setdefault(ref.key, ref.path)
        if other is not ref.path:
            raise UsageError(
                f"{other} and {ref.path} would both be {ref.key!r} in the shards; "
                "keep or rename one of them"
            )


def _by_path(ref: SampleRef) -> tuple[object, ...]:
    return natural_key(ref.path)


def _shuffled(seed: int) -> Callable[[SampleRef], bytes]:
    # A hash, not random.shuffle: the same order in every Python version, and of every copy of the
    # data set, nested or flat.
    return lambda ref: hashlib.sha256(f"{seed}/{ref.study_id}".encode()).digest()


def _first_recons(refs: Iterable[SampleRef]) -> list[SampleRef]:
    first: dict[str, tuple[int, SampleRef]] = {}
    for ref in refs:
        name = _RECON_NAME.fullmatch(ref.study_id)
        scan, number = (name[1], int(name[2])) if name else (ref.study_id, 0)
        if scan not in first or number < first[scan][0]:
            first[scan] = number, ref
    return [ref for _, ref in first.values()]


def _missing(table: Table | None, refs: Iterable[SampleRef]) -> int:
    return sum(table is None or ref.study_id not in table for ref in refs)
