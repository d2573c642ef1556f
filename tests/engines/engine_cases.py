"""Volumes, plans and comparisons shared by the tests of the engines."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from hypothesis import reject
from hypothesis import strategies as st

from ctgpu.engines import Engine, Job
from ctgpu.errors import IntensityError
from ctgpu.spec import Dtype, Layout, Normalise, Precision, Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.orientation import AS_STORED, Reorientation
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import numbers_of, numpy_dtype

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
    reorientation: Reorientation = AS_STORED,
) -> Job:
    """A job on the oriented view of the voxels of a file; spacing along the output's axes."""
    rescale = rescale or Rescale()
    turned = reorientation.view(voxels)
    plan = plan_volume(
        turned.shape,
        spacing_mm,
        spec,
        statistics=statistics_of(voxels, rescale, spec) if spec.needs_statistics else None,
        reorientation=reorientation,
    )
    return Job(turned, rescale, plan, poisoned(spec))


def poisoned(spec: Spec, byte: int = 0xFF) -> npt.NDArray[Any]:
    """Memory for the output, whose every byte is this one; floats are NaN with the default."""
    memory = np.full(spec.size_bytes, byte, np.uint8)
    return memory.view(numpy_dtype(spec.dtype)).reshape(spec.stored_shape)


def run(engine: Engine, job: Job, threads: int = 1) -> npt.NDArray[Any]:
    """The job's output, with fresh memory."""
    fresh = Job(job.voxels, job.rescale, job.plan, poisoned(job.plan.spec))
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
    """Any shape, spacing, strides, byte order, dtype, orientation and spec."""
    shape = tuple(draw(st.tuples(*[st.integers(1, 40)] * 3)))
    spec = draw(specs())
    spacing = tuple(t * 2 ** draw(st.floats(-2, 2)) for t in spec.target_spacing_mm)
    rescale = draw(st.sampled_from([Rescale(), Rescale(1.5, -1024.0, "csv")]))
    h, w, d = draw(st.permutations(range(3)))
    turned = Reorientation((h, w, d), draw(st.tuples(*[st.booleans()] * 3)))
    voxels = draw(arrays(shape))
    try:
        return make_job(voxels, (spacing[0], spacing[1], spacing[2]), spec, rescale, turned)
    except IntensityError:
        # A volume of one value has no scale of its own.
        reject()


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any contract that does not contradict itself, for a small output."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    dtype: Dtype = one_of(*get_args(Dtype))
    normalise: Normalise = "window"
    if dtype != "int16" and draw(st.booleans()):
        normalise = one_of("percentiles", "minmax", *(["zscore"] if dtype != "uint8" else []))
    windows: list[tuple[float, float] | None] = [(-1000.0, 1000.0), (-150.5, 250.0), (0.0, 3.0)]
    if normalise == "percentiles":
        windows = [None]
    elif normalise != "window" or dtype == "int16":
        windows.append(None)
    window = one_of(*windows)
    clips = window is not None or normalise == "percentiles"
    has_range = dtype != "int16" and normalise != "zscore"
    output_range = one_of((-1.0, 1.0), (0.0, 1.0), (-0.5, 2.25)) if has_range else (-1.0, 1.0)
    pads = {"int16": -1024.0, "uint8": output_range[1]}
    grid = one_of("extent", "origin")
    return Spec(
        shape_hwd=tuple(draw(st.tuples(*[st.integers(1, 48)] * 3))),
        layout=one_of(*get_args(Layout)),
        dtype=dtype,
        precision=one_of(*get_args(Precision)) if dtype == "float16" else "exact",
        hu_window=window,
        clip=one_of("before", "after") if clips else "before",
        grid=grid,
        fit="spacing" if grid == "origin" else one_of("spacing", "stretch", "contain"),
        normalise=normalise,
        percentiles=one_of((0.0, 100.0), (0.5, 99.5)) if normalise == "percentiles" else None,
        output_range=output_range,
        standardise=one_of(None, (0.45, 0.22)) if has_range and dtype != "uint8" else None,
        pad_value=one_of(None, pads.get(dtype, 0.25)),
    )


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


def places(stored: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Whole numbers in the order of the stored ones, adjacent for adjacent ones.

    Of floats, float16 or the bits of bfloat16, the sign and then the magnitude; integers as such.
    """
    if stored.dtype.kind == "f" or stored.dtype == np.uint16:
        bits = stored.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)
    return stored.astype(np.int32)


def check_against_reference(
    got: npt.NDArray[Any],
    wanted: npt.NDArray[Any],
    *,
    dtype: Dtype = "float16",
    absolute: float = 2.4e-7,
    differing: float | None = None,
    step: float | None = None,
) -> None:
    """At most one place of the stored type, one step of its precision or `absolute` anywhere, and
    few voxels that differ."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype == numpy_dtype(dtype)
    limit = max(1, got.size / 1000) if differing is None else differing
    numbers = numbers_of(got, dtype)
    assert np.isfinite(numbers).all()
    other = got.view(f"u{got.itemsize}") != wanted.view(f"u{got.itemsize}")
    numbers, got, wanted = numbers[other].astype(np.float64), got[other], wanted[other]
    distance = np.abs(places(got) - places(wanted))
    apart = np.abs(numbers - numbers_of(wanted, dtype))
    if step is not None:
        assert not np.fmod(numbers, step).any()
        absolute = max(absolute, step)
    assert not ((distance > 1) & (apart > absolute)).any()
    assert np.count_nonzero(distance) <= limit


def allowed_difference(job: Job) -> dict[str, Any]:
    """What :func:`check_against_reference` allows an engine for any job that :func:`jobs` makes.

    float32 rounds every step, in proportion to the largest number that the step sees.
    """
    spec, values = job.plan.spec, job.plan.values
    hu = job.voxels.astype(np.float64) * job.rescale.slope + job.rescale.intercept
    if spec.clip == "before":
        hu = np.clip(hu, values.clip_lo, values.clip_hi)
    largest = float(np.abs(hu).max())
    if math.isfinite(values.clip_hi):
        largest = max(largest, abs(values.clip_lo), abs(values.clip_hi))
    # The reference normalises step by step, the engine at once.
    absolute = 2.4e-7 * max(largest * values.scale, abs(values.offset), 1.0)
    if spec.standardise is not None:
        absolute *= 2
    if job.voxels.dtype.kind == "f" and not job.rescale.is_identity:
        # The reference rounds the product before it adds the intercept; the engine does not.
        product = np.abs(job.voxels.astype(np.float32)).max() * np.float32(job.rescale.slope)
        absolute += float(np.spacing(product)) * values.scale
    if spec.grid == "origin":
        # Tables hold positions in float32, the reference in float64: half a place of the largest
        # is what weights differ by, on each axis.
        for axis in job.plan.axes:
            weight = float(np.spacing(np.float32(axis.n_source))) / 2
            absolute += weight * float(np.ptp(hu)) * values.scale
    # Of a few hundred voxels, more than one in a thousand may differ by chance; and most, where
    # what is blended is large beside what is stored.
    lo, hi = (-1.0, 1.0) if spec.normalise == "zscore" else spec.output_range
    _, std = spec.standardise or (0.0, 1.0)
    half = 127.5 if spec.dtype == "uint8" else (hi - lo) / 2 / std
    narrow = not spec.stores_hu and half / values.scale < largest
    many = narrow or spec.grid == "origin" or spec.standardise is not None
    # Where one voxel becomes many, they differ together.
    copies = math.prod(max(1.0, axis.n_valid / axis.n_source) for axis in job.plan.axes)
    size = job.out.size
    return {
        "dtype": spec.dtype,
        "step": spec.precision_step,
        "absolute": absolute,
        "differing": size if many else 4 * copies + size / 500,
    }


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
