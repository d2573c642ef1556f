"""The CPU engine: one fused pass in C++, with the same bits on every CPU."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ctgpu.engines.base import Engine, Job
from ctgpu.errors import DeviceError, UsageError, shortage
from ctgpu.machine import usable_cores
from ctgpu.volume.stored import numpy_dtype, stored_as

#: Environment variable that forces one variant: scalar, avx2, avx512 or neon.
VARIANT_VARIABLE = "CTGPU_CPU"


class CpuEngine(Engine):
    """Gathers, rescales, clips, interpolates, scales and rounds tile by tile, out of the cache.

    Which instructions it uses is chosen once, by what the CPU has or by ``CTGPU_CPU``; the bits
    of the output do not depend on it, nor on the number of threads or the strides of the source.

    Raises
    ------
    DeviceError
        If the C++ engine was not built or cannot be loaded, or this CPU lacks what ``CTGPU_CPU``
        asks for.
    UsageError
        If ``CTGPU_CPU`` is none of the known names.
    """

    def __init__(self) -> None:
        try:
            from ctgpu import _native
        except ImportError as error:
            raise shortage(error) or DeviceError(_why_missing(error)) from error
        self._native = _native
        try:
            self._variant = _native.cpu_variant(os.environ.get(VARIANT_VARIABLE, ""))
        except ValueError as error:
            raise UsageError(f"{VARIANT_VARIABLE}: {error}") from error
        except RuntimeError as error:
            raise DeviceError(f"{VARIANT_VARIABLE}: {error}") from error

    @property
    def name(self) -> str:
        return "cpu"

    @property
    def concurrency(self) -> int:
        return usable_cores()

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        for job in jobs:
            preprocess(self._native, job, variant=self._variant, threads=threads)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "variant": self._variant,
            "threads": self.concurrency,
        }


def _why_missing(error: ImportError) -> str:
    """Where the compiled module is, or why there is none, and the way out."""
    if find_spec("ctgpu._native") is not None:
        return (
            f"the C++ engine cannot be loaded ({error}): reinstall ctgpu on this machine, or use "
            "--device reference"
        )
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if not (checkout / "CMakeLists.txt").exists():
        return (
            "the C++ engine was not built (no compiler at install time); "
            "install a C++ compiler and reinstall, or use --device reference"
        )
    build_it = f"build it with `pip install --editable {shlex.quote(str(checkout))}`"
    hidden = _compiled_package()
    if hidden is not None and hidden != package:
        return (
            f"ctgpu was imported from the checkout in {checkout}, where the C++ engine was not "
            f"built, and not from {hidden}, where it is installed: run in another folder and "
            f"without it in PYTHONPATH, {build_it}, or use --device reference"
        )
    return (
        f"ctgpu was imported from the checkout in {checkout}, where the C++ engine was not built: "
        f"{build_it}, or use --device reference"
    )


def _compiled_package() -> Path | None:
    """The folder that an installation has put the compiled module in."""
    try:
        files = distribution("ctgpu").files or []
    except PackageNotFoundError:
        return None
    for file in files:
        if file.match("ctgpu/_native.*") and file.suffix != ".pyi":
            return Path(str(file.locate())).resolve().parent
    return None


def preprocess(native: ModuleType, job: Job, *, variant: str, threads: int) -> None:
    """Hand one job to the compiled module.

    Parameters
    ----------
    native : module
        ``ctgpu._native``.
    job : Job
        Checked here, since the compiled code works on bare addresses.
    variant : str
        As :func:`ctgpu._native.cpu_variants` names it; empty for the best.
    threads : int
        Threads to use.

    Raises
    ------
    ValueError
        If voxels, plan and output do not belong together.
    """
    voxels, plan, spec, values = job.voxels, job.plan, job.plan.spec, job.plan.values
    if voxels.shape != plan.source_shape:
        raise ValueError(f"voxels have shape {voxels.shape}, their plan {plan.source_shape}")
    if job.out.shape != spec.stored_shape or job.out.dtype != numpy_dtype(spec.dtype):
        raise ValueError(f"out is not {spec.dtype} of shape {spec.stored_shape}")
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 8:
        # The first step of the arithmetic, too rarely of this type for a kernel of its own.
        voxels = voxels.astype(np.float32, order="K")
    native.preprocess(
        address=voxels.__array_interface__["data"][0],
        dtype=voxels.dtype.newbyteorder("=").name,
        swapped=not voxels.dtype.isnative,
        strides=voxels.strides,
        axes=[
            native.Axis(axis.n_source, axis.pad_before, axis.i0, axis.i1, axis.w)
            for axis in plan.axes
        ],
        intensity=native.Intensity(
            slope=job.rescale.slope,
            intercept=job.rescale.intercept,
            clip_lo=values.clip_lo,
            clip_hi=values.clip_hi,
            scale=values.scale,
            offset=values.offset,
            rescales=not job.rescale.is_identity,
            clips_before=spec.clip == "before",
        ),
        pad=values.pad,
        layout=spec.layout,
        stored=stored_as(spec),
        out=job.out.view(f"u{job.out.itemsize}"),
        variant=variant,
        threads=threads,
    )
