"""The CUDA kernel compiled for the host, and the exact arithmetic it is held against."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ctgpu.engines import Job
from ctgpu.engines.packing import Launch
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import Stored, numpy_dtype, stored_as
from support.compiling import compiled

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
    spec, values = job.plan.spec, job.plan.values
    h, w, d = job.plan.axes
    lo, hi = np.float32(values.clip_lo), np.float32(values.clip_hi)
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
    out = np.full(spec.shape_hwd, np.float32(values.pad))
    valid = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in job.plan.axes)
    out[valid] = fma(x, np.float32(values.scale), np.float32(values.offset))
    made = rounded(out, stored_as(spec))
    return made if spec.layout == "HWD" else made.transpose(2, 0, 1)


def rounded(numbers: np.ndarray, stored: Stored) -> np.ndarray:
    """float32 numbers as they are stored; for bfloat16 the bits."""
    if stored.startswith("float16_grid"):
        units = np.float32(2 ** int(stored.removeprefix("float16_grid")))
        numbers = np.rint(numbers * units) / units + np.float32(0)
    if stored.startswith("float16"):
        return numbers.astype(np.float16)
    if stored == "bfloat16":
        # In float64 the eight digits that are kept, and of subnormals fewer, are whole numbers.
        exponent = np.maximum(np.frexp(numbers)[1], -125) - 8
        kept = np.ldexp(np.rint(np.ldexp(numbers.astype(np.float64), -exponent)), exponent)
        bits = kept.astype(np.float32).view(np.uint32)
        assert not (bits & 0xFFFF).any()
        return (bits >> 16).astype(np.uint16)
    ends = np.iinfo(stored)
    return np.rint(np.clip(numbers.astype(np.float64), ends.min, ends.max)).astype(stored)


def assert_same_bits(made: np.ndarray, wanted: np.ndarray) -> None:
    assert made.dtype == wanted.dtype
    bits = f"u{made.dtype.itemsize}"
    np.testing.assert_array_equal(made.view(bits), wanted.view(bits))


# ---- The kernel on the host ---------------------------------------------------------------------


def build(*options: str) -> Path:
    """``host_emulation.cpp``; the test is skipped where there is no compiler."""
    usual = ("-std=c++17", "-Werror", "-Wno-unknown-pragmas")
    return compiled(KERNELS / "host_emulation.cpp", *usual, *options)


@functools.cache
def emulation() -> ctypes.CDLL:
    """That of most tests."""
    return ctypes.CDLL(str(build("-O1")))


def launch(library: ctypes.CDLL, made: Launch, *, backwards: bool = False) -> None:
    """What a launch does."""
    key, batch = made.key, ctypes.c_void_p(made.batch.ctypes.data)
    kind, size_bytes = ctypes.c_char(key.voxel[0].encode()), int(key.voxel[1:])
    flags = key.swap, key.fast, key.out, key.rows, key.pairs
    stored = get_args(Stored).index(key.stored)
    grid = (ctypes.c_int * 3)(*made.grid)
    assert not library.ctgpu_emulate(batch, grid, kind, size_bytes, *flags, stored, backwards)


# ---- Jobs ---------------------------------------------------------------------------------------

#: Contracts of every type of the output, whose clips, scales, offsets and paddings differ.
CONTRACTS: dict[str, dict[str, Any]] = {
    "float16": {},
    "float16, by the z-score": {"hu_window": None, "normalise": "zscore"},
    "float16 in steps of 2^-10": {"precision": "2^-10", "pad_value": 0.1},
    "float16 in steps of 2^-11, up to 5": {"precision": "2^-11", "output_range": (-3.0, 5.0)},
    "float16 in steps of 2^-10, by the z-score": {
        "precision": "2^-10",
        "hu_window": None,
        "normalise": "zscore",
    },
    "bfloat16": {"dtype": "bfloat16", "output_range": (0.0, 1.0), "hu_window": (-150.0, 250.0)},
    "int16": {"dtype": "int16"},
    "int16 without a window": {"dtype": "int16", "hu_window": None},
    "uint8": {"dtype": "uint8", "pad_value": 0.1},
    "uint8, by percentiles": {
        "dtype": "uint8",
        "hu_window": None,
        "normalise": "percentiles",
        "percentiles": (20.0, 80.0),
    },
}


def fields_of(stored: Stored) -> dict[str, Any]:
    """The fields of a contract with which this is stored."""
    dtype, on_grid, places = stored.partition("_grid")
    return {"dtype": dtype, "precision": f"2^-{places}" if on_grid else "exact"}


def job(
    voxels: np.ndarray,
    spec: Spec,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    rescale: Rescale = Rescale(),  # noqa: B008
) -> Job:
    statistics = statistics_of(voxels, rescale, spec) if spec.needs_statistics else None
    plan = plan_volume(voxels.shape, spacing_mm, spec, statistics=statistics)
    return Job(voxels, rescale, plan, blank(spec.stored_shape, numpy_dtype(spec.dtype)))


def twin_of(made: Job) -> Job:
    """The same job with memory of its own."""
    return Job(made.voxels, made.rescale, made.plan, blank(made.out.shape, made.out.dtype))


def blank(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """What hardly any engine writes: NaN, or bits that are rare."""
    if dtype == np.float16:
        return np.full(shape, np.nan, dtype)
    return np.full(shape, 0xA5A5A5A5 >> 32 - 8 * dtype.itemsize, f"u{dtype.itemsize}").view(dtype)


def spec(shape: tuple[int, int, int], layout: Any = "HWD", **others: Any) -> Spec:
    return Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=shape, layout=layout, **others)
