"""The plan of one volume: resized size, crop, pad, sampling tables, output affine.

Everything an engine needs to know about positions is computed here, once, so that every engine
gathers from the same voxels with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError
from ctgpu.spec import Spec
from ctgpu.volume.raw import Spacing

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
    i0: npt.NDArray[np.int32]
    i1: npt.NDArray[np.int32]
    w: npt.NDArray[np.float32]

    @property
    def n_valid(self) -> int:
        """Output voxels that are sampled, not padded."""
        return len(self.w)


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """Everything an engine must know to make one output volume.

    Attributes
    ----------
    spec : Spec
        Spacing, shape, window and layout of the output.
    spacing_mm : tuple of float
        Source voxel size (H, W, D) that was used.
    axes : tuple of AxisPlan
        For H, W and D.
    """

    spec: Spec
    spacing_mm: Spacing
    axes: tuple[AxisPlan, AxisPlan, AxisPlan]

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Source shape (H, W, D)."""
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

    def output_affine(self, source_affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The affine of the output, (H, W, D) index to the world of `source_affine`.

        The centre of output voxel ``o`` lies at source index
        ``(n / n') * (o + crop_start - pad_before + 0.5) - 0.5`` on each axis.

        Parameters
        ----------
        source_affine : numpy.ndarray
            4 × 4, source voxel index to world, millimetres.

        Returns
        -------
        numpy.ndarray
            4 × 4 float64.
        """
        to_source = np.eye(4)
        for k, axis in enumerate(self.axes):
            ratio = axis.n_source / axis.n_resized
            to_source[k, k] = ratio
            to_source[k, 3] = ratio * (axis.crop_start - axis.pad_before + 0.5) - 0.5
        result: npt.NDArray[np.float64] = np.asarray(source_affine, np.float64) @ to_source
        return result


def plan_volume(shape_hwd: tuple[int, ...], spacing_mm: Any, spec: Spec) -> VolumePlan:
    """Plan one volume.

    Parameters
    ----------
    shape_hwd : tuple of int
        Source shape (H, W, D).
    spacing_mm : sequence of float
        Source voxel size (H, W, D) in millimetres.
    spec : Spec
        Spacing, shape, window and layout of the output.

    Returns
    -------
    VolumePlan

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
    axes = [
        _plan_axis(n, s, target, n_out)
        for n, s, target, n_out in zip(
            shape_hwd, spacing, spec.target_spacing_mm, spec.shape_hwd, strict=True
        )
    ]
    return VolumePlan(spec, (spacing[0], spacing[1], spacing[2]), (axes[0], axes[1], axes[2]))


def _plan_axis(n: int, spacing_mm: float, target_mm: float, n_out: int) -> AxisPlan:
    n_resized = max(1, int(n * (spacing_mm / target_mm)))
    n_valid = min(n_resized, n_out)
    crop_start = max(0, n_resized - n_out) // 2
    pad_before = max(0, n_out - n_resized) // 2
    # PyTorch's vectorised CPU path: the ratio in float32 and one rounding for ratio * (o + 0.5)
    # - 0.5.  In float64 the product and the difference are exact, so the cast is that rounding.
    ratio = np.float64(np.float32(n) / np.float32(n_resized))
    position = ratio * (np.arange(crop_start, crop_start + n_valid, dtype=np.float64) + 0.5) - 0.5
    source = np.maximum(position.astype(np.float32), np.float32(0))
    i0 = np.minimum(source.astype(np.int32), np.int32(n - 1))
    i1 = np.minimum(i0 + 1, n - 1).astype(np.int32)
    w = np.clip(source - i0.astype(np.float32), np.float32(0), np.float32(1))
    return AxisPlan(n, n_resized, n_out, crop_start, pad_before, i0, i1, w.astype(np.float32))
