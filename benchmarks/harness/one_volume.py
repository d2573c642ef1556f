"""One volume on the CPU engine, as several questions measure it."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.harness.measuring import Array, Run, in_pages
from ctgpu import _native
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan
from ctgpu.volume.raw import Rescale, Spacing
from ctgpu.volume.stored import numpy_dtype


def ours(voxels: Array, plan: VolumePlan, *, variant: str = "", threads: int = 1) -> Run:
    """The CPU engine, into memory that is used again; the best variant, unless one is named."""
    out = in_pages(plan.spec.stored_shape, numpy_dtype(plan.spec.dtype))
    return run_of(Job(voxels, Rescale(), plan, out), variant=variant, threads=threads)


def run_of(job: Job, *, variant: str = "", threads: int = 1) -> Run:
    """The engine on a job."""
    return partial(preprocess, _native, job, variant=variant, threads=threads)


def covering_spacing_mm(shape: tuple[int, ...], spec: Spec) -> Spacing:
    """The spacing at which the output covers just what a source of this shape covers."""
    h, w, d = np.multiply(spec.target_spacing_mm, spec.shape_hwd) / shape
    return float(h), float(w), float(d)


def needed(plan: VolumePlan) -> tuple[slice, ...]:
    """The part of the source that the output depends on."""
    return tuple(slice(int(a.i0[0]), int(a.i1[-1]) + 1) for a in plan.axes)


def moved_bytes(voxels: Array, plan: VolumePlan) -> int:
    """One read of the needed source and one write of the output."""
    return int(voxels[needed(plan)].nbytes) + plan.spec.size_bytes
