"""Volumes, plans and comparisons shared by the tests of the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ctgpu.engines import Engine, Job
from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.raw import Rescale

DTYPES = (
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float16",
    "float32",
    "float64",
)
# No type of the C++ kernel: rounded before it.
WIDE_DTYPES = ("int64", "uint64")

# Per axis: source voxels and resampling ratio; the output has 24 x 20 x 36 voxels.
GEOMETRIES = {
    "same size": ((24, 1.0), (20, 1.0), (36, 1.0)),
    "up on H": ((10, 2.4), (20, 1.0), (36, 1.0)),
    "up on W": ((24, 1.0), (9, 2.3), (36, 1.0)),
    "up on D": ((24, 1.0), (20, 1.0), (17, 2.2)),
    "down on H": ((61, 0.4), (20, 1.0), (36, 1.0)),
    "down on W": ((24, 1.0), (77, 0.27), (36, 1.0)),
    "down on D": ((24, 1.0), (20, 1.0), (90, 0.41)),
    "far down on all": ((230, 0.11), (190, 0.105), (370, 0.1)),
    "crop H, pad W": ((41, 1.1), (7, 1.3), (36, 1.0)),
    "crop W, pad D": ((24, 1.0), (53, 0.9), (11, 1.3)),
    "crop D, pad H": ((13, 0.7), (20, 1.0), (71, 1.2)),
    "odd sizes, padded": ((7, 1.9), (5, 2.1), (3, 5.0)),
    "odd sizes, cropped": ((31, 1.7), (29, 1.3), (47, 1.1)),
    "one row": ((1, 5.0), (20, 1.0), (36, 1.0)),
    "one column": ((24, 1.0), (1, 9.0), (36, 1.0)),
    "one slice": ((24, 1.0), (20, 1.0), (1, 30.0)),
    "one voxel": ((1, 1.0), (1, 1.0), (1, 1.0)),
}


def make_job(
    voxels: npt.NDArray[Any],
    spacing_mm: tuple[float, float, float],
    spec: Spec,
    rescale: Rescale | None = None,
) -> Job:
    """A job whose output holds NaN wherever the engine writes nothing."""
    out = np.full(spec.stored_shape, np.nan, np.float16)
    return Job(voxels, rescale or Rescale(), plan_volume(voxels.shape, spacing_mm, spec), out)


def run(engine: Engine, job: Job, threads: int = 1) -> npt.NDArray[np.float16]:
    """The job's output, with fresh memory."""
    fresh = Job(job.voxels, job.rescale, job.plan, np.full_like(job.out, np.nan))
    engine.run([fresh], threads=threads)
    return fresh.out


def random_voxels(seed: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Noise over the part of ``[-2000, 3000]`` that the dtype holds."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.normal(0, 800, shape).astype(kind)
    limits = np.iinfo(kind)
    low, high = max(-2000, limits.min), min(3000, limits.max)
    return random.integers(low, high, shape, endpoint=True).astype(kind)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Any shape, spacing, strides, byte order, dtype and spec."""
    shape = tuple(draw(st.tuples(*[st.integers(1, 40)] * 3)))
    out_shape = tuple(draw(st.tuples(*[st.integers(1, 48)] * 3)))
    target = (0.75, 0.75, 1.5)
    spacing = tuple(t * 2 ** draw(st.floats(-2, 2)) for t in target)
    spec = Spec(
        shape_hwd=out_shape,
        target_spacing_mm=target,
        layout=draw(st.sampled_from(["HWD", "DHW"])),
        clip=draw(st.sampled_from(["before", "after"])),
        hu_window=draw(st.sampled_from([(-1000.0, 1000.0), (-150.5, 250.0), (0.0, 3.0)])),
        pad_value=draw(st.sampled_from([-1.0, 0.25])),
    )
    rescale = draw(st.sampled_from([Rescale(), Rescale(1.5, -1024.0, "csv")]))
    return make_job(draw(arrays(shape)), (spacing[0], spacing[1], spacing[2]), spec, rescale)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Noise in any order of memory, either way round, with gaps, aligned to nothing."""
    voxels = random_voxels(
        draw(st.integers(0, 2**32 - 1)), shape, draw(st.sampled_from(DTYPES + WIDE_DTYPES))
    )
    if draw(st.booleans()):
        voxels = voxels.astype(voxels.dtype.newbyteorder())
    order = draw(st.permutations(range(3)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, 3])] * 3))
    turns = draw(st.tuples(*[st.sampled_from([1, 1, -1])] * 3))
    skew = draw(st.sampled_from([0, 0, 1]))
    wide = [shape[axis] * steps[axis] for axis in order]
    memory = np.zeros(int(np.prod(wide)) * voxels.dtype.itemsize + skew, np.uint8)
    inner = memory[skew:].view(voxels.dtype).reshape(wide).transpose(np.argsort(order))
    view = inner[tuple(slice(None, None, s) for s in steps)]
    view = view[tuple(slice(None, None, t) for t in turns)]
    view[...] = voxels
    return view


def ulps(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
    """Whole numbers in the order of the float16 values, adjacent for adjacent values."""
    bits = values.view(np.int16).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def check_against_reference(
    got: npt.NDArray[np.float16],
    wanted: npt.NDArray[np.float16],
    *,
    absolute: float = 2.4e-7,
    differing: float | None = None,
) -> None:
    """At most one float16 ulp or `absolute` anywhere, and few voxels that differ at all."""
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    distance = np.abs(ulps(got) - ulps(wanted))
    apart = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    assert not ((distance > 1) & (apart > absolute)).any()
    limit = max(1, got.size / 1000) if differing is None else differing
    assert np.count_nonzero(distance) <= limit


def ramp(shape: tuple[int, ...], slopes: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """HU that rise linearly along each axis, by another slope on each, around zero."""
    i, j, k = np.ogrid[tuple(slice(0, n) for n in shape)]
    values: npt.NDArray[np.float64] = slopes[0] * i + slopes[1] * j + slopes[2] * k
    return values - values.mean()


def sampled_ramp(
    voxels: npt.NDArray[np.float64], slopes: tuple[float, float, float], plan: VolumePlan
) -> npt.NDArray[np.float64]:
    """What resampling a ramp must give, from the contract's formula alone; NaN in the padding.

    Between voxels a ramp is its own trilinear interpolation; beyond the outermost it is constant.
    """
    result = np.full(plan.spec.shape_hwd, voxels[0, 0, 0])
    valid = np.ones(plan.spec.shape_hwd, bool)
    for axis, (n, spacing, target, n_out) in enumerate(
        zip(
            voxels.shape,
            plan.spacing_mm,
            plan.spec.target_spacing_mm,
            plan.spec.shape_hwd,
            strict=True,
        )
    ):
        resized = max(1, int(n * (spacing / target)))
        start = (resized - n_out) // 2 if resized > n_out else -((n_out - resized) // 2)
        o = np.arange(n_out) + start
        position = np.clip((o + 0.5) * n / resized - 0.5, 0, n - 1)
        shape = [n_out if a == axis else 1 for a in range(3)]
        result = result + slopes[axis] * position.reshape(shape)
        valid &= ((o >= 0) & (o < resized)).reshape(shape)
    return np.where(valid, result, np.nan)


def check_ramp(engine: Engine, name: str, layout: Any, order: Any) -> None:
    """An engine puts a volume with three unequal axes where the contract says."""
    slopes = (3.0, -5.0, 7.0)
    axes = GEOMETRIES[name]
    spec = Spec(shape_hwd=(24, 20, 36), layout=layout, hu_window=(-4000.0, 4000.0), pad_value=-2.0)
    spacing = tuple(r * t for (_, r), t in zip(axes, spec.target_spacing_mm, strict=True))
    voxels = ramp(tuple(n for n, _ in axes), slopes)
    stored = np.asarray(voxels, np.float32, order=order)
    job = make_job(stored, (spacing[0], spacing[1], spacing[2]), spec)
    got = run(engine, job)
    wanted = np.nan_to_num(sampled_ramp(voxels, slopes, job.plan) / 4000, nan=-2.0)
    if layout == "DHW":
        got = got.transpose(1, 2, 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=2e-6)
