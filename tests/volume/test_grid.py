"""``grid`` and ``fit``: sizes, samples and affines from their definitions alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume

# Askew, so that no entry of an affine can stand in for another.
AFFINE = np.array([[0, -0.9, 0, 11], [0.8, 0, 0.1, -20], [0.05, 0, 2.5, 300], [0, 0, 0, 1.0]])
SHAPE = (23, 14, 9)
SPACING_MM = (0.8, 1.3, 2.5)
OUTPUTS = [(20, 17, 11), (64, 48, 32), (5, 64, 7), (1, 1, 1)]


def sample(voxels: npt.NDArray[Any], plan: VolumePlan) -> npt.NDArray[np.float64]:
    """The output by the tables alone, in float64; NaN where it is padded."""
    result = voxels.astype(np.float64)
    for k, axis in enumerate(plan.axes):
        weight = np.expand_dims(axis.w.astype(np.float64), tuple({0, 1, 2} - {k}))
        low, high = np.take(result, axis.i0, k), np.take(result, axis.i1, k)
        result = low + weight * (high - low)
    out = np.full(plan.spec.shape_hwd, np.nan)
    out[tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)] = result
    return out


def phantom(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 500, shape).astype(np.float32)


def resized_by_torch(
    voxels: npt.NDArray[np.float32], size: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    resized: npt.NDArray[np.float32] = torch.nn.functional.interpolate(
        torch.from_numpy(voxels)[None, None], size=size, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    return resized


def placed(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """An array cropped and padded about its centre, the odd voxel at the far end."""
    out = np.full(shape, np.nan)
    here, there = [], []
    for n, n_out in zip(array.shape, shape, strict=True):
        kept, cut, gap = min(n, n_out), max(0, n - n_out) // 2, max(0, n_out - n) // 2
        here.append(slice(gap, gap + kept))
        there.append(slice(cut, cut + kept))
    out[tuple(here)] = array[tuple(there)]
    return out


def check_extent(plan: VolumePlan, affine: npt.NDArray[np.float64]) -> None:
    """The corners of the resampled extent are those of the source's, in the world."""
    for corner in itertools.product((0, 1), repeat=3):
        source = [c * n - 0.5 for c, n in zip(corner, plan.source_shape, strict=True)]
        output = [
            c * n - 0.5 - cut + gap
            for c, n, cut, gap in zip(
                corner, plan.resized_shape, plan.crop_start, plan.pad_before, strict=True
            )
        ]
        np.testing.assert_allclose(affine @ [*output, 1], AFFINE @ [*source, 1], atol=1e-8)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_stretch_is_torchs_resize_to_a_shape(output):
    plan = plan_volume(SHAPE, SPACING_MM, Spec(shape_hwd=output, fit="stretch"))
    assert plan.resized_shape == output
    assert plan.crop_start == plan.pad_before == (0, 0, 0)
    wanted = resized_by_torch(phantom(SHAPE), output)
    np.testing.assert_allclose(sample(phantom(SHAPE), plan), wanted, atol=2e-3)
    check_extent(plan, plan.output_affine(AFFINE))
    lengths = [n * s / m for n, s, m in zip(SHAPE, SPACING_MM, output, strict=True)]
    np.testing.assert_allclose(plan.output_spacing_mm, lengths, rtol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("target", [(1, 1, 1), (0.75, 0.75, 1.5)], ids=str)
def test_contain_is_torchs_resize_by_one_factor_then_padded(output, target):
    spec = Spec(shape_hwd=output, fit="contain", target_spacing_mm=target)
    plan = plan_volume(SHAPE, SPACING_MM, spec)
    resized = resized_by_torch(phantom(SHAPE), plan.resized_shape)
    np.testing.assert_allclose(
        sample(phantom(SHAPE), plan), placed(resized, output), atol=2e-3, equal_nan=True
    )
    check_extent(plan, plan.output_affine(AFFINE))


def test_contain_by_hand():
    # 300, 200 and 150 mm in voxels of 1 × 1 × 2: 300, 200 and 75; the first is to fill 100.
    spec = Spec(fit="contain", target_spacing_mm=(1, 1, 2), shape_hwd=(100, 100, 40))
    plan = plan_volume((150, 250, 60), (2, 0.8, 2.5), spec)
    assert plan.resized_shape == (100, 67, 25)
    assert plan.pad_before == (0, 16, 7)
    assert plan.output_spacing_mm == pytest.approx((3, 200 / 67, 6))
    # Twice as fine a target has the same proportions, so it is the same.
    halved = Spec(fit="contain", target_spacing_mm=(0.5, 0.5, 1), shape_hwd=(100, 100, 40))
    assert plan_volume((150, 250, 60), (2, 0.8, 2.5), halved).resized_shape == plan.resized_shape


sizes = st.tuples(*[st.integers(1, 700)] * 3)
lengths_mm = st.tuples(*[st.floats(0.05, 8)] * 3)


@pytest.mark.slow
@settings(max_examples=40)
@given(sizes, lengths_mm, lengths_mm, st.tuples(*[st.integers(1, 600)] * 3))
def test_contain_fills_one_axis_and_overfills_none(shape, spacing, target, output):
    spec = Spec(fit="contain", target_spacing_mm=target, shape_hwd=output)
    plan = plan_volume(shape, spacing, spec)
    assert plan.crop_start == (0, 0, 0)
    assert all(1 <= n <= m for n, m in zip(plan.resized_shape, output, strict=True))
    wanted = [n * s / t for n, s, t in zip(shape, spacing, target, strict=True)]
    limiting = min(range(3), key=lambda k: output[k] / wanted[k])
    assert plan.resized_shape[limiting] == output[limiting]
    factor = output[limiting] / wanted[limiting]
    for n, length in zip(plan.resized_shape, wanted, strict=True):
        assert n == 1 or abs(n - length * factor) <= 0.5 + 1e-6
    check_extent(plan, plan.output_affine(AFFINE))


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("target", [(1, 1, 1), (0.4, 2.6, 2.5), (3, 0.5, 0.9)], ids=str)
def test_origin_steps_from_the_centre_of_the_first_voxel(output, target):
    spec = Spec(shape_hwd=output, grid="origin", target_spacing_mm=target)
    plan = plan_volume(SHAPE, SPACING_MM, spec)
    grid = []
    for n, s, t in zip(SHAPE, SPACING_MM, target, strict=True):
        size = int(np.round((n - 1) * s / t + 1.0))
        grid.append(np.clip(np.arange(size) * (t / s), 0, n - 1))
    assert plan.resized_shape == tuple(len(places) for places in grid)
    # A ramp along each axis is its own interpolation, and constant beyond the last voxel.
    for k, places in enumerate(grid):
        ramp = np.indices(SHAPE)[k] * 10.0
        wanted = np.broadcast_to(
            np.expand_dims(places * 10, tuple({0, 1, 2} - {k})), plan.resized_shape
        )
        np.testing.assert_allclose(sample(ramp, plan), placed(wanted, output), rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=40)
@given(sizes, lengths_mm, lengths_mm, st.tuples(*[st.integers(1, 600)] * 3))
def test_the_affine_of_origin_keeps_the_first_voxel_and_the_step(shape, spacing, target, output):
    spec = Spec(grid="origin", target_spacing_mm=target, shape_hwd=output)
    plan = plan_volume(shape, spacing, spec)
    directions = AFFINE[:3, :3] * (np.array(target) / spacing)
    np.testing.assert_allclose(plan.output_spacing_mm, target, rtol=1e-12)
    first = [gap - cut for gap, cut in zip(plan.pad_before, plan.crop_start, strict=True)]
    affine = plan.output_affine(AFFINE)
    np.testing.assert_allclose(affine[:3, :3], directions, rtol=1e-12)
    np.testing.assert_allclose(affine @ [*first, 1], AFFINE @ [0, 0, 0, 1], rtol=1e-9, atol=1e-9)
    for axis in plan.axes:
        assert (np.diff(axis.i0) >= 0).all()
        assert np.isin(axis.i1 - axis.i0, (0, 1)).all()
        assert axis.i0[0] >= 0
        assert axis.i1[-1] < axis.n_source
        assert axis.w.dtype == np.float32
        assert ((axis.w >= 0) & (axis.w <= 1)).all()
        assert (axis.crop_start == 0) | (axis.pad_before == 0)


@pytest.mark.slow
@given(sizes, lengths_mm, st.sampled_from(["spacing", "stretch", "contain"]), sizes)
def test_every_output_voxel_is_where_its_step_and_first_say(shape, spacing, fit, output):
    """What turns predictions back, against the tables that engines sample by."""
    plan = plan_volume(shape, spacing, Spec(fit=fit, shape_hwd=output))
    for axis in plan.axes:
        o = np.arange(axis.pad_before, axis.pad_before + axis.n_valid)
        wanted = np.clip(axis.step * o + axis.first, 0, axis.n_source - 1)
        sampled = axis.i0 + axis.w.astype(np.float64) * (axis.i1 - axis.i0)
        np.testing.assert_allclose(sampled, wanted, atol=1e-6 * max(10, axis.n_source))


def test_a_volume_of_one_voxel_has_every_grid():
    for fields in ({"grid": "origin"}, {"fit": "stretch"}, {"fit": "contain"}, {}):
        plan = plan_volume((1, 1, 1), (0.7, 0.7, 5), Spec(shape_hwd=(4, 3, 2), **fields))
        assert all(axis.i0.max() == axis.i1.max() == 0 for axis in plan.axes)
