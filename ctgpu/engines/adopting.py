"""Volumes as they are: the engine of data sets that something else has preprocessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctgpu.engines.base import Engine, Job
from ctgpu.volume.stored import on_grid

_ADOPTED = "adopted"


class AdoptingEngine(Engine):
    """Takes volumes as they are, for shards that were preprocessed by something else.

    Where the contract has a precision, each number is rounded to that.

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
            spec = job.plan.spec
            voxels = job.voxels.transpose(2, 0, 1) if spec.layout == "DHW" else job.voxels
            if spec.precision_step is None:
                np.copyto(job.out, voxels)
                continue
            for to, numbers in zip(job.out, voxels, strict=True):  # float32 of one slice at a time
                to[...] = on_grid(numbers.astype(np.float32), spec.precision_step)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
