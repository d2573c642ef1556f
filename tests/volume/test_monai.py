"""Grids and values against MONAI's, whose pipelines contracts are written for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from ctgpu.engines import Job, open_engine
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import numbers_of, numpy_dtype

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about what MONAI calls
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor
    from monai.data.utils import compute_shape_offset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE, SPACING_MM = (23, 14, 9), (0.8, 1.3, 2.5)
# As scans lie, and as MONAI's own direction of axes.
AFFINES = {
    "LPS": np.array([[-0.8, 0, 0, 110.5], [0, -1.3, 0, 98], [0, 0, 2.5, -331], [0, 0, 0, 1]]),
    "PRS": np.array([[0, 1.3, 0, -7], [-0.8, 0, 0, 30], [0, 0, 2.5, 12], [0, 0, 0, 1.0]]),
}


def phantom(shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """HU whose three axes differ, in int16 as scans are."""
    h, w, d = np.indices(shape)
    noise = np.random.default_rng(1).normal(0, 90, shape)
    return (-900 + 31 * h + 57 * w + 83 * d + noise).astype(np.int16)


def made(voxels: npt.NDArray[Any], spacing_mm: Any, spec: Spec, engine: str) -> Any:
    """What an engine stores, as numbers."""
    statistics = statistics_of(voxels, Rescale(), spec) if spec.needs_statistics else None
    plan = plan_volume(voxels.shape, spacing_mm, spec, statistics=statistics)
    out = np.zeros(spec.stored_shape, numpy_dtype(spec.dtype))
    open_engine(engine).run([Job(voxels, Rescale(), plan, out)])
    return numbers_of(out, spec.dtype)


# Pairs whose quotient is often a half, where the order of floating point decides.
SIZES_MM = [
    ((0.05, 0.75, 1.25), (0.1, 1.5, 2.5)),
    ((0.15, 0.7, 0.35), (0.1, 1.4, 0.5)),
    ((0.3, 0.45, 0.8), (0.7, 0.6, 1.6)),
    ((0.65, 3.0, 5.0), (0.9, 2.0, 1.5)),
    ((0.95, 1.5, 2.0), (1.9, 1.6, 3.0)),
]


@pytest.mark.parametrize(("spacing", "target"), SIZES_MM, ids=str)
def test_sizes_are_monais_for_every_number_of_voxels(spacing, target):
    source, wanted = (np.diag([*mm, 1.0]) for mm in (spacing, target))
    spec = Spec(grid="origin", target_spacing_mm=target, shape_hwd=(1, 1, 1))
    for n in range(1, 701):
        theirs, _ = compute_shape_offset((n, n, n), source, wanted)
        assert plan_volume((n, n, n), spacing, spec).resized_shape == tuple(theirs), n


def test_a_half_is_rounded_as_monai_does():
    # 81 * 0.05 / 0.1 + 1 is 41.5 on paper, and so even 42; from left to right in float64 it is
    # below.
    spec = Spec(grid="origin", target_spacing_mm=(0.1, 0.1, 0.1))
    assert plan_volume((82, 82, 82), (0.05, 0.05, 0.05), spec).resized_shape == (42, 42, 42)
    assert np.round(81 * 0.05 / 0.1 + 1.0) == 41


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("target", [(1, 1, 1), (0.4, 2.6, 2.4), (3, 0.5, 0.9)], ids=str)
@pytest.mark.parametrize("axes", AFFINES)
def test_spacing_of_a_phantom(axes, target, align_corners):
    """Whether corners are aligned changes how MONAI calls a position, not which one it is."""
    voxels, affine = phantom(SHAPE), AFFINES[axes]
    theirs = transforms.Spacing(target, mode="bilinear", align_corners=align_corners)(
        MetaTensor(torch.from_numpy(voxels)[None].double(), affine=torch.from_numpy(affine))
    )
    check_spacing(voxels, SPACING_MM, affine, target, theirs)


def check_spacing(voxels: Any, spacing: Any, affine: Any, target: Any, theirs: Any) -> None:
    shape = tuple(theirs.shape[1:])
    spec = Spec(grid="origin", target_spacing_mm=target, shape_hwd=shape, hu_window=(-4000, 4000))
    plan = plan_volume(voxels.shape, spacing, spec)
    assert plan.resized_shape == shape
    np.testing.assert_allclose(plan.output_affine(affine), theirs.affine.numpy(), atol=1e-6)
    weighed = voxels.astype(np.float64)
    for k, axis in enumerate(plan.axes):
        weight = np.expand_dims(axis.w.astype(np.float64), tuple({0, 1, 2} - {k}))
        low, high = np.take(weighed, axis.i0, k), np.take(weighed, axis.i1, k)
        weighed = low + weight * (high - low)
    np.testing.assert_allclose(weighed, theirs[0].numpy(), atol=2e-3)


@pytest.mark.parametrize("align_corners", [False, True])
def test_spacing_of_real_ct(real_ct: Path, align_corners: bool) -> None:
    image = nibabel.load(real_ct / "ts_pulmonary_ct_cropped.nii.gz")
    crop: Any = image.slicer[20:75, 30:71, 40:77]  # type: ignore[attr-defined]
    voxels = np.asarray(crop.dataobj).astype(np.int16)
    spacing = tuple(float(s) for s in np.linalg.norm(crop.affine[:3, :3], axis=0))
    target = (0.75, 1.1, 2.0)
    theirs = transforms.Spacing(target, mode="bilinear", align_corners=align_corners)(
        MetaTensor(torch.from_numpy(voxels)[None].double(), affine=torch.from_numpy(crop.affine))
    )
    check_spacing(voxels, spacing, crop.affine, target, theirs)


# MONAI's definition, and the contract that has the same one.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ScaleIntensityRange": (
        lambda: transforms.ScaleIntensityRange(-1000, 400, 0, 1, clip=True),
        {"hu_window": (-1000, 400), "output_range": (0, 1)},
    ),
    "ScaleIntensityRange, standardised": (
        lambda: transforms.Compose(
            [
                transforms.ScaleIntensityRange(-1000, 400, 0, 1, clip=True),
                transforms.NormalizeIntensity(subtrahend=0.45, divisor=0.22),
            ]
        ),
        {"hu_window": (-1000, 400), "output_range": (0, 1), "standardise": (0.45, 0.22)},
    ),
    "ScaleIntensity": (
        lambda: transforms.ScaleIntensity(minv=0, maxv=1),
        {"hu_window": None, "normalise": "minmax", "output_range": (0, 1)},
    ),
    "ScaleIntensityRangePercentiles": (
        lambda: transforms.ScaleIntensityRangePercentiles(0.5, 99.5, -1, 1, clip=True),
        {"hu_window": None, "normalise": "percentiles", "percentiles": (0.5, 99.5)},
    ),
    "NormalizeIntensity": (
        lambda: transforms.NormalizeIntensity(),
        {"hu_window": None, "normalise": "zscore"},
    ),
    "clipped, NormalizeIntensity": (
        lambda: transforms.Compose(
            [
                transforms.ScaleIntensityRange(-800, 300, -800, 300, clip=True),
                transforms.NormalizeIntensity(),
            ]
        ),
        {"hu_window": (-800, 300), "normalise": "zscore"},
    ),
}


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_phantom_that_is_not_resampled(name, dtype, engine):
    transform, fields = VALUES[name]
    voxels = phantom(SHAPE)
    theirs = transform()(torch.from_numpy(voxels)[None].float())[0].numpy()
    spec = Spec(**fields, dtype=dtype, target_spacing_mm=SPACING_MM, shape_hwd=SHAPE)
    rounding = 2**-10 if dtype == "float16" else 2**-7
    np.testing.assert_allclose(
        made(voxels, SPACING_MM, spec, engine), theirs, rtol=rounding, atol=2e-6
    )


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_clipping_after_resampling_as_monais_pipelines_do(engine):
    """Spacingd, then ScaleIntensityRanged, then a pad with 0: the order of most projects."""
    voxels, target = phantom(SHAPE), (0.6, 1.7, 2.0)
    pipeline = transforms.Compose(
        [
            transforms.Spacing(target, mode="bilinear"),
            transforms.ScaleIntensityRange(-700, 200, 0, 1, clip=True),
            transforms.ResizeWithPadOrCrop((24, 30, 12), constant_values=0),
        ]
    )
    theirs = pipeline(
        MetaTensor(torch.from_numpy(voxels)[None].double(), affine=torch.from_numpy(AFFINES["LPS"]))
    )
    spec = Spec(
        grid="origin",
        target_spacing_mm=target,
        shape_hwd=(24, 30, 12),
        hu_window=(-700, 200),
        output_range=(0, 1),
        clip="after",
    )
    mine = made(voxels, SPACING_MM, spec, engine)
    np.testing.assert_allclose(mine, theirs[0].numpy(), rtol=2**-10, atol=5e-6)
