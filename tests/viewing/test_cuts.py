"""A volume in three planes, as the patient lies."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from ctgpu.checking.sheet import View
from ctgpu.viewing.cuts import MOST_PIXELS, MOST_SLICES, Plane, planes_of

Image = pytest.importorskip("PIL.Image")

#: Along the patient's left, back and head.
SHAPE, SPACING_MM = (40, 32, 24), (1.0, 2.0, 4.0)


def patient() -> Any:
    """Bright at the right, the front and the head; each axis has a ramp of its own."""
    right = np.linspace(1, 0, SHAPE[0])[:, None, None]
    front = np.linspace(1, 0, SHAPE[1])[None, :, None]
    head = np.linspace(0, 1, SHAPE[2])[None, None, :]
    return ((right + 2 * front + 4 * head) / 7).astype(np.float16)


def stored_as(codes: str) -> View:
    """The same patient in a volume whose axes lead to these sides."""
    places = ["RLAPSI".index(code) // 2 for code in codes]
    volume = patient().transpose(places)
    spacing_mm = tuple(SPACING_MM[place] for place in places)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (code, place) in enumerate(zip(codes, places, strict=True)):
        affine[place, axis] = spacing_mm[axis] * (-1 if code in "LPI" else 1)
        if code != "LPS"[place]:
            volume = np.flip(volume, axis)
    return View("x", volume, spacing_mm, affine, None)  # type: ignore[arg-type]


def pixels(picture: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(picture))).astype(int)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SLA"])
def test_every_plane_is_turned_to_what_its_marks_say(codes: str) -> None:
    axial, coronal, sagittal = planes_of(stored_as(codes), "float16", 0.0, 1.0)
    assert [plane.marks for plane in (axial, coronal, sagittal)] == ["RLAP", "RLSI", "APSI"]
    for plane, left_step, top_step in ((axial, 1, 2), (coronal, 1, 4), (sagittal, 2, 4)):
        shown = pixels(plane.pictures[len(plane.pictures) // 2])
        assert shown.shape == (plane.size[1], plane.size[0])
        across = shown[:, :4].mean() - shown[:, -4:].mean()
        down = shown[:4].mean() - shown[-4:].mean()
        # The left of the picture and its top are brighter, each by its own ramp.
        assert across == pytest.approx(255 * left_step / 7, rel=0.2)
        assert down == pytest.approx(255 * top_step / 7, rel=0.2)
    # Later slices lie towards the head, the back and the left.
    for plane, rising in ((axial, True), (coronal, False), (sagittal, False)):
        first, last = (pixels(plane.pictures[place]).mean() for place in (0, -1))
        assert bool(last > first) == rising


def test_pixels_are_square_and_no_finer_than_voxels() -> None:
    axial, coronal, sagittal = planes_of(stored_as("LPS"), "float16", 0.0, 1.0)
    # 40, 64 and 96 mm.
    assert [plane.size for plane in (axial, coronal, sagittal)] == [(40, 64), (40, 96), (64, 96)]


def test_a_large_volume_is_thinned_and_made_smaller() -> None:
    volume = np.zeros((600, 300, 3), np.uint8)
    view = View("x", volume, (0.5, 0.5, 50.0), None, None)
    axial, coronal, sagittal = planes_of(view, "uint8", 0, 255)
    assert axial.size == (256, 128)
    assert coronal.size == (256, 128)
    assert max(axial.size) == MOST_PIXELS
    assert [plane.count for plane in (axial, coronal, sagittal)] == [3, 300, 600]
    assert [len(plane.pictures) for plane in (axial, coronal, sagittal)] == [3, *[MOST_SLICES] * 2]
    assert axial.places == (0, 1, 2)
    steps = np.diff(sagittal.places)
    assert steps.min() >= 9
    assert steps.max() <= 10


def test_an_orientation_that_is_not_known_has_no_marks() -> None:
    view = View("x", patient(), SPACING_MM, None, None)
    assert [plane.marks for plane in planes_of(view, "float16", 0.0, 1.0)] == ["", "", ""]


@pytest.mark.parametrize(
    ("dtype", "stored", "black", "white"),
    [
        ("uint8", np.uint8(51), 0.0, 255.0),
        ("int16", np.int16(-600), -1000.0, 1000.0),
        ("bfloat16", np.uint16(0xBF1A), -1.0, 1.0),  # -0.6016
        ("float16", np.float16(-0.6), -1.0, 1.0),
    ],
)
def test_every_type_is_shown_by_the_window(
    dtype: Any, stored: Any, black: float, white: float
) -> None:
    volume = np.full((8, 8, 8), stored)
    (axial, *_) = planes_of(View("x", volume, (1.0, 1.0, 1.0), None, None), dtype, black, white)
    assert pixels(axial.pictures[0]).mean() == pytest.approx(51, abs=1)


def test_what_lies_beyond_the_window_is_black_or_white() -> None:
    volume = np.array([-3000, 3000], np.int16).repeat(128).reshape(16, 16, 1)
    (axial, *_) = planes_of(View("x", volume, (1.0, 1.0, 1.0), None, None), "int16", -100, 100)
    shown = pixels(axial.pictures[0])
    assert shown[:, :6].max() < 10
    assert shown[:, -6:].min() > 245


def test_the_outlines_of_a_mask_lie_where_it_is_whatever_the_axes() -> None:
    drawn = []
    for codes in ("LPS", "SAR"):
        view = stored_as(codes)
        mask = np.where(view.hu > 0.8, 5, 0).astype(np.uint8)
        whole = View("x", view.hu, view.spacing_mm, view.affine, None, mask)
        drawn.append([plane.outlines for plane in planes_of(whole, "float16", 0.0, 1.0)])
    assert drawn[0] == drawn[1]
    head = Image.open(io.BytesIO(drawn[0][0][-1])).convert("RGBA")
    rows, columns = np.nonzero(np.asarray(head)[..., 3])
    assert rows.min() == columns.min() == 0  # front and right
    assert drawn[0][0][0] == b""  # nothing of it at the feet


def test_thinned_slices_are_some_of_the_same() -> None:
    (plane, *_) = planes_of(stored_as("LPS"), "float16", 0.0, 1.0)
    few = plane.thinned(5)
    assert isinstance(few, Plane)
    assert (len(few.places), few.count) == (5, plane.count)
    for place, picture in zip(few.places, few.pictures, strict=True):
        assert plane.pictures[plane.places.index(place)] == picture
    assert plane.thinned(100) == plane
    assert plane.thinned(0).pictures == ()
