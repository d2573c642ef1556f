"""The CUDA kernel compiled for the host, and the exact arithmetic it is held against."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.engines import Job
from ctgpu.engines.batch import KernelKey
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"


# ---- The oracle: preprocess_math.h, one NumPy operation after the other -------------------------


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """float32 ``a * b + c`` with one rounding.

    In float64 the product is exact.  The sum is rounded to odd, with the help of its exact error,
    so that the cast to float32 rounds as if it had seen the exact sum.
    """
    p, c = np.broadcast_arrays(
        np.asarray(a, np.float64) * np.asarray(b, np.float64), np.asarray(c, np.float64)
    )
    total = p + c
    part = total - p
    error = (p - (total - part)) + (c - part)
    bits = np.atleast_1d(total).view(np.int64)
    toward = np.where((np.atleast_1d(error) > 0) == (np.atleast_1d(total) > 0), 1, -1)
    inexact = (np.atleast_1d(error) != 0) & (bits & 1 == 0)
    return (
        np.where(inexact, bits + toward, bits)
        .view(np.float64)
        .astype(np.float32)
        .reshape(total.shape)
    )


def lerp(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    return fma(w, b - a, a)


def expected(job: Job) -> np.ndarray:
    """What `job.out` must be."""
    spec = job.plan.spec
    h, w, d = job.plan.axes
    lo, hi = (np.float32(limit) for limit in spec.hu_window)
    x = job.voxels.astype(np.float32)
    if not job.rescale.is_identity:
        x = fma(np.float32(job.rescale.slope), x, np.float32(job.rescale.intercept))
    if spec.clip == "before":
        x = np.clip(x, lo, hi)
    x = lerp(x[:, :, d.i0], x[:, :, d.i1], d.w)
    x = lerp(x[:, w.i0], x[:, w.i1], w.w[:, None])
    x = lerp(x[h.i0], x[h.i1], h.w[:, None, None])
    if spec.clip == "after":
        x = np.clip(x, lo, hi)
    scale, offset = (np.float32(value) for value in spec.scale_offset)
    out = np.full(spec.shape_hwd, np.float32(spec.pad_value).astype(np.float16))
    valid = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in job.plan.axes)
    out[valid] = fma(x, scale, offset).astype(np.float16)
    return out if spec.layout == "HWD" else out.transpose(2, 0, 1)


# ---- The kernel on the host ---------------------------------------------------------------------


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def build(folder: Path, *options: str) -> Path:
    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler")
    library = folder / "emulation.so"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    made = ["-fPIC", "-shared", "-o", library, KERNELS / "host_emulation.cpp"]
    subprocess.run(
        [command, "-std=c++17", "-O1", "-ffp-contract=off", *warnings, *options, *made], check=True
    )
    return library


@functools.cache
def emulation() -> ctypes.CDLL:
    """``host_emulation.cpp``, built once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(build(Path(folder))))


def launch(
    library: ctypes.CDLL, key: KernelKey, address: int, count: int, *, backwards: bool = False
) -> None:
    """What a launch does, over the volumes described at `address`."""
    kind, size_bytes = ctypes.c_char(key.voxel[0].encode()), int(key.voxel[1:])
    flags = key.swap, key.fast, key.out, backwards
    assert library.ctgpu_emulate(ctypes.c_void_p(address), count, kind, size_bytes, *flags) == 0


# ---- Jobs ---------------------------------------------------------------------------------------


def job(
    voxels: np.ndarray,
    spec: Spec,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    rescale: Rescale = Rescale(),  # noqa: B008
) -> Job:
    plan = plan_volume(voxels.shape, spacing_mm, spec)
    return Job(voxels, rescale, plan, np.full(spec.stored_shape, np.nan, np.float16))


def spec(shape: tuple[int, int, int], layout: Any = "HWD", **others: Any) -> Spec:
    return Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=shape, layout=layout, **others)
