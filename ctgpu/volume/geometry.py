"""The plan of one volume: resized size, crop, pad, sampling tables, output affine.

Everything an engine needs to know about positions is computed here, once, so that every engine
gathers from the same voxels with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError
from ctgpu.spec import Spec
from ctgpu.volume.orientation import AS_STORED, Reorientation
from ctgpu.volume.raw import Spacing
from ctgpu.volume.statistics import Statistics
from ctgpu.volume.values import ValueMap, value_map

#: Spacings outside this range (mm) are a typo or another unit, not a CT scan.
SPACING_RANGE_MM = (0.01, 100.0)


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """How one axis of the output is sampled from one axis of the source.

    Output voxel ``pad_before + o`` for ``o`` in ``0 … n_valid - 1`` is the blend of source voxels
    ``i0[o]`` and ``i1[o]`` with weights ``1 - w[o]`` and ``w[o]``; all others are padding.

    Attributes
    ----------
    n_source, n_resized, n_out : int
        Voxels of the source, after resampling, and of the output.
    crop_start, pad_before : int
        First resampled voxel kept; padding at the low side.  At most one is above zero.
    step, first : float
        Output voxel ``o`` of all, padding too, has its centre at ``step * o + first`` of the
        source, before that is held to the source's outermost voxels.
    i0, i1 : numpy.ndarray
        int32, shape (n_valid,), non-decreasing; ``i1`` is ``i0`` or ``i0 + 1``.
    w : numpy.ndarray
        float32, shape (n_valid,), in [0, 1].
    """

    n_source: int
    n_resized: int
    n_out: int
    crop_start: int
    pad_before: int
    step: float
    first: float
    i0: npt.NDArray[np.int32]
    i1: npt.NDArray[np.int32]
    w: npt.NDArray[np.float32]

    @property
    def n_valid(self) -> int:
        """Output voxels that are sampled, not padded."""
        return len(self.w)

    def part(self, start: int, n_out: int) -> AxisPlan:
        """The plan of output voxels `start` to ``start + n_out`` alone; all may be padding."""
        first = min(max(0, start - self.pad_before), self.n_valid)
        end = max(first, min(self.n_valid, start + n_out - self.pad_before))
        return replace(
            self,
            n_out=n_out,
            crop_start=self.crop_start + first,
            pad_before=min(max(0, self.pad_before - start), n_out),
            first=self.first + self.step * start,
            i0=self.i0[first:end],
            i1=self.i1[first:end],
            w=self.w[first:end],
        )


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """Everything an engine must know to make one output volume.

    Attributes
    ----------
    spec : Spec
        The contract.
    spacing_mm : tuple of float
        Source voxel size that was used, along the output's H, W and D.
    axes : tuple of AxisPlan
        For the output's H, W and D.
    values : ValueMap
        How HU become what is stored.
    reorientation : Reorientation
        Which axes of the file they are.
    """

    spec: Spec
    spacing_mm: Spacing
    axes: tuple[AxisPlan, AxisPlan, AxisPlan]
    values: ValueMap
    reorientation: Reorientation = AS_STORED

    def part(self, start_hwd: Sequence[int], shape_hwd: Sequence[int]) -> VolumePlan:
        """The plan of a box of the output: the very voxels that the whole has there.

        An axis of it may be padding alone, which no engine takes.
        """
        h, w, d = (
            axis.part(start, n)
            for axis, start, n in zip(self.axes, start_hwd, shape_hwd, strict=True)
        )
        spec = replace(self.spec, shape_hwd=(h.n_out, w.n_out, d.n_out))
        return replace(self, spec=spec, axes=(h, w, d))

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Source shape along the output's (H, W, D)."""
        return tuple(axis.n_source for axis in self.axes)

    @property
    def resized_shape(self) -> tuple[int, ...]:
        """Shape (H, W, D) after resampling, before crop and pad."""
        return tuple(axis.n_resized for axis in self.axes)

    @property
    def crop_start(self) -> tuple[int, ...]:
        """First resampled voxel kept on (H, W, D)."""
        return tuple(axis.crop_start for axis in self.axes)

    @property
    def pad_before(self) -> tuple[int, ...]:
        """Padding at the low side of (H, W, D)."""
        return tuple(axis.pad_before for axis in self.axes)

    @property
    def output_spacing_mm(self) -> Spacing:
        """Voxel size (H, W, D) of the output in millimetres."""
        h, w, d = (a.step * s for a, s in zip(self.axes, self.spacing_mm, strict=True))
        return h, w, d

    def output_affine(self, source_affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The affine of the output, (H, W, D) index to the world of `source_affine`.

        Parameters
        ----------
        source_affine : numpy.ndarray
            4 × 4, voxel index of the file to world, millimetres.

        Returns
        -------
        numpy.ndarray
            4 × 4 float64.
        """
        to_source = np.eye(4)
        for k, axis in enumerate(self.axes):
            to_source[k, k], to_source[k, 3] = axis.step, axis.first
        oriented = self.reorientation.oriented_affine(source_affine, self.source_shape)
        result: npt.NDArray[np.float64] = oriented @ to_source
        return result


def require_geometry(shape_hwd: tuple[int, ...], spacing_mm: Any) -> Spacing:
    """The spacing as three numbers, if shape and spacing are those of a volume.

    Raises
    ------
    GeometryError
        If the shape is not three axes of at least one voxel, or a spacing is not a finite number
        within :data:`SPACING_RANGE_MM`.
    """
    if len(shape_hwd) != 3 or min(shape_hwd) < 1:
        raise GeometryError(
            f"the volume has shape {tuple(shape_hwd)}; wanted three axes of at least one voxel"
        )
    spacing = tuple(float(s) for s in spacing_mm)
    low, high = SPACING_RANGE_MM
    if len(spacing) != 3 or not all(math.isfinite(s) and low <= s <= high for s in spacing):
        raise GeometryError(
            f"the spacing is {spacing} mm; wanted three numbers from {low} to {high}: "
            "correct it in the CSV or the header, or pass spacing_mm"
        )
    return spacing[0], spacing[1], spacing[2]


def plan_volume(
    shape_hwd: tuple[int, ...],
    spacing_mm: Any,
    spec: Spec,
    *,
    statistics: Statistics | None = None,
    reorientation: Reorientation = AS_STORED,
) -> VolumePlan:
    """Plan one volume.

    Parameters
    ----------
    shape_hwd : tuple of int
        Source shape, along the axes of the output.
    spacing_mm : sequence of float
        Source voxel size in millimetres, along the axes of the output.
    spec : Spec
        The contract.
    statistics : Statistics, optional
        Of the source's voxels; needed where ``spec.needs_statistics``.
    reorientation : Reorientation
        Which axes of the file these are.

    Returns
    -------
    VolumePlan

    Raises
    ------
    GeometryError
        As :func:`require_geometry`.
    """
    spacing = require_geometry(shape_hwd, spacing_mm)
    axes = [
        _plan_axis(n, n_resized, n_out, target / s if spec.grid == "origin" else None)
        for n, s, n_resized, target, n_out in zip(
            shape_hwd,
            spacing,
            _resized_shape(shape_hwd, spacing, spec),
            spec.target_spacing_mm,
            spec.shape_hwd,
            strict=True,
        )
    ]
    return VolumePlan(
        spec,
        spacing,
        (axes[0], axes[1], axes[2]),
        value_map(spec, statistics),
        reorientation,
    )


def _resized_shape(
    shape_hwd: tuple[int, ...], spacing_mm: tuple[float, ...], spec: Spec
) -> tuple[int, ...]:
    """Voxels of each axis after resampling."""
    if spec.fit == "stretch":
        return spec.shape_hwd
    lengths = zip(shape_hwd, spacing_mm, spec.target_spacing_mm, strict=True)
    if spec.grid == "origin":
        # In this order a half is rounded as MONAI does, by whose solver s / t is s * (1 / t).
        return tuple(round((n - 1) * (s * (1 / t)) + 1.0) for n, s, t in lengths)
    if spec.fit == "spacing":
        return tuple(max(1, int(n * (s / t))) for n, s, t in lengths)
    # In voxels of the target spacing; the axis that fills the output decides for all.
    wanted = [n * (s / t) for n, s, t in lengths]
    factor = min(n_out / n for n, n_out in zip(wanted, spec.shape_hwd, strict=True))
    return tuple(
        # Nearest, for the axis that decides must not lose a voxel to rounding.
        min(n_out, max(1, round(n * factor)))
        for n, n_out in zip(wanted, spec.shape_hwd, strict=True)
    )


def _plan_axis(n: int, n_resized: int, n_out: int, step: float | None) -> AxisPlan:
    """One axis, in steps of so many source voxels from the first one, or over the same extent."""
    n_valid = min(n_resized, n_out)
    crop_start = max(0, n_resized - n_out) // 2
    pad_before = max(0, n_out - n_resized) // 2
    kept = np.arange(crop_start, crop_start + n_valid, dtype=np.float64)
    if step is not None:
        source, first = step * kept, step * (crop_start - pad_before)
    else:
        # PyTorch's vectorised CPU path: the ratio in float32 and one rounding for
        # ratio * (o + 0.5) - 0.5.  In float64 the product and the difference are exact, so the cast
        # is that rounding.
        position = np.float64(np.float32(n) / np.float32(n_resized)) * (kept + 0.5) - 0.5
        source = np.maximum(position.astype(np.float32), np.float32(0))
        step = n / n_resized
        first = step * (crop_start - pad_before + 0.5) - 0.5
    i0 = np.minimum(source.astype(np.int32), np.int32(n - 1))
    i1 = np.minimum(i0 + 1, n - 1).astype(np.int32)
    w = np.clip(source - i0, 0, 1).astype(np.float32)  # a difference without rounding
    return AxisPlan(n, n_resized, n_out, crop_start, pad_before, step, first, i0, i1, w)
