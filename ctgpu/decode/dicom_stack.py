"""How the slices of a series make one volume: their order, their distance, how they lie.

Only positions count (ImagePositionPatient): no file name, InstanceNumber or SliceThickness.  What
is not one slice a place, at even distances, is refused rather than guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctgpu.decode.dicom_header import SliceHeader
from ctgpu.decode.stored import affine_facts
from ctgpu.errors import GeometryError
from ctgpu.printable import counted
from ctgpu.volume.raw import Spacing

_Array = npt.NDArray[np.float64]

# Directions are written with some six digits, and spacings too.
_DIRECTION_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-3
# Positions are written with as little as one digit, so that even slices are uneven by as much;
# beside that a slice may be off its place by a tenth of the distance.
_OFF_PLACE, _ROUNDING_MM = 0.1, 0.05
# Slices nearer than this part of the distance lie in the same place.
_SAME_PLACE = 0.1
_GAP = 1.5


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames of a series as one volume.

    Attributes
    ----------
    order : tuple of (int, int)
        For each slice, by its position along the normal, the file and the frame in it.
    shape : tuple of int
        (H, W, D): columns, rows and slices.
    spacing_mm : tuple of float
        Along H, W and D.
    affine : numpy.ndarray
        4 × 4 float64, (H, W, D) index to RAS+ millimetres.
    """

    order: tuple[tuple[int, int], ...]
    shape: tuple[int, int, int]
    spacing_mm: Spacing
    affine: npt.NDArray[np.float64]


def stack_of(name: str, headers: Sequence[SliceHeader]) -> Stack:
    """Put the slices of one series into order.

    A gantry's tilt ends up in the affine, as shear (``--max-tilt-degrees``).

    Parameters
    ----------
    name : str
        What messages call the series.
    headers : sequence of SliceHeader
        One a file, of at least one; in any order.

    Raises
    ------
    GeometryError
        If they are not the slices of one volume at even distances.
    """
    rows, columns = _one_shape(name, headers)
    along_row, along_column = _directions(name, headers)
    between_rows_mm, between_columns_mm = _pixel_spacing(name, headers)
    positions = _positions(name, headers)
    places = [(file, frame) for file, h in enumerate(headers) for frame in range(h.frames)]
    normal = np.cross(along_row, along_column)
    along_mm = positions @ normal
    order = np.argsort(along_mm, kind="stable")
    _check_distances(name, along_mm[order], headers)
    positions = positions[order]
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    _check_line(name, positions, step)
    steps = np.stack([along_row * between_columns_mm, along_column * between_rows_mm, step], axis=1)
    facts = affine_facts(name, steps, positions[0].tolist(), "LPS")
    return Stack(
        order=tuple(places[k] for k in order),
        shape=(columns, rows, len(order)),
        spacing_mm=(between_columns_mm, between_rows_mm, float(np.linalg.norm(step))),
        affine=facts["affine"],
    )


def _one_shape(name: str, headers: Sequence[SliceHeader]) -> tuple[int, int]:
    shapes = {(header.rows, header.columns) for header in headers}
    if len(shapes) > 1:
        found = ", ".join(f"{rows} × {columns}" for rows, columns in sorted(shapes)[:4])
        raise GeometryError(
            f"{name} has slices of {len(shapes)} shapes ({found} rows and columns); wanted one: "
            "the series holds more than one volume, so part it or leave it out"
        )
    return shapes.pop()


def _directions(name: str, headers: Sequence[SliceHeader]) -> tuple[_Array, _Array]:
    """Where a row leads and where a column does, in LPS+, each of length one."""
    stated = _of_all(
        name, "orientation (ImageOrientationPatient)", [h.orientations for h in headers]
    )
    if (abs(stated - stated[0]) > _DIRECTION_TOLERANCE).any():
        differing = len({tuple(np.round(one, 3)) for one in stated.tolist()})
        raise GeometryError(
            f"{name} has slices of {differing} orientations; wanted one: the series holds more "
            "than one volume, or a localizer, so part it or leave it out"
        )
    along_row, along_column = stated[0].reshape(2, 3)
    lengths = np.linalg.norm(stated[0].reshape(2, 3), axis=1)
    if (abs(lengths - 1) > 10 * _DIRECTION_TOLERANCE).any() or (
        abs(along_row @ along_column) > 10 * _DIRECTION_TOLERANCE
    ):
        raise GeometryError(
            f"{name} states an orientation whose rows and columns are no directions at a right "
            "angle (ImageOrientationPatient): correct its headers"
        )
    return along_row / lengths[0], along_column / lengths[1]


def _pixel_spacing(name: str, headers: Sequence[SliceHeader]) -> tuple[float, float]:
    stated = _of_all(name, "pixel spacing (PixelSpacing)", [h.pixel_spacings_mm for h in headers])
    smallest, largest = stated.min(axis=0), stated.max(axis=0)
    if (smallest <= 0).any() or (largest - smallest > _SPACING_TOLERANCE * smallest).any():
        raise GeometryError(
            f"{name} has pixel spacings from {smallest.min():g} to {largest.max():g} mm; wanted "
            "one for all slices, more than zero: part the series, or correct its headers"
        )
    between_rows_mm, between_columns_mm = stated[0].tolist()
    return between_rows_mm, between_columns_mm


def _of_all(name: str, what: str, stated: Sequence[Sequence[Iterable[float]]]) -> _Array:
    """What the slices state, which each has to; once for each file that states one for all."""
    missing = sum(not of_file for of_file in stated)
    if missing:
        raise GeometryError(
            f"{name} has {missing} of {counted(len(stated), 'file')} without one {what} for each "
            "slice: correct their headers, or leave the series out"
        )
    return np.array([one for of_file in stated for one in of_file], np.float64)


def _positions(name: str, headers: Sequence[SliceHeader]) -> _Array:
    """Those of all slices, one a row."""
    positions = _of_all(
        name, "position (ImagePositionPatient)", [header.positions for header in headers]
    )
    if len(positions) < 2:
        raise GeometryError(
            f"{name} has one slice, and the distance between slices is what positions say; wanted "
            "two slices or more: fetch the series whole, or leave it out"
        )
    return positions


def _check_distances(name: str, along_mm: _Array, headers: Sequence[SliceHeader]) -> None:
    """Refuse slices in the same place, and places without a slice."""
    distances = np.diff(along_mm)
    # Of few slices, with a gap between half of them, the shorter one.
    usual = float(np.sort(distances)[(len(distances) - 1) // 2])
    apart = distances > max(_SAME_PLACE * usual, 1e-3)
    places = int(apart.sum()) + 1
    if places < len(along_mm):
        acquisitions = len({header.acquisition_number for header in headers})
        raise GeometryError(
            f"{name} has {len(along_mm)} slices in {counted(places, 'place')}, of "
            f"{counted(acquisitions, 'acquisition number')} in {counted(len(headers), 'file')}; "
            "wanted one slice a place: part the series if it holds more than one volume, or leave "
            "the copies away"
        )
    gaps = int((distances > _GAP * usual).sum())
    if gaps:
        found = counted(gaps, "gap")
        raise GeometryError(
            f"{name} has {len(along_mm)} slices {usual:.4g} mm apart, and between them {found} of "
            f"up to {distances.max():.4g} mm: slices are missing, so fetch the series whole"
        )


def _check_line(name: str, positions: _Array, step: _Array) -> None:
    """Refuse slices that do not lie on a straight line at even distances."""
    places = positions[0] + np.arange(len(positions))[:, None] * step
    off_mm = float(np.linalg.norm(positions - places, axis=1).max())
    distance_mm = math.sqrt(float(step @ step))
    if off_mm > _OFF_PLACE * distance_mm + _ROUNDING_MM:
        raise GeometryError(
            f"{name} has {len(positions)} slices at uneven distances, up to {off_mm:.3g} mm from "
            f"where {distance_mm:.4g} mm between slices would have them: resample it to even "
            "distances, or leave it out"
        )
