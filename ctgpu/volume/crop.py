"""Which box of a scan's voxels its volume is made of, as ``Spec.crop`` says.

============== ============================================================
``centre``     all of them
``foreground`` the box of all voxels above ``foreground_hu``
``body``       that of the patient alone: see :mod:`ctgpu.volume.body`
``mask``       that of the labels of its mask, whichever they are
============== ============================================================

``margin_mm`` widens any box, by whole voxels and at least so much, as far as the scan reaches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError, IntensityError
from ctgpu.spec import Spec
from ctgpu.volume.body import STEP_MM, body_box, import_cc3d
from ctgpu.volume.foreground import Box, Values
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.raw import Rescale, Spacing

# What a quotient of decimal numbers may be off, in voxels.
_ROUNDING = 1e-6


def require_croppable(spec: Spec) -> None:
    """Refuse a crop whose library is missing, before anything is read.

    Raises
    ------
    EnvironmentFailure
        With the command that adds it.
    """
    if spec.crop == "body":
        import_cc3d()


def crop_box(
    voxels: npt.NDArray[Any],
    rescale: Rescale,
    spacing_mm: Spacing,
    spec: Spec,
    mask: LabelVolume | None = None,
) -> Box | None:
    """The box of voxels that a volume is made of; None for all of them.

    Parameters
    ----------
    voxels : numpy.ndarray
        All source voxels along the scan's own axes; any strides, byte order and dtype, every one
        finite.
    rescale : Rescale
        How they become HU.
    spacing_mm : tuple of float
        Voxel size along the same axes.
    spec : Spec
        The contract.
    mask : LabelVolume, optional
        Labels of the same voxels.

    Raises
    ------
    IntensityError
        If there is nothing to crop to.
    GeometryError
        If that is a label.
    EnvironmentFailure
        As :func:`require_croppable`.
    """
    if spec.crop == "centre":
        return None
    margin = [math.ceil(spec.margin_mm / s - _ROUNDING) for s in spacing_mm]
    if spec.crop == "mask":
        if mask is None:
            raise ValueError("there is no mask to crop to")
        if (box := mask.box()) is None:
            raise GeometryError(
                "crop is 'mask', and no voxel of the mask has a label; wanted one at least: look "
                "at the mask, or leave the volume out"
            )
        return box.widened(margin, voxels.shape)
    box = None
    values = Values.above(spec.foreground_hu, voxels.dtype, rescale)
    if values is not None:
        is_body = spec.crop == "body"
        box = body_box(voxels, values, spacing_mm) if is_body else values.box_in(voxels)
    if box is None:
        highest = rescale.hu_of(np.array([voxels.min(), voxels.max()])).max()
        wanted = "some voxel" if spec.crop == "foreground" else f"something {STEP_MM:g} mm across"
        raise IntensityError(
            f"crop is {spec.crop!r}, and the highest voxel of the volume is {highest:g} HU; wanted "
            f"{wanted} above {spec.foreground_hu:g} HU: lower foreground_hu (--foreground-hu), or "
            "leave the volume out"
        )
    return box.widened(margin, voxels.shape)
