"""The plan of a volume: sizes, tables, and where every mark of a phantom ends up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgpu.errors import GeometryError
from ctgpu.spec import Spec
from ctgpu.volume.geometry import AxisPlan, VolumePlan, plan_volume

AFFINE = np.array([[0, -0.9, 0, 11], [0.8, 0, 0.1, -20], [0, 0, 2.5, 300], [0, 0, 0, 1.0]])


def sample(voxels: np.ndarray, plan: VolumePlan) -> np.ndarray:
    """The output by the tables alone: trilinear, cropped, padded with -1."""
    result = voxels.astype(np.float64)
    for k, axis in enumerate(plan.axes):
        weight = np.expand_dims(axis.w.astype(np.float64), tuple({0, 1, 2} - {k}))
        low, high = np.take(result, axis.i0, k), np.take(result, axis.i1, k)
        result = low + weight * (high - low)
    out = np.full(plan.spec.shape_hwd, -1.0)
    out[tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)] = result
    return out


def make_spec(shape: tuple[int, int, int]) -> Spec:
    return Spec(shape_hwd=shape)


def test_the_contract_on_a_real_geometry():
    plan = plan_volume((512, 512, 275), (0.703125, 0.703125, 1.25), Spec())
    assert plan.source_shape == (512, 512, 275)
    assert plan.resized_shape == (480, 480, 229)
    assert plan.crop_start == (0, 0, 0)
    assert plan.pad_before == (0, 0, 5)
    assert [axis.n_valid for axis in plan.axes] == [480, 480, 229]


@pytest.mark.parametrize(
    ("n", "spacing", "n_out", "resized", "crop", "pad"),
    [
        (512, 0.75, 480, 512, 16, 0),
        (513, 0.75, 480, 513, 16, 0),
        (401, 0.75, 480, 401, 0, 39),
        (1, 0.1, 480, 1, 0, 239),
        (1, 0.75, 1, 1, 0, 0),
        (100, 1.5, 480, 200, 0, 140),
        # In double, in this order of operations: 0.3 / 0.75 is just below 0.4.
        (5, 0.3, 480, 1, 0, 239),
        (1000, 0.34, 480, 453, 0, 13),
    ],
)
def test_sizes_of_one_axis(n, spacing, n_out, resized, crop, pad):
    plan = plan_volume((n, 480, 240), (spacing, 0.75, 1.5), make_spec((n_out, 480, 240)))
    axis = plan.axes[0]
    assert (axis.n_resized, axis.crop_start, axis.pad_before) == (resized, crop, pad)
    assert plan.axes[1].w.tolist() == [0.0] * 480
    assert axis.n_resized == max(1, int(n * (spacing / 0.75)))


SHAPES = [(24, 15, 9), (23, 14, 1), (7, 31, 12), (1, 40, 5)]
SPACINGS = [(0.75, 0.75, 1.5), (1.3, 0.4, 3.0), (0.33, 2.0, 0.7)]
OUTPUTS = [(20, 17, 11), (64, 48, 32), (5, 64, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_phantom_with_three_unequal_marked_axes(shape, spacing, output):
    """Each axis carries its own ramp, so swapped, mirrored or shifted axes cannot pass."""
    plan = plan_volume(shape, spacing, make_spec(output))
    to_source = plan.output_affine(np.eye(4))
    valid = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)
    for k in range(3):
        ramp = np.moveaxis(
            np.broadcast_to(np.arange(shape[k]), (*np.delete(shape, k), shape[k])), -1, k
        )
        out = sample(ramp, plan)
        assert out.shape == output
        index = np.indices(output)[:, *valid].reshape(3, -1)
        place = to_source[:3, :3] @ index + to_source[:3, 3:]
        wanted = np.clip(place[k], 0, shape[k] - 1)
        np.testing.assert_allclose(out[valid].ravel(), wanted, atol=2e-5 * shape[k])
        padding = np.ones(output, bool)
        padding[valid] = False
        assert (out[padding] == -1).all()


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 3.0), (2.1, 1.7, 4.0)])
@pytest.mark.parametrize("output", [(30, 60, 20), (90, 80, 70)])
def test_the_output_affine_maps_marks_back_onto_the_scan(spacing, output):
    shape = (30, 24, 18)
    plan = plan_volume(shape, spacing, make_spec(output))
    affine = plan.output_affine(AFFINE)
    placed = 0
    for mark in itertools.product((8, 17), (3, 20), (6, 11)):
        voxels = np.zeros(shape)
        voxels[mark] = 1
        out = np.where(plan_mask(plan), sample(voxels, plan), 0)
        if out.sum() < 0.5:  # cropped away
            continue
        placed += 1
        centre = [(np.indices(output)[k] * out).sum() / out.sum() for k in range(3)]
        found = affine @ [*centre, 1]
        wanted = AFFINE @ [*mark, 1]
        # A mark is smeared over at most two voxels, so its centre of mass is this close.
        assert np.linalg.norm(found - wanted) < 0.5 * np.linalg.norm(AFFINE[:3, :3].sum(1))
    assert placed >= 4


def plan_mask(plan: VolumePlan) -> np.ndarray:
    mask = np.zeros(plan.spec.shape_hwd, bool)
    mask[tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)] = True
    return mask


def test_the_output_affine_keeps_the_corners_of_the_scan():
    plan = plan_volume((30, 24, 18), (1.5, 0.6, 3.0), make_spec((64, 64, 64)))
    affine = plan.output_affine(AFFINE)
    for corner in itertools.product((0, 1), repeat=3):
        source = [c * n - 0.5 for c, n in zip(corner, plan.source_shape, strict=True)]
        output = [
            c * a.n_resized + a.pad_before - 0.5 for c, a in zip(corner, plan.axes, strict=True)
        ]
        np.testing.assert_allclose(affine @ [*output, 1], AFFINE @ [*source, 1])


axes = st.tuples(st.integers(1, 700), st.floats(0.05, 8.0), st.integers(1, 600))


@pytest.mark.slow
@given(axes)
@settings(max_examples=300)
def test_what_every_engine_relies_on(drawn):
    n, spacing, n_out = drawn
    axis: AxisPlan = plan_volume((n, 1, 1), (spacing, 1, 1), make_spec((n_out, 1, 1))).axes[0]
    assert (axis.i0.dtype, axis.i1.dtype, axis.w.dtype) == (np.int32, np.int32, np.float32)
    assert 1 <= axis.n_valid == len(axis.i0) == len(axis.i1) <= n_out
    assert axis.n_valid == min(axis.n_resized, n_out)
    assert 0 <= axis.i0.min() <= axis.i1.max() <= n - 1
    assert (np.diff(axis.i0) >= 0).all()
    assert np.isin(axis.i1 - axis.i0, (0, 1)).all()
    assert axis.w.min() >= 0
    assert axis.w.max() <= 1
    assert min(axis.crop_start, axis.pad_before) == 0
    assert axis.pad_before + axis.n_valid <= n_out
    assert axis.crop_start + axis.n_valid <= axis.n_resized


@pytest.mark.slow
@given(axes)
@settings(max_examples=100, deadline=None)
def test_positions_are_pytorchs(drawn):
    torch = pytest.importorskip("torch")
    n, spacing, _ = drawn
    axis = plan_volume((n, 1, 1), (spacing, 1, 1), make_spec((60_000, 1, 1))).axes[0]
    # A ramp resampled is the position itself.
    ramp = torch.arange(n, dtype=torch.float32)[None, None, :, None, None]
    wanted = torch.nn.functional.interpolate(
        ramp, size=(axis.n_resized, 1, 1), mode="trilinear", align_corners=False
    )[0, 0, :, 0, 0].numpy()
    mine = axis.i0 + axis.w * (axis.i1 - axis.i0).astype(np.float32)
    np.testing.assert_allclose(mine, wanted, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 1), (4, 0, 4), ()])
def test_shapes_that_are_refused(shape):
    with pytest.raises(GeometryError, match="three axes"):
        plan_volume(shape, (1, 1, 1), Spec())


@pytest.mark.parametrize(
    "spacing",
    [(1, 1), (1, 1, 0), (1, -1, 1), (np.nan, 1, 1), (1, np.inf, 1), (1, 1, 1e-9), (1, 1, 1000)],
)
def test_spacings_that_are_refused(spacing):
    with pytest.raises(GeometryError, match="spacing"):
        plan_volume((4, 4, 4), spacing, Spec())


@pytest.mark.parametrize("grid", ["extent", "origin"])
def test_a_part_of_a_plan_samples_what_the_whole_has_there(grid: str) -> None:
    # Padded, exactly filled and cropped; no two axes alike.
    spec = Spec(target_spacing_mm=(2.0, 1.5, 2.5), shape_hwd=(24, 12, 16), grid=grid)
    shape = (18, 20, 30)
    whole = plan_volume(shape, (2.0, 1.5, 2.0), spec)
    assert [axis.pad_before > 0 for axis in whole.axes] == [True, False, False]
    voxels = np.random.default_rng(0).normal(size=shape)
    expected = sample(voxels, whole)
    box = (5, 4, 6)
    for start in itertools.product((0, 1, 2, 10, 19), (0, 3, 8), (0, 7, 10)):
        part = whole.part(start, box)
        where = tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))
        assert np.array_equal(sample(voxels, part), expected[where])
        moved = np.eye(4)
        moved[:3, 3] = start
        np.testing.assert_allclose(part.output_affine(AFFINE), whole.output_affine(AFFINE) @ moved)
    assert whole.part((0, 0, 0), spec.shape_hwd).spec == spec


def test_a_part_may_be_padding_alone() -> None:
    plan = plan_volume(
        (10, 10, 10),
        (1.0, 1.0, 1.0),
        Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(30, 10, 10)),
    )
    for start in (0, 4, 20, 24):
        part = plan.part((start, 0, 0), (6, 10, 10))
        assert part.axes[0].n_valid == 0
        assert (sample(np.zeros((10, 10, 10)), part) == -1).all()
    assert plan.part((5, 0, 0), (6, 10, 10)).axes[0].n_valid == 1
