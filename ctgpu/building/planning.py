"""What a build will do: adopted from the folder's plan, or decided from what was asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctgpu.arguments import WHERE_GIVEN
from ctgpu.building.described import (
    JoinedTable,
    asked_for,
    joined_tables,
    of_plan,
    require_same,
    settle,
    to_record,
)
from ctgpu.building.events import Listing, Watcher
from ctgpu.building.request import Request, selection_defaults
from ctgpu.building.source_now import SourceNow, look_again, shortened
from ctgpu.data_sets import DEFAULT_SPLIT, PLAIN, Description, built_in
from ctgpu.data_sets.layout import SplitFolders
from ctgpu.engines import Engine, arithmetic_of
from ctgpu.errors import UsageError
from ctgpu.printable import counted, printable
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD, Plan
from ctgpu.sources import open_source, source_kind
from ctgpu.sources.base import Source
from ctgpu.sources.dicom.private import Pseudonyms, root_of
from ctgpu.sources.dicom.source import DicomSource
from ctgpu.sources.duplicates import duplicates
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.patients import PatientSplit
from ctgpu.sources.selection import select
from ctgpu.sources.tables import Tables
from ctgpu.sources.tars import TarSource
from ctgpu.spec import CT_RATE, Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.ref import SampleRef

_log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def device_for(folder: Path, device: str | Engine) -> str | Engine:
    """The device for `folder`: ``auto`` keeps to the arithmetic that it was begun with."""
    if device == "auto" and (folder / PLAN_NAME).exists():
        arithmetic = Plan.load(folder).arithmetic
        if arithmetic == arithmetic_of("reference"):
            return "reference"
    return device


def adopt_plan(folder: Path, request: Request, arithmetic: str) -> Plan | None:
    """The plan that `folder` was begun with, held against the request; None where it has none.

    Raises
    ------
    MismatchError
        If the request, or the arithmetic, contradicts it; every difference is named.
    """
    if not (folder / PLAN_NAME).exists():
        return None
    plan = Plan.load(folder)
    defaults = selection_defaults(Request)
    wanted: dict[str, Any] = {
        "arithmetic": arithmetic,
        # A choice that the plan's ctgpu did not have was made by default.
        "selection": {
            name: value
            for name, value in request.selection.items()
            if (name in plan.selection or value != defaults.get(name))
            # Said or not, what counts is whether there are masks.
            and (name != "masks" or value != (plan.masks is not None))
        },
    }
    if request.split is not None:
        wanted["split"] = request.split
    if request.samples_per_shard is not None:
        wanted["samples_per_shard"] = request.samples_per_shard
    if request.compress is not None:
        wanted["compression"] = request.compress
    if request.spec is not None:
        wanted["spec"] = request.spec.facts()
    require_same(plan, folder, request)
    plan.require(folder, wanted | {"source": _wanted_source(plan, request)})
    return plan


def _wanted_source(plan: Plan, request: Request) -> dict[str, str]:
    wanted: dict[str, str] = {}
    if request.source_path is not None:
        wanted["kind"] = source_kind(request.source_path)
        if wanted["kind"] == "folder" and plan.source["kind"] == "dicom":
            wanted["kind"] = "dicom"
    if request.repo_id is not None:
        wanted |= {"kind": "hub", "location": request.repo_id}
    if request.revision is not None and request.revision != plan.source.get("requested_revision"):
        # A commit may be given short; any other name is held against the one asked for first.
        found = str(plan.source.get("revision", ""))
        is_commit = re.fullmatch(r"[0-9a-f]{7,40}", request.revision) is not None
        wanted["revision"] = (
            found if is_commit and found.startswith(request.revision) else request.revision
        )
    return wanted


def open_planned_source(plan: Plan, folder: Path | None, request: Request) -> SourceNow:
    """The source that `plan` was made from, at its pinned revision, and what has become of it.

    Parameters
    ----------
    plan : Plan
        The plan.
    folder : Path or None
        The data set's folder; None where there is none, which DICOM needs for its keys.
    request : Request
        Where a folder is now, and how to reach the Hub.

    Returns
    -------
    SourceNow
        Its source is open, for the caller to close.

    Raises
    ------
    UsageError
        If a folder holds no volume of the plan's split.
    AccessError, SourceError
        If it cannot be reached.
    """
    if plan.source["kind"] == "hub":
        return SourceNow(_open_hub(plan, request))
    _warn_of_mixed_splits(plan)
    return look_again(plan, open_named_source(plan, folder, None, request))


def path_of_source(plan: Plan, folder: Path | None, request: Request) -> Path:
    """Where the folder or the tars of a plan are now.

    Raises
    ------
    UsageError
        If neither the request nor the plan says so.
    """
    if request.source_path is not None:
        return request.source_path
    is_dicom = plan.source["kind"] == "dicom"
    path = plan.source.get("path")
    if is_dicom:
        path = None if folder is None else root_of(folder)
    if is_dicom and path is not None and not Path(path).is_dir():
        raise UsageError(
            "the folder of DICOM that this data set was begun with is not there any more "
            "(private/series.json says where it was); bring it back, or name it with --source"
        )
    if path is None:
        raise UsageError("the plan does not say where its source is; name the folder with --source")
    return Path(path)


def open_named_source(
    plan: Plan, folder: Path | None, source: Path | None, request: Request
) -> Source:
    """The source that is named, or else that of a data set's plan; open, not listed.

    Raises
    ------
    UsageError, AccessError, SourceError
        As the source's constructor.
    """
    if source is None and plan.source["kind"] == "hub":
        return _open_hub(plan, request)
    keep_uids = bool(plan.selection.get("keep_uids"))
    return open_source(
        source=source or path_of_source(plan, folder, request),
        only_top=of_top_alone(plan) if source is None else is_old_top(source, plan),
        data_set=of_plan(plan),
        kind=plan.source["kind"],
        pseudonyms=Pseudonyms(folder, keep_uids, begun=True),
    )


def _open_hub(plan: Plan, request: Request) -> Source:
    return open_source(
        repo_id=plan.source["location"],
        revision=plan.source["revision"],
        temp_dir=request.temp_path,
        endpoint=request.endpoint,
        token=request.token,
        part_count=request.part.count,
        data_set=of_plan(plan),
    )


class MadePlan(NamedTuple):
    """A new plan, and what it was made of.

    Attributes
    ----------
    plan : Plan
        Not saved yet.
    source : Source
        Open.
    counts : dict of str to int
        What was listed, left out and why.
    data_set : str
        The description's name.
    tables : tuple of JoinedTable
        What was joined.
    """

    plan: Plan
    source: Source
    counts: dict[str, int]
    data_set: str
    tables: tuple[JoinedTable, ...]


def make_plan(
    request: Request, arithmetic: str, watch: Watcher, folder: Path | None = None
) -> MadePlan:
    """List the source, join the tables, and decide which sample goes to which shard.

    Parameters
    ----------
    request : Request
        What was asked for.
    arithmetic : str
        Of the engine.
    watch : callable
        Called when the listing begins.
    folder : Path, optional
        Where the plan will lie, and with it what says whom samples of DICOM show; by default that
        is forgotten.

    Returns
    -------
    MadePlan

    Raises
    ------
    UsageError
        If nothing is left to build.
    AccessError, SourceError
        If the source cannot be listed.
    """
    spec = request.spec or CT_RATE
    defaults = {n: v for n, v in selection_defaults(Request).items() if v is not WHERE_GIVEN}
    chosen = {**defaults, **request.selection}
    source, split, location = _open_source(request, folder)
    by_patient = PatientSplit.of_selection(split, chosen)
    watch(Listing({"kind": source_kind(request.source_path), "location": location}))
    refs = source.list_volumes(split)
    if source.listed_split not in (None, split):
        raise UsageError(
            f"{location} is part of {source.data_set.name}'s split {source.listed_split!r}, and "
            f"{split!r} was asked for; pass --split {source.listed_split}, or the folder of the "
            "other split"
        )
    data_set = source.data_set = settle(request, source, refs, split)
    if by_patient is not None and data_set.splits:
        raise UsageError(
            f"split_by is 'patient', and {data_set.name} has splits of its own, "
            f"{', '.join(data_set.splits)}; leave --split-by out, or pass --dataset with a "
            "description without splits"
        )
    if data_set.volumes.orientation is not None:
        chosen.setdefault("assume_orientation", data_set.volumes.orientation)
    masks = _masks_of(source, data_set, spec, request)
    tables = source.tables(split)
    recorded = to_record(data_set, request)
    _name_what_is_not_taken(source, tables)
    if recorded is not None:
        if recorded.licence:
            _log.info("%s: %s", recorded.name, recorded.licence)
        _name_missing_tables(recorded, tables, location)
    selected, counts = select(
        refs,
        tables,
        # Of tars it is only recorded.
        split=None if isinstance(source, TarSource) else split,
        by_patient=by_patient,
        recon=chosen["recon"],
        order=chosen["order"],
        seed=chosen["seed"],
        limit=chosen["limit"],
        keep_no_chest=chosen["keep_no_chest"],
        include=chosen.get("include"),
        exclude=chosen.get("exclude"),
    )
    _name_duplicates(source, selected, counts)
    identity = _identity(source, request, split)
    if not selected:
        few = "; of few patients the shares are only near: try another --seed"
        raise UsageError(
            f"{identity['location']} has no volumes of the {split} split to build "
            f"({', '.join(f'{n} {what}' for what, n in counts.items())})"
            f"{few if by_patient is not None else ''}"
        )
    plan = Plan(
        dataset=identity["location"],
        split=split,
        spec=spec,
        arithmetic=arithmetic,
        fingerprint=spec.fingerprint(arithmetic),
        source=identity,
        selection=chosen,
        samples_per_shard=request.samples_per_shard or DEFAULT_SAMPLES_PER_SHARD,
        class_names=tables.class_names,
        samples=selected,
        data_set=None if recorded is None else recorded.content,
        masks=masks,
        compression=request.compression,
    )
    return MadePlan(plan, source, counts, data_set.name, joined_tables(tables, selected))


def _masks_of(
    source: Source, data_set: Description, spec: Spec, request: Request
) -> MaskFormat | None:
    """How masks are stored beside the volumes; None where they are not."""
    way_out = "[masks] in the description says where they are, see docs/data_sets.md"
    rule = None if request.masks is False else data_set.masks
    if rule is None and request.masks:
        raise UsageError(f"masks were asked for, and {data_set.name} has none: {way_out}")
    if rule is None and spec.crop == "mask":
        left_out = "they are left out (--no-masks)" if data_set.masks else "it has none"
        raise UsageError(
            f"crop is 'mask', which needs the masks of {data_set.name}: {left_out}; {way_out}"
        )
    if rule is not None and isinstance(source, TarSource):
        raise UsageError(
            f"{data_set.name} has masks, which are not read from tars: leave them out with "
            "--no-masks, or pass the folder that holds volumes and masks with --source"
        )
    return None if rule is None else rule.format


def _open_source(request: Request, folder: Path | None) -> tuple[Source, str, str]:
    """The source that a request names, open; the split to take of it; and what it is called."""
    description = asked_for(request)
    repo_id = request.repo_id
    if request.source_path is None and repo_id is None:
        repo_id = (description or built_in()).repository
        if description is not None and repo_id is None:
            raise UsageError(
                f"the description of {description.name} names no repository on the Hub; pass "
                "--source with the folder that holds the data set, or --repo-id"
            )
    source = open_source(
        source=request.source_path,
        repo_id=repo_id,
        revision=request.revision,
        temp_dir=request.temp_path,
        endpoint=request.endpoint,
        token=request.token,
        part_count=request.part.count,
        data_set=description,
        pseudonyms=Pseudonyms(folder, bool(request.keep_uids)),
    )
    if request.keep_uids and not isinstance(source, DicomSource):
        raise UsageError(
            "keep_uids (--keep-uids) is for series of DICOM, and "
            f"{request.source_path or repo_id} is none; leave it out"
        )
    # Whether a folder is CT-RATE's is not known before it is listed.
    known = None if description is None and isinstance(source, FolderSource) else source.data_set
    split = known.split_asked_for(request.split) if known else request.split or DEFAULT_SPLIT
    return source, split, str(request.source_path or repo_id)


def _identity(source: Source, request: Request, split: str) -> dict[str, Any]:
    """What a plan records of its source."""
    identity: dict[str, Any] = dict(source.identity())
    if source.missing_folders:
        identity["missing_folders"] = {
            printable(path): printable(why) for path, why in source.missing_folders.items()
        }
    if request.source_path is not None:
        if not isinstance(source, DicomSource):
            identity["path"] = str(request.source_path.resolve())
        if isinstance(source, FolderSource):
            identity["tables"] = source.table_checksums(split)
    elif request.revision is not None and not _COMMIT.fullmatch(request.revision):
        identity["requested_revision"] = request.revision
    return identity


def _name_what_is_not_taken(source: Source, tables: Tables) -> None:
    """Warn of volumes, folders and tables that were seen and are no part of the data set."""
    if source.left_out:
        _log.warning(
            "%s: not taken, for only the volumes of the data set in %s are",
            *(shortened(source.left_out), source.identity()["root"]),
        )
    if source.missing_folders:
        _log.warning(
            "%s: none of their volumes is taken, for they cannot be looked at, and volumes cannot "
            "be added to a data set later; to have them in it, stop, bring them back, and begin in "
            "another folder",
            shortened([f"{path} ({why})" for path, why in source.missing_folders.items()]),
        )
    if source.unused_tables:
        _log.warning(
            "%s: seen and not read, for %s (see docs/data_sets.md)%s",
            shortened(source.unused_tables),
            "nothing in them names the volumes"
            if source.data_set.name == built_in(PLAIN).name
            else f"the description of {source.data_set.name} does not name them",
            "" if tables.class_names else "; the data set has no classes",
        )


def _name_missing_tables(data_set: Description, tables: Tables, location: str) -> None:
    """Warn of the tables that a description names and the source does not have."""
    found = [one.rule for one in tables.joined]
    for rule in data_set.tables:
        if rule not in found:
            files = rule.files if isinstance(rule.files, tuple) else rule.files.values()
            _log.warning(
                "%s has no table of %s (%s), which the description of %s names",
                *(location, " and ".join(rule.roles), shortened([*map(str, files)])),
                data_set.name,
            )


def _name_duplicates(source: Source, selected: Sequence[SampleRef], counts: dict[str, int]) -> None:
    """Warn of samples that are the same volume, and count those that are one too many."""
    same = duplicates(selected, source.file_of)
    if same:
        counts["the same as another"] = sum(len(group) - 1 for group in same)
        _log.warning(
            "%s the same bytes as another one, such as %s: each becomes a sample; to have it once, "
            "leave the others out with --exclude",
            counted(counts["the same as another"], "of the volumes is", "of the volumes are"),
            " and ".join(ref.path for ref in same[0][:3]),
        )


def of_top_alone(plan: Plan) -> bool:
    """Whether CT-RATE's folders and CSVs were looked for at the top of a source alone."""
    return "root" not in plan.source


def is_old_top(path: Path, plan: Plan | None) -> bool:
    """Whether a source is the folder of a plan that was made of its top alone."""
    if plan is None or plan.source["kind"] != "folder":
        return False
    return of_top_alone(plan) and path.resolve().name == plan.source["location"]


def _warn_of_mixed_splits(plan: Plan) -> None:
    """Before there was a `root`, volumes of one split could be planned as the other's."""
    data_set = of_plan(plan)
    folders = SplitFolders(data_set)
    others = [
        sample.path
        for sample in plan.samples
        if (folders.split_of(sample.path.split("/")) or data_set.split_of_name(sample.study_id))
        not in (None, plan.split)
    ]
    if others:
        _log.warning(
            "of the %s planned as the split %r %s of the other one, such as %s: the data set is "
            "completed as it was begun; to have them apart, build into another folder",
            *(counted(len(plan.samples), "volume"), plan.split),
            *(counted(len(others), "is", "are"), others[0]),
        )
