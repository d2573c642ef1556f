"""An existing WebDataset into shards of this format, through the same build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.arguments import path_of
from ctgpu.builder import BuildReport, build
from ctgpu.cleaner import Cleaner
from ctgpu.engines import Engine, Job
from ctgpu.errors import UsageError
from ctgpu.progress import Event, Planned, ShardCommitted, Watcher, ignore
from ctgpu.shards.folder import failures
from ctgpu.shards.manifest import manifest
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME
from ctgpu.shards.patterns import expand_pattern
from ctgpu.shards.plan import Plan
from ctgpu.shards.untrusted import read_json
from ctgpu.sources.tar_samples import preprocessed_shape, samples_of_tar
from ctgpu.sources.tars import TarSource
from ctgpu.spec import CT_RATE, Spec

_ADOPTED = "adopted"


class AdoptingEngine(Engine):
    """Takes volumes as they are, for shards that were preprocessed by something else.

    Its arithmetic has a name of its own, so that adopted volumes and computed ones never share a
    folder.
    """

    arithmetic = _ADOPTED
    takes_hu = False

    @property
    def name(self) -> str:
        return _ADOPTED

    @property
    def concurrency(self) -> int:
        return 1

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        for job in jobs:
            dhw = job.plan.spec.layout == "DHW"
            np.copyto(job.out, job.voxels.transpose(2, 0, 1) if dhw else job.voxels)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def convert_tars(
    input_pattern: str | PathLike[str],
    output_dir: str | PathLike[str],
    *,
    split: str | None = None,
    spec: Spec | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    memory_limit_bytes: int | None = None,
    samples_per_shard: int | None = None,
    shards: range | None = None,
    axes: str | None = None,
    max_tilt_degrees: float | None = None,
    hu_guard: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
    delete_after: bool = False,
    dry_run: bool = False,
    watch: Watcher = ignore,
) -> BuildReport:
    """Build a data set from the tars of a WebDataset.

    Raw volumes (``bin`` with ``json``, ``npz``, ``nii.gz``) are preprocessed.  Shards that were
    preprocessed already are adopted: shapes are checked, metadata completed, volumes left as they
    are; those that the old builder cropped in the wrong axis order are reported as failures.

    Parameters
    ----------
    input_pattern : path
        A folder of tars, one tar, a brace pattern or a glob.
    output_dir : path
        Folder of the data set; another one than that of the tars.
    delete_after : bool
        Remove an input tar once all that it says is in shards that are committed and were read
        back whole, and its bytes still are those that were converted; else it is kept, and the log
        says why: see :mod:`ctgpu.cleaner`.
    dry_run : bool
        Convert and delete nothing: the log says what `delete_after` would delete now, and what it
        keeps, and why.
    split, spec, device, num_workers, memory_limit_bytes, samples_per_shard, shards, axes,
    max_tilt_degrees, hu_guard, force, retry_failed, watch
        As :func:`ctgpu.build` takes them.  `split` is only recorded, by default as the manifest
        beside the tars says.

    Returns
    -------
    BuildReport

    Raises
    ------
    UsageError
        If the request cannot be honoured.
    EnvironmentFailure
        If the tars, the device or the output folder fail.
    """
    folder = path_of("output_dir", output_dir)
    pattern = path_of("input_pattern", input_pattern)
    if pattern.is_dir():
        pattern = pattern / "*.tar"
    if not pattern.name.endswith(".tar"):
        raise UsageError(
            f"--input-pattern is {str(input_pattern)!r}; it is a folder of tars, or ends in .tar"
        )
    if delete_after and force:
        raise UsageError("--force reads again what --delete-after deletes; give one of them")
    if dry_run and not delete_after:
        raise UsageError("--dry-run says what --delete-after would delete; give both")
    begun = (folder / PLAN_NAME).exists()
    tars = TarSource(pattern).tars_left() if begun else expand_pattern(pattern)
    if folder.exists() and any(_same_folder(tar, folder) for tar in tars):
        raise UsageError(
            f"{folder} itself holds tars that {pattern} names; choose another --output-dir, or the "
            "pattern of the tars to convert"
        )
    if dry_run:
        return _dry_run(folder, pattern)
    adopted = _adopted_shape(folder, pattern)
    if adopted is not None and not begun:
        spec = replace(spec or CT_RATE, shape_hwd=adopted, intensity="hu")
    cleaner = Cleaner(folder, TarSource(pattern)) if delete_after and begun else None

    def listen(event: Event) -> None:
        nonlocal cleaner
        watch(event)
        if delete_after and cleaner is None and isinstance(event, Planned):
            cleaner = Cleaner(folder, TarSource(pattern))
        if cleaner is not None and isinstance(event, ShardCommitted):
            cleaner.delete_finished()

    report = build(
        folder,
        source=pattern,
        split=split or (None if begun else _stated_split(pattern)),
        spec=spec,
        device=AdoptingEngine() if adopted is not None else device,
        num_workers=num_workers,
        memory_limit_bytes=memory_limit_bytes,
        samples_per_shard=samples_per_shard,
        shards=shards,
        axes=axes,
        max_tilt_degrees=max_tilt_degrees,
        hu_guard=hu_guard,
        force=force,
        retry_failed=retry_failed,
        watch=listen,
    )
    if cleaner is not None:
        cleaner.delete_finished()
        cleaner.report()
    return report


def _same_folder(tar: Path, folder: Path) -> bool:
    """Whether `tar`, or what it links to, lies in `folder`, however that is written."""
    return any(
        parent.exists() and os.path.samefile(parent, folder)
        for parent in (tar.parent, tar.resolve().parent)
    )


def _dry_run(folder: Path, pattern: Path) -> BuildReport:
    plan = Plan.load(folder)
    cleaner = Cleaner(folder, TarSource(pattern), dry_run=True)
    cleaner.delete_finished()
    cleaner.report()
    failed = [{"shard_index": index, **f.to_dict()} for index, f in failures(folder)]
    return BuildReport(folder, manifest(folder, plan), 0, 0, failed, None)


def _adopted_shape(folder: Path, pattern: Path) -> tuple[int, int, int] | None:
    """The shape that the inputs were preprocessed to; None where they are raw."""
    if (folder / PLAN_NAME).exists():
        plan = Plan.load(folder)
        return plan.spec.shape_hwd if plan.arithmetic == _ADOPTED else None
    first = next((tar for tar in expand_pattern(pattern) if tar.exists()), None)
    samples = samples_of_tar(first) if first else []
    shape = preprocessed_shape(samples[0]) if samples else None
    return None if shape is None else (shape[0], shape[1], shape[2])


def _stated_split(pattern: Path) -> str | None:
    """What the manifest beside the tars says."""
    try:
        card = read_json(expand_pattern(pattern)[0].parent / MANIFEST_NAME)
        split = card.get("split")
    except (OSError, ValueError, AttributeError):
        return None
    return {"train": "train", "valid": "valid", "validation": "valid"}.get(str(split))
