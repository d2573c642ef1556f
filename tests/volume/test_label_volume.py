"""Files merged into one mask, and what is refused of them."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctgpu.buffers import BufferPool
from ctgpu.errors import GeometryError
from ctgpu.volume.label_volume import TOLERANCE_MM, LabelVolume, require_same_place
from ctgpu.volume.raw import RawVolume, Rescale

SHAPE = (7, 6, 5)
DTYPES = ("i1", "u1", "<i2", ">i2", "<u2", "<i4", "u4", "i8", "u8", "f2", "<f4", ">f4", "f8")


@pytest.fixture(params=["compiled", "pure"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled code, and without."""
    if request.param == "pure":
        monkeypatch.setitem(sys.modules, "ctgpu._native", None)


def arranged(voxels: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The same voxels in several orders in memory, flipped, and not side by side."""
    sparse = np.zeros([2 * n for n in voxels.shape], voxels.dtype)
    sparse[::2, ::2, ::2] = voxels
    flipped = np.ascontiguousarray(voxels[::-1, :, ::-1])[::-1, :, ::-1]
    return [
        np.asarray(voxels, order="C"),
        np.asarray(voxels, order="F"),
        sparse[::2, ::2, ::2],
        flipped,
    ]


@pytest.mark.usefixtures("code")
def test_the_higher_number_takes_what_two_files_claim() -> None:
    rng = np.random.default_rng(0)
    for dtype, (first, second), (stored, numbers) in itertools.product(
        DTYPES, ((0, 1), (1, 3), (2, 0), (3, 2)), (("u1", (3, 200)), ("<u2", (3, 40000)))
    ):
        one, other = rng.integers(0, 2, (2, *SHAPE)).astype(dtype)
        labels = LabelVolume.empty(arranged(one)[first], stored, BufferPool())
        labels.add(arranged(one)[first], numbers[0])
        labels.add(arranged(other)[second], numbers[1])
        wanted = np.where(other > 0, numbers[1], np.where(one > 0, numbers[0], 0))
        assert labels.voxels.dtype == stored
        assert np.array_equal(labels.voxels, wanted)
        assert labels.overlap_voxels == np.count_nonzero((one > 0) & (other > 0)) > 0
        assert labels.files == 2


@pytest.mark.usefixtures("code")
def test_below_zero_and_no_number_belong_to_no_label() -> None:
    mask = np.array([-1.0, 0.0, np.nan, 0.25, 1.0, np.inf]).reshape(1, 2, 3)
    labels = LabelVolume.empty(mask, np.uint8, BufferPool())
    labels.add(mask, 9)
    assert labels.voxels.ravel().tolist() == [0, 0, 0, 9, 9, 9]


@pytest.mark.usefixtures("code")
def test_many_overlaps_in_one_long_line_are_all_counted() -> None:
    mask = np.ones((1, 1, 70_001), np.uint8)
    labels = LabelVolume.empty(mask, np.uint8, BufferPool())
    labels.add(mask, 1)
    labels.add(mask, 2)
    assert labels.overlap_voxels == 70_001


@pytest.mark.usefixtures("code")
def test_numbers_are_taken_as_they_are() -> None:
    numbers = np.random.default_rng(1).integers(0, 120, SHAPE)
    known = np.ones(120, np.uint8)
    for dtype, place, stored in itertools.product(DTYPES, range(4), ("u1", "<u2")):
        mask = arranged(numbers.astype(dtype))[place]
        labels = LabelVolume.empty(mask, stored, BufferPool())
        assert labels.take(mask, known) is None
        assert np.array_equal(labels.voxels, numbers)
        assert (labels.files, labels.overlap_voxels) == (1, 0)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[("i2", -1), ("i2", 4), ("u2", 300), ("i8", -(1 << 40)), ("u8", 1 << 63)],
        *[("f4", 0.5), ("f8", -3.0), ("f4", np.inf), ("f4", np.nan), ("f8", 1e300)],
    ],
)
def test_a_number_that_is_no_label_is_named(dtype: str, value: Any) -> None:
    mask = np.zeros(SHAPE, dtype)
    mask[3, 2, 1] = value
    labels = LabelVolume.empty(mask, np.uint8, BufferPool())
    known = np.array([1, 1, 0, 1], np.uint8)
    assert labels.take(np.zeros(SHAPE, dtype), known) is None
    found = labels.take(mask, known)
    assert found is not None
    assert np.array_equal(found, float(np.dtype(dtype).type(value)), equal_nan=True)


def test_a_gap_between_labels_is_no_label() -> None:
    mask = np.full(SHAPE, 2, np.uint8)
    labels = LabelVolume.empty(mask, np.uint8, BufferPool())
    assert labels.take(mask, np.array([1, 1, 0, 1], np.uint8)) == 2


def test_labels_lie_in_the_order_of_their_volume_and_begin_empty() -> None:
    pool = BufferPool()
    for voxels in arranged(np.ones(SHAPE, np.int16)):
        labels = LabelVolume.empty(voxels, np.uint8, pool)
        assert labels.voxels.shape == SHAPE
        assert not labels.voxels.any()
        order = np.argsort(labels.voxels.strides)
        assert np.array_equal(order, np.argsort(np.abs(voxels.strides)))
        labels.voxels[...] = 255
        labels.release()  # the next one has the same memory


def test_the_box_holds_every_label() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    labels = LabelVolume.empty(mask, np.uint16, BufferPool())
    assert labels.box() is None
    mask[2:4, 1, 3:5] = 1
    labels.add(mask, 65535)
    box = labels.box()
    assert box is not None
    assert box.ends == ((2, 4), (1, 2), (3, 5))


def volume(shape: tuple[int, int, int] = SHAPE, **facts: Any) -> RawVolume:
    return RawVolume(np.zeros(shape, np.int16), **facts)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(
        GeometryError, match=r"x\.nii\.gz has 7 × 6 × 4 voxels, and its volume 7 × 6 × 5"
    ):
        require_same_place("x.nii.gz", volume((7, 6, 4)), volume())


def test_scaled_labels_are_refused() -> None:
    with pytest.raises(
        GeometryError, match=r"a slope of 0\.5 and an intercept of 0; wanted labels"
    ):
        require_same_place("x", volume(header_rescale=Rescale(0.5, 0.0, "header")), volume())


def test_a_mask_lies_where_its_volume_does_at_every_corner() -> None:
    affine = np.diag([0.7, 0.8, 2.0, 1.0])
    near, turned, moved = affine.copy(), affine.copy(), affine.copy()
    near[0, 3] += 0.9 * TOLERANCE_MM
    moved[2, 3] -= 1.2 * TOLERANCE_MM
    turned[0, 0] += 0.01  # 6 voxels along: 0.06 mm
    require_same_place("x", volume(affine=near), volume(affine=affine))
    for wrong, apart in ((moved, "0.012 mm"), (turned, "0.06 mm"), (-affine, r"19\.8 mm")):
        with pytest.raises(GeometryError, match=f"x lies up to {apart} from its volume"):
            require_same_place("x", volume(affine=wrong), volume(affine=affine))
    with pytest.raises(GeometryError, match="nan mm from its volume"):
        require_same_place("x", volume(affine=affine * np.nan), volume(affine=affine))


def test_what_states_no_affine_is_taken_by_its_shape() -> None:
    stated, made = np.eye(4), np.diag([9.0, 9, 9, 1])
    for mask, scan in (
        (volume(), volume(affine=stated)),
        (volume(affine=stated), volume()),
        (volume(affine=made, affine_source="spacing"), volume(affine=stated)),
        (volume(affine=stated), volume(affine=made, affine_source="assumed")),
    ):
        require_same_place("x", mask, scan)
