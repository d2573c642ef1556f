"""Volumes as they are: the engine of data sets that something else has preprocessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctgpu.engines.base import Engine, Job

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
