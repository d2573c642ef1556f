"""The oracle: the numeric contract in plain torch, one step after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctgpu.engines.base import Engine, Job
from ctgpu.errors import DeviceError, shortage
from ctgpu.installation import install_command
from ctgpu.machine import usable_cores
from ctgpu.threads import require_threads


class ReferenceEngine(Engine):
    """Every step on its own, in the order of the contract, with ``F.interpolate``.

    Slow and memory-hungry on purpose: it makes the whole resized volume, as the old scripts did.
    The other engines are tested against it.

    Raises
    ------
    DeviceError
        If torch is not installed.
    """

    arithmetic = "torch-reference"

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise shortage(error) or DeviceError(
                "the reference engine is torch, which is not installed here: "
                f"{install_command('torch')}"
            ) from error
        self._torch = torch

    @property
    def name(self) -> str:
        return "reference"

    @property
    def concurrency(self) -> int:
        return 1

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        # Where torch's OpenMP cannot start its threads, it ends the process, and with 1.
        require_threads(usable_cores())
        for job in jobs:
            self._run_one(job)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "torch": self._torch.__version__,
            "cpu_capability": self._torch.backends.cpu.get_cpu_capability(),
        }

    def _run_one(self, job: Job) -> None:
        torch = self._torch
        spec, axes = job.plan.spec, job.plan.axes
        x = torch.from_numpy(np.require(job.voxels, np.float32, ["C", "W"]))
        if not job.rescale.is_identity:
            x = x * np.float32(job.rescale.slope) + np.float32(job.rescale.intercept)
        lo, hi = spec.hu_window
        if spec.clip == "before":
            x = x.clamp(lo, hi)
        x = torch.nn.functional.interpolate(
            x[None, None], size=job.plan.resized_shape, mode="trilinear", align_corners=False
        )[0, 0]
        if spec.clip == "after":
            x = x.clamp(lo, hi)
        x = (x - (lo + hi) / 2) / ((hi - lo) / 2)
        kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in axes)
        placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in axes)
        result = torch.full(spec.shape_hwd, spec.pad_value, dtype=torch.float32)
        result[placed] = x[kept]
        if spec.layout == "DHW":
            result = result.permute(2, 0, 1)
        job.out[...] = result.to(torch.float16).numpy()
