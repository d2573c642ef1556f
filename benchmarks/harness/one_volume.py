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


def ours(
    voxels: Array,
    plan: VolumePlan,
    out: Array | None = None,
    *,
    variant: str = "",
    threads: int = 1,
) -> Run:
    """The CPU engine, into `out` or memory that is used again; the best variant unless named."""
    out = in_pages(plan.spec.stored_shape, numpy_dtype(plan.spec.dtype)) if out is None else out
    job = Job(voxels, Rescale(), plan, out)
    return partial(preprocess, _native, job, variant=variant, threads=threads)


def covering_spacing_mm(shape: tuple[int, ...], spec: Spec) -> Spacing:
    """The spacing at which the output covers just what a source of this shape covers.

    That of half a voxel more, whose size in output voxels is rounded down.
    """
    h, w, d = np.multiply(spec.target_spacing_mm, np.add(spec.shape_hwd, 0.5)) / shape
    return float(h), float(w), float(d)


def needed(plan: VolumePlan) -> tuple[slice, ...]:
    """The part of the source that the output depends on."""
    return tuple(slice(int(a.i0[0]), int(a.i1[-1]) + 1) for a in plan.axes)


def moved_bytes(voxels: Array, plan: VolumePlan) -> int:
    """One read of the needed source and one write of the output."""
    return int(voxels[needed(plan)].nbytes) + plan.spec.size_bytes
