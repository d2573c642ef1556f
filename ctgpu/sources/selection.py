"""Which of a source's volumes become samples, and in which order.

Pure functions of the listing, the tables and the user's choices: the same on every machine.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from ctgpu.data_sets import Description
from ctgpu.errors import TableError, UsageError
from ctgpu.printable import counted
from ctgpu.shards.names import natural_key
from ctgpu.sources.patients import PatientSplit, of_patients
from ctgpu.sources.tables import Joined, Tables
from ctgpu.volume.ref import SampleRef, normal_form

_log = logging.getLogger(__name__)

Recon = Literal["all", "first"]
Order = Literal["path", "shuffled"]

#: The split of volumes that a table of splits has no row for.
NO_SPLIT = "none"


class Selection(NamedTuple):
    """The samples of a build, and how they were chosen.

    Attributes
    ----------
    samples : list of SampleRef
        In plan order.
    counts : dict of str to int
        Volumes listed, left out and why, and samples that no table has a row for; the keys can
        be read after their numbers.
    """

    samples: list[SampleRef]
    counts: dict[str, int]


def select(
    refs: Sequence[SampleRef],
    tables: Tables,
    *,
    split: str | None = None,
    by_patient: PatientSplit | None = None,
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
        The tables of the split, and the description of the data set.
    split : str, optional
        Leave out the volumes that belong to another one by their names, or by the tables.
    by_patient : PatientSplit, optional
        Of a data set without splits, keep the volumes of this one's patients.
    recon : {"all", "first"}
        Every reconstruction of a scan, or only the lowest-numbered one that is left; names of which
        the description says nothing are scans of their own.
    order : {"path", "shuffled"}
        Natural order of the paths, or one shuffled by `seed`.
    seed : int
        Gives the same order wherever and whenever it is used.
    limit : int, optional
        Keep so many samples, the first ones of the order.
    keep_no_chest : bool
        Keep volumes that the source's lists leave out, such as CT-RATE's ``no_chest``.
    include, exclude : str, optional
        As :func:`fitting` takes them.

    Raises
    ------
    UsageError
        If no path fits, or a table is missing that tells splits apart, or two volumes would have
        the same name in the shards, a name is not UTF-8, or all volumes belong to another split.
    """
    fit = fitting(refs, include, exclude)
    if refs and not fit:
        asked = " and ".join(
            f"{name} {globs!r}"
            for name, globs in (("include", include), ("exclude", exclude))
            if globs is not None
        )
        raise UsageError(
            f"{asked} leaves none of the {counted(len(refs), 'volume')}, such as {refs[0].path}; "
            "globs are held against the whole path below the source, and * stands for slashes too"
        )
    data_set = tables.data_set
    if split is not None:
        _require_known_splits(tables)
    own = _of_split(fit, split, tables) if split is not None else fit
    if by_patient is not None:
        own = of_patients(own, tables, by_patient)
    refuse_bad_names(own)
    kept = _listed(own, tables.left_out, keep_no_chest)
    scans = _first_recons(kept, data_set) if recon == "first" else kept
    chosen = sorted(scans, key=_shuffled(seed) if order == "shuffled" else _by_path)[:limit]
    counts = {
        "listed": len(refs),
        **({} if include is exclude is None else {"left out by their paths": len(refs) - len(fit)}),
        "of the other split": len(fit) - len(own),
        **_left_out(own, kept, tables),
        "other reconstructions": len(kept) - len(scans),
        "beyond the limit": len(scans) - len(chosen),
        "selected": len(chosen),
        **_without_rows(chosen, tables),
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
    tables: Tables,
    *,
    split: str,
    by_patient: PatientSplit | None,
    recon: Recon,
    keep_no_chest: bool,
) -> list[SampleRef]:
    """What :func:`select` chooses from, without a word about what it leaves out."""
    own = [ref for ref in refs if _split_of(ref, tables) in (None, split)]
    if by_patient is not None:
        own = of_patients(own, tables, by_patient)
    kept = _listed(own, tables.left_out, keep_no_chest)
    return _first_recons(kept, tables.data_set) if recon == "first" else kept


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
                "keep or rename one of them, or name volumes by another part of their paths, with "
                "{key} in a glob of the data set's description (docs/data_sets.md)"
            )


def _require_known_splits(tables: Tables) -> None:
    """Refuse a data set whose splits a table is to tell, without that table."""
    if tables.tells_splits or not tables.data_set.splits:
        return
    for rule in tables.data_set.tables:
        if rule.split is not None:
            files = rule.files if isinstance(rule.files, tuple) else ()
            raise UsageError(
                f"the splits of {tables.data_set.name} are told by the column {rule.split} of "
                f"{' or '.join(files) or 'a table'}, which the source does not have; bring it "
                "there, or give every split globs of its own in the description"
            )


def _of_split(refs: Sequence[SampleRef], split: str, tables: Tables) -> Sequence[SampleRef]:
    own: list[SampleRef] = []
    others: dict[str, SampleRef] = {}
    for ref in refs:
        other = _split_of(ref, tables)
        if other in (None, split):
            own.append(ref)
        else:
            others.setdefault(str(other), ref)
    if others:
        other, example = next(iter(others.items()))
        number, name = len(refs) - len(own), tables.data_set.name
        by = "by their names" if tables.data_set.split_of_name(example.study_id) else "by its table"
        if not own:
            raise UsageError(
                f"{counted(number, 'volume is', 'volumes are')} all {name}'s of the split "
                f"{other!r} {by} ({example.path}), and {split!r} was asked for; pass --split "
                f"{other}, or the folder of the other split"
            )
        _log.log(
            # Where a table tells splits apart, they lie in one folder by intent.
            logging.WARNING if by == "by their names" else logging.INFO,
            "%s left out: %s's of the split %r %s, such as %s",
            *(counted(number, "volume is", "volumes are"), name, other, by, example.path),
        )
    return own


def _split_of(ref: SampleRef, tables: Tables) -> str | None:
    """The split that a volume belongs to by its name or by the tables; None where none says so."""
    if (split := tables.data_set.split_of_name(ref.study_id)) is not None:
        return split
    try:
        word = tables.facts_of(ref.study_id, "split")
    except TableError as error:
        _log.warning("%s: until then the volume is in no split", error)
        return NO_SPLIT
    if word is None:
        # Where a column tells splits apart, a volume without a row belongs to none of them.
        return NO_SPLIT if tables.tells_splits else None
    splits = tables.data_set.splits.items()
    said = word.casefold()
    return next((n for n, r in splits if said in map(str.casefold, r.words or (n,))), word)


def _listed(
    refs: Iterable[SampleRef], left_out: Collection[str], keep_them: bool
) -> list[SampleRef]:
    return [ref for ref in refs if keep_them or normal_form(ref.study_id) not in left_out]


def _left_out(
    refs: Iterable[SampleRef], kept: Iterable[SampleRef], tables: Tables
) -> dict[str, int]:
    """How many volumes each of the lists has left out, by its reason."""
    number = dict.fromkeys((rule.reason for rule in tables.data_set.leave_out), 0)
    stay = {ref.path for ref in kept}
    for ref in refs:
        if ref.path not in stay:
            number[tables.left_out[normal_form(ref.study_id)]] += 1
    return number


def _by_path(ref: SampleRef) -> tuple[object, ...]:
    return natural_key(ref.path)


def _shuffled(seed: int) -> Callable[[SampleRef], bytes]:
    # A hash, not random.shuffle: the same order in every Python version, and of every copy of the
    # data set, nested or flat.
    return lambda ref: hashlib.sha256(f"{seed}/{ref.study_id}".encode()).digest()


def _first_recons(refs: Iterable[SampleRef], data_set: Description) -> list[SampleRef]:
    first: dict[str, tuple[int, SampleRef]] = {}
    for ref in refs:
        scan, number = data_set.scan_of(ref.study_id) or (ref.study_id, 0)
        if scan not in first or number < first[scan][0]:
            first[scan] = number, ref
    return [ref for _, ref in first.values()]


def _without_rows(chosen: Sequence[SampleRef], tables: Tables) -> dict[str, int]:
    """How many samples no row is found for, of each kind of table that the description knows."""
    rules = tables.data_set.tables
    asked = {
        "labels": (tables.labels, any(rule.labels is not None for rule in rules)),
        "a report": (tables.reports, any(rule.text for rule in rules)),
        "metadata": (tables.metadata, any(rule.spacing_mm or rule.rescale for rule in rules)),
    }
    return {
        f"without {what}": _missing(table, chosen)
        for what, (table, known) in asked.items()
        if known
    }


def _missing(table: Joined | None, refs: Iterable[SampleRef]) -> int:
    return sum(table is None or ref.study_id not in table for ref in refs)
