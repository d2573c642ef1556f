"""Which of a source's volumes become samples, and in which order.

Pure functions of the listing, the CSVs and the user's choices: the same on every machine.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from ctgpu.errors import UsageError
from ctgpu.shards.names import natural_key
from ctgpu.sources.ct_rate import split_of_name
from ctgpu.sources.tables import Table, Tables
from ctgpu.volume.ref import SampleRef, Split, normal_form

_log = logging.getLogger(__name__)

Recon = Literal["all", "first"]
Order = Literal["path", "shuffled"]

_RECON_NAME = re.compile(r"((?:train|valid)_\d+_[A-Za-z]+)_(\d+)")


class Selection(NamedTuple):
    """The samples of a build, and how they were chosen.

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
    split: Split | None = None,
    recon: Recon = "all",
    order: Order = "path",
    seed: int = 0,
    limit: int | None = None,
    keep_no_chest: bool = False,
    include: str | None = None,
    exclude: str | None = None,
) -> Selection:
    """Choose and order the samples of a build.

    Parameters
    ----------
    refs : sequence of SampleRef
        What the source lists.
    tables : Tables
        The CSVs of the split.
    split : {"train", "valid"}, optional
        Leave out the volumes that CT-RATE's names say belong to the other one.
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
    include, exclude : str, optional
        As :func:`fitting` takes them.

    Raises
    ------
    UsageError
        If no path fits, or two volumes would have the same name in the shards, a name is not UTF-8,
        or all volumes belong to the other split.
    """
    fit = fitting(refs, include, exclude)
    if refs and not fit:
        asked = " and ".join(
            f"{name} {globs!r}"
            for name, globs in (("include", include), ("exclude", exclude))
            if globs is not None
        )
        raise UsageError(
            f"{asked} leaves none of the {len(refs)} volumes, such as {refs[0].path}; globs are "
            "held against the whole path below the source, and * stands for slashes too"
        )
    own = _of_split(fit, split) if split is not None else fit
    refuse_bad_names(own)
    kept = _with_chest(own, tables.no_chest, keep_no_chest)
    scans = _first_recons(kept) if recon == "first" else kept
    chosen = sorted(scans, key=_shuffled(seed) if order == "shuffled" else _by_path)[:limit]
    counts = {
        "listed": len(refs),
        **({} if include is exclude is None else {"left out by their paths": len(refs) - len(fit)}),
        "of the other split": len(fit) - len(own),
        "without a chest": len(own) - len(kept),
        "other reconstructions": len(kept) - len(scans),
        "beyond the limit": len(scans) - len(chosen),
        "selected": len(chosen),
        "without labels": _missing(tables.labels, chosen),
        "without a report": _missing(tables.reports, chosen),
        "without metadata": _missing(tables.metadata, chosen),
        "without a byte": sum(ref.size_bytes == 0 for ref in chosen),
    }
    return Selection(chosen, counts)


def fitting(refs: Iterable[SampleRef], include: str | None, exclude: str | None) -> list[SampleRef]:
    """The volumes whose paths fit some globs.

    Parameters
    ----------
    refs : iterable of SampleRef
        What the source lists.
    include, exclude : str, optional
        Globs with commas between them, held against the path relative to the source, in which
        ``*`` stands for slashes too: keep only what one of `include` fits, and of that nothing
        that one of `exclude` fits.
    """
    wanted, unwanted = _globs(include), _globs(exclude)
    return [
        ref
        for ref in refs
        if (wanted is None or wanted(ref.path)) and not (unwanted and unwanted(ref.path))
    ]


def _globs(text: str | None) -> Callable[[str], bool] | None:
    """Whether a path fits one of some globs; in NFC, as macOS writes names in NFD."""
    if text is None:
        return None
    globs = [normal_form(glob.strip()) for glob in text.split(",")]
    return lambda path: any(fnmatch.fnmatchcase(normal_form(path), glob) for glob in globs)


def eligible(
    refs: Iterable[SampleRef],
    no_chest: Collection[str],
    *,
    split: Split,
    recon: Recon,
    keep_no_chest: bool,
) -> list[SampleRef]:
    """What :func:`select` chooses from, without a word about what it leaves out."""
    own = [ref for ref in refs if split_of_name(ref.study_id) in (None, split)]
    kept = _with_chest(own, no_chest, keep_no_chest)
    return _first_recons(kept) if recon == "first" else kept


def refuse_bad_names(refs: Iterable[SampleRef]) -> None:
    """Make sure that every volume has a name of its own in the shards.

    Raises
    ------
    UsageError
        If two volumes have the same study id (in two formats or folders, or spelt in two of
        Unicode's normal forms), or the same key (dots become ``_``), or a name is not UTF-8; the
        message names the files.
    """
    paths: dict[str, str] = {}
    for ref in refs:
        try:
            ref.path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{ref.path!a} has a name that is not UTF-8; rename it") from None
        other = paths.setdefault(normal_form(ref.key), ref.path)
        if other is not ref.path:
            raise UsageError(
                f"{other} and {ref.path} would both be {ref.key!r} in the shards; "
                "keep or rename one of them"
            )


def _of_split(refs: Sequence[SampleRef], split: Split) -> Sequence[SampleRef]:
    own: list[SampleRef] = []
    others: list[SampleRef] = []
    for ref in refs:
        (own if split_of_name(ref.study_id) in (None, split) else others).append(ref)
    if others:
        example, other = others[0].path, split_of_name(others[0].study_id)
        if not own:
            raise UsageError(
                f"all {len(others)} volumes are CT-RATE's of the split {other!r} by their names "
                f"({example}), and {split!r} was asked for; pass --split {other}, or the folder of "
                "the other split"
            )
        _log.warning(
            "%d volumes are left out: CT-RATE's of the split %r by their names, such as %s",
            len(others),
            other,
            example,
        )
    return own


def _with_chest(
    refs: Iterable[SampleRef], no_chest: Collection[str], keep_no_chest: bool
) -> list[SampleRef]:
    return [ref for ref in refs if keep_no_chest or normal_form(ref.study_id) not in no_chest]


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
