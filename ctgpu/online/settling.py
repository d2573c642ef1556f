"""The plan of what is read raw, and the source that its samples are made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ctgpu.building.events import ignore
from ctgpu.building.planning import (
    adopt_plan,
    device_for,
    make_plan,
    open_planned_source,
    path_of_source,
)
from ctgpu.building.request import Request
from ctgpu.building.source_now import foreign_source
from ctgpu.engines import arithmetic_of
from ctgpu.errors import UsageError
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source
from ctgpu.spec import CT_RATE
from ctgpu.volume.crop import require_croppable


@dataclass(frozen=True, slots=True)
class Settled:
    """A plan, and its source where that was opened to make it."""

    plan: Plan
    source: Source | None
    device: str


def settle(request: Request, folder: Path | None) -> Settled:
    """The plan of `folder`, held against the request, or one made as a build would make it.

    Parameters
    ----------
    request : Request
        What is wanted.
    folder : Path, optional
        One that `ctgpu build` began, or that it will; nothing is written there.

    Raises
    ------
    UsageError
        If nothing is left to read, or it is DICOM and nothing keeps what its series are called;
        MismatchError where the folder was begun otherwise.
    AccessError, SourceError
        If the source cannot be listed.
    """
    assert isinstance(request.device, str)
    device = request.device if folder is None else str(device_for(folder, request.device))
    arithmetic = arithmetic_of(device)
    if folder is not None and (plan := adopt_plan(folder, request, arithmetic)) is not None:
        require_croppable(plan.spec)
        return Settled(plan, None, device)
    require_croppable(request.spec or CT_RATE)
    made = make_plan(request, arithmetic, ignore)
    made.plan.check()
    if made.plan.source["kind"] == "dicom" and not request.keep_uids:
        made.source.close()
        raise UsageError(
            "series of DICOM are called by keys that a data set's folder keeps, and there is none: "
            "begin one with `ctgpu build --shards 0-0`, which makes its first shard, and name it "
            "with shards or plan; or call them by their UIDs with keep_uids=True"
        )
    return Settled(made.plan, made.source, device)


def folder_of_plan(path: Path) -> Path:
    """The folder of a plan that is named by itself or by its folder.

    Raises
    ------
    UsageError
        If there is none.
    """
    folder = path.parent if path.name == PLAN_NAME else path
    if not (folder / PLAN_NAME).exists():
        raise UsageError(
            f"plan is {path}, and there is no {PLAN_NAME}; name a folder that `ctgpu build` began, "
            "or leave plan out to have one made"
        )
    return folder


def open_unchanged_source(
    plan: Plan, request: Request, folder: Path | None, needed: Collection[str] | None = None
) -> Source:
    """The source of a plan, open, with every volume as it was planned.

    Parameters
    ----------
    plan : Plan
        The plan.
    request : Request
        Where its source is now.
    folder : Path or None
        That of the plan, where it has one.
    needed : collection of str, optional
        Paths of the volumes that will be read; by default all.

    Raises
    ------
    MismatchError
        If volumes are gone, or have another size than was planned.
    UsageError, AccessError, SourceError
        As :func:`ctgpu.building.planning.open_planned_source`.
    """
    now = open_planned_source(plan, folder, request)
    changed = now.gone | now.sizes_now.keys()
    if changed and (needed is None or not changed.isdisjoint(needed)):
        now.source.close()
        raise foreign_source(now, plan, path_of_source(plan, folder, request))
    return now.source
