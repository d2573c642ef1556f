"""What a build will do: adopted from the folder's plan, or decided from what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ctgpu.engines import Engine, arithmetic_of
from ctgpu.errors import MismatchError, UsageError
from ctgpu.progress import Listing, Watcher
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import Plan, PlannedSample
from ctgpu.sources import DEFAULT_REPO_ID, open_source, source_kind
from ctgpu.sources.base import Source, Split
from ctgpu.sources.selection import Order, Recon, select
from ctgpu.sources.tables import LABEL_NAMES
from ctgpu.sources.tars import TarSource
from ctgpu.spec import CT_RATE, Spec

_CHOICES = {
    "recon": get_args(Recon),
    "order": get_args(Order),
    "spacing_fallback": ("fail", "header"),
}

_DEFAULT_SELECTION: Mapping[str, Any] = {
    "recon": "all",
    "order": "path",
    "seed": 0,
    "limit": None,
    "keep_no_chest": False,
    "spacing_fallback": "fail",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller said about the data set; None where they said nothing.

    An existing folder's plan fills the gaps, and contradicting it is refused; a new folder takes
    the defaults.
    """

    split: str | None = None
    source: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    spec: Spec | None = None
    samples_per_shard: int | None = None
    selection: Mapping[str, Any]
    temp_dir: Path | None = None
    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    part_count: int = 1

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in get_args(Split):
            raise UsageError(f"--split is {self.split!r}; it is train or valid")
        if self.source is not None and (self.repo_id is not None or self.revision is not None):
            raise UsageError(
                "--source names a local folder, --repo-id and --revision a data set on the Hub; "
                "give one or the other"
            )
        for name, allowed in _CHOICES.items():
            value = self.selection.get(name)
            if value is not None and value not in allowed:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {value!r}; it is {' or '.join(allowed)}"
                )
        for name, value in (
            ("--limit", self.selection.get("limit")),
            ("--samples-per-shard", self.samples_per_shard),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it takes a whole number from 1")


@dataclass(frozen=True, slots=True)
class Part:
    """One of several processes that were asked for the same and share the work.

    Attributes
    ----------
    index, count : int
        This one's number from 0, and how many there are.
    processes_per_machine : int
        How many of them share this machine's memory.
    """

    index: int = 0
    count: int = 1
    processes_per_machine: int = 1

    def shards_of(self, shards: int) -> range:
        """This part of `shards` shards: consecutive ones, and never one more than another part."""
        return range(shards * self.index // self.count, shards * (self.index + 1) // self.count)


def device_for(folder: Path, device: str | Engine) -> str | Engine:
    """What computes for `folder`: ``auto`` keeps to the arithmetic that it was begun with."""
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
    wanted: dict[str, Any] = {
        "arithmetic": arithmetic,
        "selection": {k: v for k, v in request.selection.items() if v is not None},
    }
    if request.split is not None:
        wanted["split"] = request.split
    if request.samples_per_shard is not None:
        wanted["samples_per_shard"] = request.samples_per_shard
    if request.spec is not None:
        wanted["spec"] = request.spec.to_dict()
    plan.require(folder, wanted | {"source": _wanted_source(plan, request)})
    return plan


def _wanted_source(plan: Plan, request: Request) -> dict[str, str]:
    wanted: dict[str, str] = {}
    if request.source is not None:
        wanted["kind"] = source_kind(request.source)
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


def open_planned_source(
    plan: Plan, request: Request, *, repaired: bool = False
) -> tuple[Source, Mapping[str, int]]:
    """The source that `plan` was made from, at its pinned revision.

    Parameters
    ----------
    plan : Plan
        The plan.
    request : Request
        Where a folder is now, and how to reach the Hub.
    repaired : bool
        Files and tables of a folder may have changed: failed samples are to be tried again.

    Returns
    -------
    (Source, mapping of str to int)
        The source, and the sizes in bytes of the volumes whose size is not the planned one.

    Raises
    ------
    MismatchError
        If a folder's volumes are no longer those that were planned.
    AccessError, SourceError
        If it cannot be reached.
    """
    if plan.source["kind"] == "hub":
        return open_source(
            repo_id=plan.source["location"],
            revision=plan.source["revision"],
            temp_dir=request.temp_dir,
            endpoint=request.endpoint,
            token=request.token,
            part_count=request.part_count,
        ), {}
    path = request.source or Path(plan.source["path"])
    source = open_source(source=path)
    if isinstance(source, TarSource):
        # Converting may have deleted the tars that are done.
        return source, source.list_left(plan.samples, repaired=repaired)
    listed = source.list_volumes(as_split(plan.split))
    found = source.identity()["revision"]
    if found != plan.source["revision"] and not repaired:
        raise MismatchError(
            f"{path} does not hold the volumes that were planned (its listing is {found}, planned "
            f"was {plan.source['revision']}): name the right folder with --source, or build into "
            "another one"
        )
    planned = {sample.path: sample.size_bytes for sample in plan.samples}
    return source, {
        ref.path: ref.size_bytes
        for ref in listed
        if planned.get(ref.path, ref.size_bytes) != ref.size_bytes
    }


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
    chosen = dict(_DEFAULT_SELECTION)
    chosen |= {name: value for name, value in request.selection.items() if value is not None}
    source = open_source(
        source=request.source,
        repo_id=None if request.source else request.repo_id or DEFAULT_REPO_ID,
        revision=request.revision,
        temp_dir=request.temp_dir,
        endpoint=request.endpoint,
        token=request.token,
        part_count=request.part_count,
    )
    location = str(request.source or request.repo_id or DEFAULT_REPO_ID)
    watch(Listing({"kind": source_kind(request.source), "location": location}))
    refs = source.list_volumes(split)
    tables = source.tables(split)
    selected, counts = select(
        refs,
        tables,
        recon=chosen["recon"],
        order=chosen["order"],
        seed=chosen["seed"],
        limit=chosen["limit"],
        keep_no_chest=chosen["keep_no_chest"],
    )
    identity: dict[str, Any] = dict(source.identity())
    if request.source is not None:
        identity["path"] = str(request.source.resolve())
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
        samples_per_shard=request.samples_per_shard or 128,
        class_names=tuple(LABEL_NAMES),
        samples=[
            PlannedSample(r.key, r.study_id, r.path, r.size_bytes, r.checksum, r.provenance)
            for r in selected
        ],
    )
    return plan, source, counts


def as_split(name: str) -> Split:
    """`name`, checked when the request was made, as a :data:`Split`."""
    return "train" if name == "train" else "valid"
