"""Geometries for the tests of what goes back onto a scan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ctgpu.spec import Spec
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import RawVolume
from stored import rotated

Floats = npt.NDArray[np.float64]

SHAPE = (19, 23, 14)
SPACING_MM = (1.5, 1.1, 2.3)
#: Askew, and sheared as the slices of a tilted gantry are.
ASKEW = rotated(11) @ rotated(-7, 2) @ np.diag([-1.5, -1.1, 2.3, 1])
ASKEW[:3, 3] = (40, -70, 900)
SHEARED = ASKEW.copy()
SHEARED[:3, 2] += (0.1, 0.5, 0)
SMALL = Spec(target_spacing_mm=(2.0, 1.7, 1.9), shape_hwd=(18, 12, 20))


def geometry_of(
    spec: Spec,
    affine: Floats | None = ASKEW,
    shape: tuple[int, ...] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    rules: AxisRules = AxisRules("stored"),  # noqa: B008
) -> Geometry:
    """Where the output of a scan of zeros lies on it."""
    raw = RawVolume(np.zeros(shape, np.int16), spacing_mm=spacing_mm, affine=affine)
    prepared = prepare_volume(
        raw,
        spec=spec,
        spacing_mm=spacing_mm,
        spacing_source="header",
        intensity="hu",
        rules=rules,
        hu_guard=None,
    )
    return Geometry.of(prepared)
