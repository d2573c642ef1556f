"""An existing WebDataset into shards of this format, through the same build."""

from __future__ import annotations

import glob
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.builder import BuildReport, build
from ctgpu.engines import Engine, Job
from ctgpu.errors import StorageError, UsageError
from ctgpu.progress import Event, ShardCommitted, Watcher, ignore
from ctgpu.shards import disk
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.integrity import verify_shard
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME, record_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord
from ctgpu.sources.tars import TarSource, expand_pattern, preprocessed_shape, samples_of_tar
from ctgpu.spec import CT_RATE, Spec

log = logging.getLogger(__name__)

_ADOPTED = "adopted"


class AdoptingEngine(Engine):
    """Takes volumes as they are, for shards that were preprocessed by something else.

    Its arithmetic has a name of its own, so that adopted volumes and computed ones never share a
    folder.
    """

    arithmetic = _ADOPTED

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
    force: bool = False,
    retry_failed: bool = False,
    delete_after: bool = False,
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
        Remove an input tar once every sample of it is in a shard that is committed and whose every
        byte has been read back and verified.
    split, spec, device, num_workers, memory_limit_bytes, samples_per_shard, shards, force,
    retry_failed, watch
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
    folder = Path(output_dir)
    pattern = Path(input_pattern)
    if pattern.is_dir():
        pattern = Path(glob.escape(str(pattern))) / "*.tar"
    if not pattern.name.endswith(".tar"):
        raise UsageError(
            f"--input-pattern is {str(input_pattern)!r}; it is a folder of tars, or ends in .tar"
        )
    if delete_after and force:
        raise UsageError("--force reads again what --delete-after deletes; give one of them")
    begun = (folder / PLAN_NAME).exists()
    if not begun and folder.resolve() in {t.parent.resolve() for t in expand_pattern(pattern)}:
        raise UsageError(f"{folder} holds the tars to convert; choose another --output-dir")
    adopted = _adopted_shape(folder, pattern)
    if adopted is not None and not begun:
        spec = replace(spec or CT_RATE, shape_hwd=adopted, intensity="hu")
    cleaner = _Cleaner(folder, pattern) if delete_after else None

    def listen(event: Event) -> None:
        watch(event)
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
        force=force,
        retry_failed=retry_failed,
        watch=listen,
    )
    if cleaner is not None:
        cleaner.delete_finished()
    return report


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
        card = json.loads((expand_pattern(pattern)[0].parent / MANIFEST_NAME).read_bytes())
        split = card.get("split")
    except (OSError, ValueError, AttributeError):
        return None
    return {"train": "train", "valid": "valid", "validation": "valid"}.get(str(split))


class _Cleaner:
    """Deletes input tars that are done for.

    Parameters
    ----------
    folder : Path
        The data set.
    pattern : Path
        The inputs.
    """

    def __init__(self, folder: Path, pattern: Path) -> None:
        self._folder = folder
        self._source = TarSource(pattern)
        self._kept: set[str] = set()
        self._looked_at: set[int] = set()

    def delete_finished(self) -> None:
        """Verify the shards committed since the last call, and delete what they make superfluous.

        Raises
        ------
        StorageError
            If a committed shard is damaged, or a tar cannot be removed.
        """
        plan = Plan.load(self._folder)
        for index in sorted(set(committed_shards(self._folder)) - self._looked_at):
            if damaged := [f for f in verify_shard(self._folder, plan, index) if f.damaged]:
                raise StorageError(
                    f"{self._folder / damaged[0].file}: {damaged[0].problem}; nothing was deleted "
                    "on its account, look at the disk and make it again with --force"
                )
            record = ShardRecord.load(self._folder / record_name(index))
            self._kept.update(sample.key for sample in record.samples)
            self._looked_at.add(index)
        planned: dict[str, list[str]] = defaultdict(list)
        for sample in plan.samples:
            planned[sample.path.partition(".tar/")[0]].append(sample.key)
        for tar in self._source.tars_left():
            keys = planned.get(self._source.relative(tar).removesuffix(".tar"), [])
            # A sample that was not planned, or has failed, would be lost.
            if keys and self._kept.issuperset(keys) and len(samples_of_tar(tar)) == len(keys):
                with disk.storage_errors(tar.parent):
                    tar.unlink(missing_ok=True)  # by another process
                log.info("%s is converted and verified, and was deleted", tar)
