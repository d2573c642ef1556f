"""What has become of a source since it was planned, and whether its build can go on with it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctgpu.building.members import says_the_same
from ctgpu.errors import MismatchError, TableError
from ctgpu.printable import printable
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.names import natural_key, record_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.sources.base import Source
from ctgpu.sources.dicom.private import root_of
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.patients import PatientSplit
from ctgpu.sources.selection import eligible, fitting
from ctgpu.sources.tars import TarSource
from ctgpu.volume.ref import SampleRef, Spelling, normal_form

_log = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True, slots=True)
class SourceNow:
    """The source of a plan, listed again.

    Attributes
    ----------
    source : Source
        Open.
    sizes_now : dict of str to int
        Sizes in bytes of the planned volumes whose size is not the planned one, by path.
    gone : frozenset of str
        Paths of the planned volumes that it does not hold.
    new : sequence of str
        Paths of volumes that a plan made now would have beside the planned ones.
    tables : sequence of str or None
        Paths of the tables that are not those that were planned with; None where neither the plan
        nor the listing says.
    """

    source: Source
    sizes_now: Mapping[str, int] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    new: Sequence[str] = ()
    tables: Sequence[str] | None = ()


def look_again(plan: Plan, source: Source) -> SourceNow:
    """List the source of a plan again and compare.

    Parameters
    ----------
    plan : Plan
        The plan.
    source : Source
        Its source; one on the Hub is pinned, and not listed.

    Raises
    ------
    UsageError
        If it has no volumes of the plan's split.
    AccessError, SourceError
        If it cannot be listed.
    """
    split = plan.split
    if isinstance(source, TarSource):
        refs = source.list_left()
    elif isinstance(source, FolderSource):
        refs = source.list_volumes(split)
    else:
        return SourceNow(source)
    sizes = {ref.path: ref.size_bytes for ref in refs}
    stored = Spelling(sizes)
    # What stands now for each planned volume that is there.
    found = {s.path: path for s in plan.samples if (path := stored.find(s.path)) is not None}
    return SourceNow(
        source,
        {
            sample.path: sizes[found[sample.path]]
            for sample in plan.samples
            # Of 0 bytes nothing can be made, so what was made before stays.
            if sample.path in found and sizes[found[sample.path]] not in (0, sample.size_bytes)
        },
        frozenset(sample.path for sample in plan.samples if sample.path not in found),
        _new(plan, source, refs, set(found.values()), split),
        _changed_tables(plan, source, split) if isinstance(source, FolderSource) else (),
    )


def _new(
    plan: Plan, source: Source, refs: Sequence[SampleRef], planned: Collection[str], split: str
) -> list[str]:
    """What the plan's selection takes now beside what it took; nothing where that was a trial.

    `planned` are the paths, as listed now, of what it took.
    """
    if plan.selection.get("limit") is not None or all(ref.path in planned for ref in refs):
        return []
    fit = fitting(refs, plan.selection.get("include"), plan.selection.get("exclude"))
    if isinstance(source, TarSource):
        found = fit
    else:
        found = eligible(
            fit,
            source.tables(split, plan.class_names),
            split=split,
            by_patient=PatientSplit.of_selection(split, plan.selection),
            recon=plan.selection.get("recon", "all"),
            keep_no_chest=bool(plan.selection.get("keep_no_chest")),
        )
    return [ref.path for ref in found if ref.path not in planned]


def _changed_tables(plan: Plan, source: FolderSource, split: str) -> Sequence[str] | None:
    planned = plan.source.get("tables")
    if planned is not None:
        planned = {normal_form(path): checksum for path, checksum in planned.items()}
        now = {normal_form(p): checksum for p, checksum in source.table_checksums(split).items()}
        return sorted(p for p in planned.keys() | now.keys() if planned.get(p) != now.get(p))
    # Earlier plans have one hash of all names and sizes.
    if source.identity()["revision"] == plan.source["revision"]:
        return ()
    volumes = sorted(plan.samples, key=lambda sample: natural_key(sample.path))
    unchanged = source.revision_of(volumes, split) == plan.source["revision"]
    return () if unchanged else None


def require_going_on(
    now: SourceNow,
    folder: Path,
    plan: Plan,
    pending: Collection[int],
    *,
    path: Path,
    force: bool,
) -> None:
    """Refuse a source that what is to be made cannot be made of; say what else has changed.

    Parameters
    ----------
    now : SourceNow
        The source.
    folder : Path
        The data set's folder.
    plan : Plan
        Its plan.
    pending : collection of int
        Shards that are to be made, or made again; of a committed one the good samples stay.
    path : Path
        Where the source is.
    force : bool
        The good samples of committed shards do not stay.

    Raises
    ------
    MismatchError
        If a volume is gone that is to be made, or another place has none of its planned size.
    """
    named = _called(plan, path)
    say_what_is_new(now.new, named)
    known = plan.source.get("missing_folders", {})
    if unknown := [p for p in now.source.missing_folders if printable(p) not in known]:
        _log.warning(
            "%s: folders that cannot be looked at: %s; what they hold is seen when they are back",
            *(named, shortened([f"{p} ({now.source.missing_folders[p]})" for p in unknown])),
        )
    if not (now.sizes_now or now.gone or now.tables is None or now.tables):
        return
    finished = {} if force else _finished(folder)
    missing = [
        sample.path
        for sample, index in _with_shards(plan)
        # One that had failed may fail again.
        if sample.path in now.gone and index in pending and index not in finished
    ]
    none_is_as_planned = len(now.sizes_now) + len(now.gone) == len(plan.samples)
    if missing or (none_is_as_planned and is_elsewhere(plan, folder, path)):
        raise foreign_source(now, plan, path, missing)
    mended = [
        sample.path
        for sample, index in _with_shards(plan)
        if sample.path in now.sizes_now
        and index in pending
        and sample.key not in finished.get(index, ())
    ]
    if mended:
        _log.info(
            "%s: %s of another size than planned, taken as they are now: %s",
            named,
            _number(mended, "volume", "volumes"),
            shortened(mended),
        )
    _say_what_stays(now, folder, plan, finished, named)


def is_elsewhere(plan: Plan, folder: Path, path: Path) -> bool:
    """Whether a source is at another place than the one that was planned in a folder."""
    planned = root_of(folder) if plan.source["kind"] == "dicom" else plan.source.get("path")
    return planned is None or path.resolve() != Path(planned)


def _called(plan: Plan, path: Path) -> Path | str:
    """What messages call a source; where DICOM lies is said nowhere, for it may name a patient."""
    return "the folder of DICOM" if plan.source["kind"] == "dicom" else path


def foreign_source(
    now: SourceNow, plan: Plan, path: Path, missing: Sequence[str] = ()
) -> MismatchError:
    """The error for a source that is not the planned one; names the volumes that show it."""
    missing = missing or sorted(now.gone, key=natural_key)
    resized = sorted(now.sizes_now, key=natural_key)
    found = []
    if missing:
        found.append(f"{_number(missing, 'is', 'are')} gone ({shortened(missing)})")
    if resized:
        found.append(f"{_number(resized, 'has', 'have')} another size ({shortened(resized)})")
    return MismatchError(
        f"{_called(plan, path)} does not hold the volumes that were planned: of "
        f"{len(plan.samples)}, {' and '.join(found)}; bring them back, name the right folder with "
        "--source, or build into another one"
    )


def new_tars(plan: Plan, pattern: Path) -> list[str]:
    """Tars that a pattern names and nothing of the plan is in; none of them is read."""
    source = TarSource(pattern)
    planned = Spelling(sample.path.partition(".tar/")[0] + ".tar" for sample in plan.samples)
    return [n for n in map(source.relative, source.tars_left()) if planned.find(n) is None]


def say_what_is_new(new: Sequence[str], path: Path | str) -> None:
    """Warn of files that have come since, which a plan does not take in."""
    if new:
        _log.warning(
            "%s holds %s that this data set was planned without, such as %s: build what is new "
            "into a folder of its own and load both (see docs/reliability.md)",
            path,
            _number(new, "file", "files"),
            shortened(new),
        )


def _say_what_stays(
    now: SourceNow,
    folder: Path,
    plan: Plan,
    finished: Mapping[int, Mapping[str, SampleEntry]],
    path: Path | str,
) -> None:
    stays: dict[str, int] = {}
    for sample, index in _with_shards(plan):
        entry = finished.get(index, {}).get(sample.key)
        size_bytes = now.sizes_now.get(sample.path)
        if entry is not None and size_bytes is not None and entry.source_bytes != size_bytes:
            stays[sample.key] = index
    if stays:
        _log.warning(
            "%s: finished samples stay as they are although their volumes have changed since: %s; "
            "`ctgpu build --output-dir %s --force --shards %d` makes that shard again",
            *(path, shortened(list(stays))),
            *(shlex.quote(str(folder)), next(iter(stays.values()))),
        )
    if now.tables:
        _log.info(
            "%s: changed since this data set was planned, and read as they are now: %s",
            path,
            shortened(now.tables),
        )
    if now.tables is None or now.tables:
        differ = list(_said_otherwise(now.source, plan, finished))
        if differ:
            _log.warning(
                "%s: %s whose labels or report are not what the tables say now: %s; `ctgpu "
                "relabel %s` writes them again",
                *(
                    path,
                    _number(differ, "finished sample", "finished samples"),
                    shortened(differ),
                    shlex.quote(str(folder)),
                ),
            )


def _said_otherwise(
    source: Source, plan: Plan, finished: Mapping[int, Mapping[str, SampleEntry]]
) -> Iterator[str]:
    """Keys of the finished samples that the tables say something else about."""
    tables = source.tables(plan.split, plan.class_names)
    from_header = plan.selection.get("spacing_fallback") == "header"
    for entries in finished.values():
        for key, entry in entries.items():
            try:
                row = tables.row(entry.study_id, spacing_from_header=from_header)
            except TableError:
                yield key
            else:
                if not says_the_same(entry, row):
                    yield key


def _finished(folder: Path) -> dict[int, dict[str, SampleEntry]]:
    """The samples of the committed shards, by shard and key."""
    records = (ShardRecord.load(folder / record_name(i)) for i in committed_shards(folder))
    return {
        record.shard_index: {entry.key: entry for entry in record.samples} for record in records
    }


def _with_shards(plan: Plan) -> Iterator[tuple[SampleRef, int]]:
    for place, sample in enumerate(plan.samples):
        yield sample, place // plan.samples_per_shard


def _number(things: Sequence[object], one: str, more: str) -> str:
    """How many there are, with what goes with one or with more of them."""
    return f"{len(things)} {one if len(things) == 1 else more}"


def shortened(paths: Sequence[str]) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
