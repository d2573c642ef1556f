"""What a build will do: adopted from the folder's plan, or decided from what was asked for."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ctgpu.arguments import WHERE_GIVEN
from ctgpu.building.events import Listing, Watcher
from ctgpu.building.request import Request, selection_defaults
from ctgpu.building.source_now import SourceNow, look_again, shortened
from ctgpu.engines import Engine, arithmetic_of
from ctgpu.errors import UsageError
from ctgpu.printable import printable
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD, Plan
from ctgpu.sources import DEFAULT_REPO_ID, open_source, source_kind
from ctgpu.sources.base import Source
from ctgpu.sources.ct_rate import split_of_folders, split_of_name
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.selection import select
from ctgpu.sources.tars import TarSource
from ctgpu.spec import CT_RATE
from ctgpu.volume.ref import Split

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
        },
    }
    if request.split is not None:
        wanted["split"] = request.split
    if request.samples_per_shard is not None:
        wanted["samples_per_shard"] = request.samples_per_shard
    if request.spec is not None:
        wanted["spec"] = request.spec.facts()
    plan.require(folder, wanted | {"source": _wanted_source(plan, request)})
    return plan


def _wanted_source(plan: Plan, request: Request) -> dict[str, str]:
    wanted: dict[str, str] = {}
    if request.source_path is not None:
        wanted["kind"] = source_kind(request.source_path)
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


def open_planned_source(plan: Plan, request: Request) -> SourceNow:
    """The source that `plan` was made from, at its pinned revision, and what has become of it.

    Parameters
    ----------
    plan : Plan
        The plan.
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
    source = open_source(source=path_of_source(plan, request), only_top=of_top_alone(plan))
    return look_again(plan, source)


def path_of_source(plan: Plan, request: Request) -> Path:
    """Where the folder or the tars of a plan are now.

    Raises
    ------
    UsageError
        If neither the request nor the plan says so.
    """
    if request.source_path is not None:
        return request.source_path
    if "path" not in plan.source:
        raise UsageError("the plan does not say where its source is; name the folder with --source")
    return Path(plan.source["path"])


def open_named_source(plan: Plan, source: Path | None, request: Request) -> Source:
    """The source that is named, or else that of a data set's plan; open, not listed.

    Raises
    ------
    UsageError, AccessError, SourceError
        As the source's constructor.
    """
    if source is not None:
        return open_source(source=source, only_top=is_old_top(source, plan))
    if plan.source["kind"] == "hub":
        return _open_hub(plan, request)
    return open_source(source=path_of_source(plan, request), only_top=of_top_alone(plan))


def _open_hub(plan: Plan, request: Request) -> Source:
    return open_source(
        repo_id=plan.source["location"],
        revision=plan.source["revision"],
        temp_dir=request.temp_path,
        endpoint=request.endpoint,
        token=request.token,
        part_count=request.part.count,
    )


def make_plan(
    request: Request, arithmetic: str, watch: Watcher
) -> tuple[Plan, Source, dict[str, int]]:
    """List the source, join the tables, and decide which sample goes to which shard.

    Returns
    -------
    (Plan, Source, dict of str to int)
        The plan, not saved yet; the open source; and what was counted on the way.

    Raises
    ------
    UsageError
        If nothing is left to build.
    AccessError, SourceError
        If the source cannot be listed.
    """
    split = as_split(request.split or "valid")
    spec = request.spec or CT_RATE
    defaults = {n: v for n, v in selection_defaults(Request).items() if v is not WHERE_GIVEN}
    chosen = {**defaults, **request.selection}
    source = open_source(
        source=request.source_path,
        repo_id=None if request.source_path else request.repo_id or DEFAULT_REPO_ID,
        revision=request.revision,
        temp_dir=request.temp_path,
        endpoint=request.endpoint,
        token=request.token,
        part_count=request.part.count,
    )
    location = str(request.source_path or request.repo_id or DEFAULT_REPO_ID)
    watch(Listing({"kind": source_kind(request.source_path), "location": location}))
    refs = source.list_volumes(split)
    if source.listed_split not in (None, split):
        raise UsageError(
            f"{location} is part of CT-RATE's split {source.listed_split!r}, and {split!r} was "
            f"asked for; pass --split {source.listed_split}, or the folder of the other split"
        )
    tables = source.tables(split)
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
            "%s: seen and not read, for tables are read by CT-RATE's names alone, from the root of "
            "the data set (see docs/format.md)%s",
            shortened(source.unused_tables),
            "" if tables.class_names else "; the data set has no classes",
        )
    selected, counts = select(
        refs,
        tables,
        # Of tars it is only recorded.
        split=None if isinstance(source, TarSource) else split,
        recon=chosen["recon"],
        order=chosen["order"],
        seed=chosen["seed"],
        limit=chosen["limit"],
        keep_no_chest=chosen["keep_no_chest"],
        include=chosen.get("include"),
        exclude=chosen.get("exclude"),
    )
    identity: dict[str, Any] = dict(source.identity())
    if source.missing_folders:
        identity["missing_folders"] = {
            printable(path): printable(why) for path, why in source.missing_folders.items()
        }
    if request.source_path is not None:
        identity["path"] = str(request.source_path.resolve())
        if isinstance(source, FolderSource):
            identity["tables"] = source.table_checksums(split)
    elif request.revision is not None and not _COMMIT.fullmatch(request.revision):
        identity["requested_revision"] = request.revision
    if not selected:
        raise UsageError(
            f"{identity['location']} has no volumes of the {split} split to build "
            f"({', '.join(f'{n} {what}' for what, n in counts.items())})"
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
    )
    return plan, source, counts


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
    others = [
        sample.path
        for sample in plan.samples
        if (split_of_folders(sample.path.split("/")) or split_of_name(sample.study_id))
        not in (None, plan.split)
    ]
    if others:
        _log.warning(
            "%d of the %d volumes planned as the split %r are of the other one, such as %s: "
            "the data set is completed as it was begun; to have them apart, build into another "
            "folder",
            *(len(others), len(plan.samples), plan.split, others[0]),
        )


def as_split(name: str) -> Split:
    """`name`, checked when the request was made, as a :data:`Split`."""
    return "train" if name == "train" else "valid"
