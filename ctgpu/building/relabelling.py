"""Labels, reports and metadata of finished shards, written again from the tables; volumes stay."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ctgpu.arguments import path_of
from ctgpu.buffers import BufferPool
from ctgpu.building.builder import unforeseen_os_errors
from ctgpu.building.members import label_bytes, relabelled_metadata, report_bytes, to_json_bytes
from ctgpu.building.planning import open_named_source
from ctgpu.building.request import Request
from ctgpu.errors import FetchError, StorageError, TableError, UsageError
from ctgpu.installation import __version__
from ctgpu.machine import require_free_space
from ctgpu.printable import counted
from ctgpu.shards.folder import is_committed
from ctgpu.shards.lease import Lease, LeaseSession, is_leased
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import journal_name, partial_name, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, ShardRecord, checksum
from ctgpu.shards.untrusted import parse_json
from ctgpu.shards.work import good_sample, require_compression
from ctgpu.shards.writer import ShardWriter
from ctgpu.sources.base import Source
from ctgpu.sources.table import read_first
from ctgpu.sources.tables import SampleRow, Tables
from ctgpu.sources.tars import TarSource
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

# What the labels and reports of a shard may grow by.
_SPARE_BYTES_PER_SAMPLE = 64 << 10


@dataclass(frozen=True, slots=True)
class RelabelReport:
    """What was written again.

    Attributes
    ----------
    folder : Path
        The data set.
    manifest : dict
        The content of ``manifest.json``, counted again.
    relabelled : sequence of str
        Keys of the samples whose labels, report or metadata are others now.
    shards : int
        How many were rewritten.
    left : dict of str to str
        Keys of the samples that are not as the tables say, and why.
    """

    folder: Path
    manifest: Mapping[str, Any]
    relabelled: Sequence[str]
    shards: int
    left: Mapping[str, str]

    def __repr__(self) -> str:
        samples = counted(self.manifest["total_samples"], "sample")
        return (
            f"RelabelReport({str(self.folder)!r}: {len(self.relabelled)} of {samples} relabelled, "
            f"{counted(self.shards, 'shard')} rewritten, {counted(len(self.left), 'sample')} left "
            "as they are)"
        )

    @property
    def exit_code(self) -> int:
        """0, or 1 where a sample is not as the tables say."""
        return 1 if self.left else 0


def relabel(
    output_dir: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    looked_at: Callable[[int, int], None] = lambda done, shards: None,
) -> RelabelReport:
    """Write labels, reports and metadata of finished samples again from the tables.

    Only shards in which something differs are rewritten, by the protocol of every commit: their
    volumes are copied, each held against its checksum, and until the new shard is complete the old
    one stays.  Of a table that the source does not have, what is stored stays.

    Parameters
    ----------
    output_dir : path
        Folder of the data set.
    source : path, optional
        Where the tables are: a copy of CT-RATE or any folder with tables of its names, with or
        without volumes, or the tars of a WebDataset.  By default what the data set was made of.
    token, endpoint : str, optional
        Of the Hub; default from the environment or the login.
    looked_at : callable
        Called after each shard with how many have been looked at and how many there are.

    Returns
    -------
    RelabelReport

    Raises
    ------
    UsageError
        If the folder has no plan, or the source no table with a row for any of its samples.
    LeaseHeld
        If another process works on a shard that is to be rewritten.
    EnvironmentFailure
        If the source or the folder fails.
    """
    folder = path_of("output_dir", output_dir)
    plan = Plan.load(folder)
    named = path_of("source", source) if source is not None else None
    with unforeseen_os_errors(folder):
        request = Request(token=token, endpoint=endpoint)
        with contextlib.closing(open_named_source(plan, folder, named, request)) as opened:
            opened.find_tables(plan.split)
            tables = opened.tables(plan.split, plan.class_names)
            where = str(named or plan.source.get("path", plan.source["location"]))
            _require_rows(plan, tables, opened, where)
            work = _Relabelling(folder, plan, tables)
            with LeaseSession(folder) as session:
                for index in range(plan.shards):
                    work.relabel_shard(index, session)
                    looked_at(index + 1, plan.shards)
    return RelabelReport(folder, write_manifest(folder), work.relabelled, work.shards, work.left)


@dataclass(slots=True)
class _Shard:
    """A committed shard, and what is to be written in place of its small members."""

    record: ShardRecord
    members: dict[str, tuple[bytes, bytes, bytes]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)


class _Relabelling:
    def __init__(self, folder: Path, plan: Plan, tables: Tables) -> None:
        self._folder = folder
        self._plan = plan
        self._tables = tables
        self._from_header = plan.selection.get("spacing_fallback") == "header"
        self._pool = BufferPool()
        self._room_is_known = True
        self.relabelled: list[str] = []
        self.shards = 0
        self.left: dict[str, str] = {}

    def relabel_shard(self, index: int, session: LeaseSession) -> None:
        self._finish_commit(index, session)
        if not is_committed(self._folder, index):
            return
        shard = self._look_at(index)
        if shard.members:
            with session.acquire_unless_alive(index) as lease:
                # A process that had the lease before may have rewritten it.
                shard = self._look_at(index)
                if shard.members:
                    self._rewrite(index, shard, lease)
        elif (self._folder / partial_name(index)).exists() and not is_leased(self._folder, index):
            log.warning(
                "%s was left by a command that was stopped while it made the shard again: run "
                "that to its end, or remove this file",
                self._folder / partial_name(index),
            )
        self.left |= shard.left

    def _finish_commit(self, index: int, session: LeaseSession) -> None:
        """Finish what was stopped where a new shard had begun to take the old one's place."""
        paths = [self._folder / name(index) for name in (record_name, shard_name, journal_name)]
        if [path.exists() for path in paths] != [False, True, True]:
            return
        with session.acquire_unless_alive(index) as lease:
            if is_committed(self._folder, index):
                return
            writer = self._writer(index, lease)
            if writer.pending:
                writer.abandon()
            else:
                writer.commit({"relabelled_by": __version__})

    def _look_at(self, index: int) -> _Shard:
        """What differs between the tables and the small members of a shard."""
        shard = _Shard(ShardRecord.load(self._folder / record_name(index)))
        require_compression(self._folder, shard.record, self._plan)
        with ShardReader(self._folder / shard_name(index)) as reader:
            for entry in shard.record.samples:
                try:
                    row = self._tables.row(entry.study_id, spacing_from_header=self._from_header)
                except TableError as error:
                    shard.left[entry.key] = str(error)
                    continue
                try:
                    stored = [reader.read(entry, extension) for extension in ("cls", "txt", "json")]
                    metadata = parse_json(stored[2])
                except (FetchError, ValueError) as error:
                    raise StorageError(
                        f"{error}; look at {self._folder} with `ctgpu verify`"
                    ) from error
                self._compare(shard, entry, row, stored, metadata)
        return shard

    def _compare(
        self,
        shard: _Shard,
        entry: SampleEntry,
        row: SampleRow,
        stored: Sequence[bytes],
        metadata: Mapping[str, Any],
    ) -> None:
        labels, text, _ = stored
        if self._tables.labels is not None:
            labels = label_bytes(row)
        if self._tables.reports is not None:
            text = report_bytes(row)
        said = relabelled_metadata(
            metadata,
            row,
            report=self._tables.reports is not None,
            stated_rescale=self._tables.metadata is not None,
            carried=any(one.rule.carry for one in self._tables.joined),
        )
        if self._tables.metadata is not None and (reason := _made_otherwise(metadata, row)):
            index = shard.record.shard_index
            shard.left[entry.key] = (
                f"{reason}; to make its shard again, run `ctgpu build --output-dir "
                f"{shlex.quote(str(self._folder))} --force --shards {index}`"
            )
        members = labels, text, stored[2] if said == metadata else to_json_bytes(said)
        if members != tuple(stored):
            shard.members[entry.key] = members
            if entry.labelled and labels != stored[0] and not row.has_labels:
                shard.unlabelled.append(entry.key)

    def _rewrite(self, index: int, shard: _Shard, lease: Lease) -> None:
        record, members = shard.record, shard.members
        self._require_room(record)
        good = {entry.key: entry for entry in record.samples}
        failed = {failure.key: failure for failure in record.failures}

        def is_current(planned: SampleRef, entry: SampleEntry | LedgerEntry) -> bool:
            if isinstance(entry, LedgerEntry):
                return failed.get(planned.key) == entry
            wanted = good[planned.key].digests
            if planned.key in members:
                digests = map(checksum, members[planned.key])
                wanted |= dict(zip(("cls", "txt", "json"), digests, strict=True))
            return entry.digests == wanted

        writer = self._writer(index, lease, replace_it=True, is_current=is_current)
        try:
            with ShardReader(self._folder / shard_name(index)) as reader:
                while writer.pending:
                    key = writer.pending[0].key
                    if key in failed:
                        writer.skip(failed[key])
                        continue
                    with good_sample(reader, good[key], self._pool, index) as sample:
                        if key in members:
                            labels, text, metadata = members[key]
                            sample = replace(sample, labels=labels, text=text, metadata=metadata)
                        writer.append(sample)
            writer.commit({**record.run, "relabelled_by": __version__})
        finally:
            writer.abandon()
        self.shards += 1
        self.relabelled += members
        log.info("shard %06d: %s relabelled", index, counted(len(members), "sample"))
        if shard.unlabelled:
            log.warning(
                "%s of shard %06d had labels and no row of them now, such as %s: without labels "
                "from now on",
                *(counted(len(shard.unlabelled), "sample"), index, shard.unlabelled[0]),
            )

    def _require_room(self, record: ShardRecord) -> None:
        if self._room_is_known:
            self._room_is_known = require_free_space(
                self._folder,
                record.size_bytes + _SPARE_BYTES_PER_SAMPLE * len(record.samples),
                f"shard {record.shard_index} takes {{}} beside the old one until it is complete",
                "free some, then run the same command again",
            )

    def _writer(
        self, index: int, lease: Lease, *, replace_it: bool = False, **options: Any
    ) -> ShardWriter:
        return ShardWriter(
            self._folder,
            self._plan,
            index,
            replace=replace_it,
            confirm=lease.confirm,
            **options,
        )


def _made_otherwise(metadata: Mapping[str, Any], row: SampleRow) -> str | None:
    """Which of the facts that decide voxels a row states otherwise; None if it states none."""
    source = metadata["source"]
    used = source["spacing_mm"]
    if row.spacing_mm is not None and list(row.spacing_mm) != used:
        return f"the tables state the spacing {list(row.spacing_mm)} mm, and its volume has {used}"
    intensity = source["intensity"]
    pair = [intensity["slope"], intensity["intercept"]]
    if intensity["source"] == "csv" and list(row.rescale_pair or ()) != pair:
        return (
            f"the tables state the slope and intercept {list(row.rescale_pair or ())}, and its "
            f"volume was made with {pair}"
        )
    return None


def _require_rows(plan: Plan, tables: Tables, source: Source, where: str) -> None:
    """Refuse tables that are not of this data set, and say which there are none of.

    Raises
    ------
    UsageError
    """
    found = {"labels": tables.labels, "reports": tables.reports, "metadata": tables.metadata}
    if (carried := next((one for one in tables.joined if one.rule.carry), None)) is not None:
        found["columns to carry"] = carried
    missing = [name for name, table in found.items() if table is None]
    data_set = source.data_set
    of_labels = [rule for rule in data_set.tables if rule.labels is not None]
    if not plan.class_names and any(
        read_first(source.read_table, data_set.paths(rule, plan.split)) for rule in of_labels
    ):
        log.warning(
            "%s has labels, and %s was planned without classes: no labels are read; to have them, "
            "build into another folder",
            *(where, plan.dataset),
        )
    if len(missing) == len(found):
        raise UsageError(
            f"{where} has no table of labels, reports or metadata of the split {plan.split!r}; "
            "name the folder that has them with --source (docs/format.md says under which names "
            "they are read)"
        )
    tables_found = list({id(one.table): one for one in found.values() if one is not None}.values())
    with_rows = [t for t in tables_found if any(s.study_id in t for s in plan.samples)]
    # Samples of tars may do without one or the other.
    if not with_rows or (len(with_rows) < len(tables_found) and not isinstance(source, TarSource)):
        table = next(table for table in tables_found if table not in with_rows)
        planned = counted(len(plan.samples), "sample")
        raise UsageError(
            f"{where}: {table.table.path} has a row for none of the {planned} "
            "planned; name the source of this data set with --source"
        )
    if missing:
        log.info("%s has no table of %s: what is stored stays", where, " or ".join(missing))
