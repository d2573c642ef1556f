"""The oracle: the numeric contract in plain torch, one step after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.engines.base import Engine, Job
from ctgpu.errors import DeviceError, shortage
from ctgpu.installation import install_command
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec
from ctgpu.threads import require_threads
from ctgpu.volume.geometry import VolumePlan


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
                f"`{install_command('torch')}`"
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
        # A copy: torch takes no negative stride, not even of an axis of one voxel.
        x = torch.from_numpy(np.array(job.voxels, np.float32, order="C"))
        if not job.rescale.is_identity:
            x = x * np.float32(job.rescale.slope) + np.float32(job.rescale.intercept)
        lo, hi = job.plan.values.clip_lo, job.plan.values.clip_hi
        if spec.clip == "before":
            x = x.clamp(lo, hi)
        x = self._resample(x, job.plan)
        if spec.clip == "after":
            x = x.clamp(lo, hi)
        x = self._normalise(x, job)
        placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in axes)
        result = torch.full(spec.shape_hwd, job.plan.values.pad, dtype=torch.float32)
        result[placed] = x
        if spec.layout == "DHW":
            result = result.permute(2, 0, 1)
        job.out[...] = _stored(torch, result, spec)

    def _resample(self, x: Any, plan: VolumePlan) -> Any:
        """The whole volume resized and the part of it that is kept."""
        torch = self._torch
        if plan.spec.grid == "extent":
            x = torch.nn.functional.interpolate(
                x[None, None], size=plan.resized_shape, mode="trilinear", align_corners=False
            )[0, 0]
            return x[tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)]
        # In double from the contract's formula, not from the tables of the plan.
        for k, axis in enumerate(plan.axes):
            step = plan.spec.target_spacing_mm[k] / plan.spacing_mm[k]
            kept = torch.arange(axis.crop_start, axis.crop_start + axis.n_valid)
            position = (kept.to(torch.float64) * step).clamp(0, axis.n_source - 1)
            below = position.floor().to(torch.int64)
            above = (below + 1).clamp(max=axis.n_source - 1)
            weight = (position - below).to(torch.float32)
            weight = weight.reshape([-1 if k == a else 1 for a in range(3)])
            x = torch.lerp(x.index_select(k, below), x.index_select(k, above), weight)
        return x

    def _normalise(self, x: Any, job: Job) -> Any:
        """HU as the numbers that are stored, not rounded yet."""
        spec, values = job.plan.spec, job.plan.values
        if spec.stores_hu:
            return x
        if spec.normalise == "zscore":
            # What the map of one volume was made of.
            return (x - -values.offset / values.scale) / (1 / values.scale)
        lo, hi = values.clip_lo, values.clip_hi
        x = (x - (lo + hi) / 2) / ((hi - lo) / 2)
        low, high = (0.0, 255.0) if spec.dtype == "uint8" else spec.output_range
        x = x * ((high - low) / 2) + (low + high) / 2
        if spec.standardise is not None:
            mean, std = spec.standardise
            x = (x - mean) / std
        return x


def _stored(torch: Any, values: Any, spec: Spec) -> npt.NDArray[Any]:
    """float32 rounded to what is stored."""
    dtype = spec.dtype
    if spec.precision_step is not None:
        values = (values / spec.precision_step).round() * spec.precision_step + 0.0
    if dtype == "float16":
        return np.asarray(values.to(torch.float16).numpy())
    if dtype == "bfloat16":
        return np.asarray(
            values.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
        )
    ends = np.iinfo(dtype)
    return np.asarray(values.round().clamp(ends.min, ends.max).numpy().astype(dtype))
