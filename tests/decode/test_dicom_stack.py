"""Slices in order, and every way in which they make no volume."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest

from ctgpu.decode.dicom_header import SliceHeader, read_header
from ctgpu.decode.dicom_stack import stack_of
from ctgpu.errors import GeometryError
from ctgpu.volume.orientation import Orientation
from support.dicom_series import datasets_of, file_bytes

SHAPE = (6, 5, 8)
SPACING_MM = (0.7, 0.8, 2.5)
AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def headers_of(affine: np.ndarray = AFFINE, form: str = "single") -> list[SliceHeader]:
    hu = np.zeros(SHAPE, np.int16)
    files = datasets_of(hu, affine, form=form)
    return [read_header(file_bytes(dataset), "a.dcm") for dataset in files]


def moved(header: SliceHeader, *, by: tuple[float, float, float]) -> SliceHeader:
    ((x, y, z),) = header.positions
    return msgspec.structs.replace(header, positions=((x + by[0], y + by[1], z + by[2]),))


def turned(degrees: float) -> np.ndarray:
    """The affine, turned about the patient's left-right axis, slices along their normal."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    return turn @ AFFINE


@pytest.mark.parametrize("form", ["single", "enhanced"])
def test_order_spacing_and_affine(form):
    stack = stack_of("s", headers_of(form=form))
    assert stack.shape == SHAPE
    assert stack.spacing_mm == SPACING_MM
    np.testing.assert_allclose(stack.affine, AFFINE, atol=1e-12)
    places = [(k, 0) if form == "single" else (0, k) for k in range(8)]
    assert list(stack.order) == places


def test_positions_alone_decide_the_order():
    headers = headers_of()
    files = list(range(8))
    random.Random(5).shuffle(files)
    shuffled = [
        msgspec.structs.replace(headers[file], instance_number=8 - place)
        for place, file in enumerate(files)
    ]
    stack = stack_of("s", shuffled)
    assert [files[file] for file, _ in stack.order] == list(range(8))
    np.testing.assert_allclose(stack.affine, AFFINE, atol=1e-12)


def test_slices_go_along_the_normal_whichever_way_the_files_do():
    # From head to feet, with the same normal: the first slice is the lowest one all the same.
    down = AFFINE @ np.diag([1, 1, -1, 1.0])
    down[2, 3] += 7 * 2.5
    stack = stack_of("s", headers_of(down))
    assert stack.order[0] == (7, 0)
    np.testing.assert_allclose(stack.affine[:, 3], [90, 80, -30, 1], atol=1e-9)
    np.testing.assert_allclose(stack.affine, AFFINE, atol=1e-9)


@pytest.mark.parametrize("degrees", [-20, 12.5, 90])
def test_a_turned_patient(degrees):
    stack = stack_of("s", headers_of(turned(degrees)))
    np.testing.assert_allclose(stack.affine, turned(degrees), atol=1e-9)
    np.testing.assert_allclose(stack.spacing_mm, SPACING_MM, rtol=1e-9)


def test_a_gantrys_tilt_is_shear_of_the_affine():
    tilted = turned(15)
    # The table moves along the patient, whatever the gantry does.
    tilted[:3, 2] = [0, 0, 2.5]
    stack = stack_of("s", headers_of(tilted))
    np.testing.assert_allclose(stack.affine, tilted, atol=1e-9)
    assert stack.spacing_mm[2] == pytest.approx(2.5)
    assert Orientation.of(stack.affine).shear_degrees == 15


def test_positions_that_were_rounded_are_even_enough():
    headers = [
        msgspec.structs.replace(header, positions=((-90.0, -80.0, round(0.625 * k, 1)),))
        for k, header in enumerate(headers_of())
    ]
    assert stack_of("s", headers).spacing_mm[2] == pytest.approx(0.625, abs=0.01)


def test_orientations_that_were_rounded_have_length_one():
    headers = [
        msgspec.structs.replace(header, orientations=((0.9999, 0, 0, 0, 1.0001, 0),))
        for header in headers_of()
    ]
    np.testing.assert_allclose(stack_of("s", headers).affine, AFFINE, atol=1e-9)


def without(number: int) -> list[SliceHeader]:
    headers = headers_of()
    del headers[number]
    return headers


def changed(number: int, **changes: object) -> list[SliceHeader]:
    headers = headers_of()
    headers[number] = msgspec.structs.replace(headers[number], **changes)
    return headers


def twice() -> list[SliceHeader]:
    again = [msgspec.structs.replace(h, acquisition_number=2) for h in headers_of()]
    return [*headers_of(), *again]


def shifted(number: int, by: tuple[float, float, float]) -> list[SliceHeader]:
    headers = headers_of()
    headers[number] = moved(headers[number], by=by)
    return headers


TURNED = ((1.0, 0.0, 0.0, 0.0, 0.0, -1.0),)
REFUSED = {
    "a gap": (without(4), r"7 slices 2\.5 mm apart, and between them 1 gap of up to 5 mm"),
    "a gap near the end": (without(6), r"1 gap of up to 5 mm"),
    "gaps of three slices": (headers_of()[:4:3] + headers_of()[4:5], r"1 gap of up to 7\.5 mm"),
    "two gaps": (
        [h for k, h in enumerate(headers_of()) if k not in (2, 5)],
        r"2 gaps of up to 5 mm",
    ),
    "a doubled slice": (
        [*headers_of(), headers_of()[3]],
        r"9 slices in 8 places, of 1 acquisition number in 9 files",
    ),
    "two volumes": (twice(), r"16 slices in 8 places, of 2 acquisition numbers in 16 files"),
    "all in one place": (
        [msgspec.structs.replace(h, positions=((0.0, 0.0, 0.0),)) for h in headers_of()],
        r"8 slices in 1 place,",
    ),
    "uneven": (shifted(3, (0, 0, 0.9)), r"8 slices at uneven distances, up to 0\.9 mm"),
    "beside the line": (shifted(3, (4, 0, 0)), r"uneven distances, up to 4 mm"),
    "two shapes": (changed(2, rows=9), r"2 shapes \(5 × 6, 9 × 6 rows and columns\)"),
    "two orientations": (changed(2, orientations=TURNED), r"slices of 2 orientations"),
    "no right angle": (
        [
            msgspec.structs.replace(h, orientations=((1.0, 0, 0, 0.5, 0.8, 0),))
            for h in headers_of()
        ],
        r"at a right angle",
    ),
    "no directions": (
        [msgspec.structs.replace(h, orientations=((0.0,) * 6,)) for h in headers_of()],
        r"at a right angle",
    ),
    "two spacings": (
        changed(2, pixel_spacings_mm=((0.8, 0.71),)),
        r"pixel spacings from 0\.7 to 0\.8 mm",
    ),
    "no length": (
        [msgspec.structs.replace(h, pixel_spacings_mm=((0.0, 0.7),)) for h in headers_of()],
        r"wanted one for all slices, more than zero",
    ),
    "no position": (changed(2, positions=()), r"1 of 8 files without one position"),
    "no orientation": (changed(2, orientations=()), r"1 of 8 files without one orientation"),
    "no spacing": (changed(2, pixel_spacings_mm=()), r"1 of 8 files without one pixel spacing"),
    "one slice": (headers_of()[:1], r"has one slice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_volume_is_refused(case):
    headers, sentence = REFUSED[case]
    with pytest.raises(GeometryError, match=rf"^key-of-it .*{sentence}"):
        stack_of("key-of-it", headers)


def test_frames_of_one_file_that_differ_are_refused():
    (header,) = headers_of(form="enhanced")
    for changes, sentence in (
        ({"orientations": (*header.orientations * 7, *TURNED)}, "2 orientations"),
        ({"positions": (*header.positions[:7], header.positions[0])}, "8 slices in 7 places"),
        ({"positions": ()}, "without one position"),
    ):
        with pytest.raises(GeometryError, match=sentence):
            stack_of("s", [msgspec.structs.replace(header, **changes)])


def test_a_number_of_frames_that_lies_costs_nothing():
    (header,) = headers_of(form="enhanced")
    lying = msgspec.structs.replace(header, frames=1 << 31, positions=())
    with pytest.raises(GeometryError, match="without one position"):
        stack_of("s", [lying])
