"""Masks on the grid of the output: each voxel takes the label of the nearest one of the source.

Positions are those of the volume's own plan.  Grid ``extent`` is PyTorch's ``nearest-exact``, grid
``origin`` MONAI's ``Spacing(mode="nearest")``: the nearest voxel, and halfway between two the one
whose index is even.  (MONAI means that too; there the rounding of its own coordinates decides.)
Padding is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.spec.contract import Grid
from ctgpu.volume.geometry import AxisPlan
from ctgpu.volume.prepare import PreparedVolume


def nearest_indices(axis: AxisPlan, grid: Grid) -> npt.NDArray[np.int32]:
    """The source voxel of each output voxel that is not padding: int32, shape (n_valid,)."""
    # As the position was before the plan split it, but for a difference below float32's rounding,
    # so that what is halfway on paper is so here.
    if grid == "origin":
        index = np.rint(axis.i0 + axis.w.astype(np.float64))
    else:
        # In float32 as PyTorch has it, whose sum rounds up what is just below a half.
        index = np.floor(axis.i0.astype(np.float32) + axis.w + np.float32(0.5))
    return np.minimum(index, axis.n_source - 1).astype(np.int32)


def gather_mask(
    prepared: PreparedVolume, out: npt.NDArray[Any] | None = None, *, variant: str = ""
) -> npt.NDArray[Any]:
    """The mask of a prepared volume as it is stored beside it.

    Parameters
    ----------
    prepared : PreparedVolume
        With a mask.
    out : numpy.ndarray, optional
        C-contiguous, of ``spec.stored_shape`` and the mask's dtype, to write into.
    variant : str
        Of the compiled code, for tests; by default the best that this CPU can run.

    Returns
    -------
    numpy.ndarray
        `out`, or fresh memory.
    """
    if prepared.mask is None:
        raise ValueError("the volume was prepared without a mask")
    plan, spec = prepared.plan, prepared.plan.spec
    labels = prepared.mask.voxels
    labels = plan.reorientation.view(labels if prepared.box is None else prepared.box.of(labels))
    if out is None:
        out = np.empty(spec.stored_shape, labels.dtype)
    order = (0, 1, 2) if spec.layout == "HWD" else (2, 0, 1)
    labels, axes = labels.transpose(order), [plan.axes[k] for k in order]
    indices = [nearest_indices(axis, spec.grid) for axis in axes]
    try:
        from ctgpu._native import gather_labels
    except ImportError:  # a pure package
        out.fill(0)
        placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in axes)
        out[placed] = labels[np.ix_(*indices)]
    else:
        gather_labels(labels, indices, [axis.pad_before for axis in axes], out, variant)
    return out
