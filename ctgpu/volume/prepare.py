"""A raw volume with everything decided that an engine needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError
from ctgpu.spec import STORED, Intensity, Spec
from ctgpu.volume.crop import crop_box
from ctgpu.volume.foreground import Box
from ctgpu.volume.geometry import VolumePlan, plan_volume, require_geometry
from ctgpu.volume.intensity import HuGuard, check_finite, check_hu, resolve_rescale
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.orientation import (
    AS_STORED,
    DEFAULT_RULES,
    AxisRules,
    Orientation,
    Reorientation,
    orientation_of,
)
from ctgpu.volume.raw import RawVolume, Rescale, Spacing
from ctgpu.volume.ref import Provenance
from ctgpu.volume.statistics import Statistics, statistics_of


@dataclass(slots=True)
class PreparedVolume:
    """A raw volume with everything decided that an engine needs.

    Attributes
    ----------
    raw : RawVolume
        The voxels.
    rescale : Rescale
        How they become HU.
    plan : VolumePlan
        Where every output voxel comes from.
    spacing_source : str
        ``"csv"``, ``"header"`` or ``"argument"``.
    orientation : Orientation or None
        How the voxels are stored; None where the file does not state it.
    hu_finding : str or None
        What the voxels look like instead of HU, where they were taken all the same.
    statistics : Statistics or None
        Of all voxels, where the output depends on them.
    box : Box or None
        The voxels that the volume is made of, as if there were no others; None for all.
    mask : LabelVolume or None
        Labels of the voxels of `raw`.
    """

    raw: RawVolume
    rescale: Rescale
    plan: VolumePlan
    spacing_source: str
    orientation: Orientation | None = None
    hu_finding: str | None = None
    statistics: Statistics | None = None
    box: Box | None = None
    mask: LabelVolume | None = None

    def release(self) -> None:
        """Give the memory of voxels and mask back."""
        self.raw.release()
        if self.mask is not None:
            self.mask.release()

    @property
    def voxels(self) -> npt.NDArray[Any]:
        """The voxels that the volume is made of, along the axes of the output: a view."""
        voxels = self.raw.voxels if self.box is None else self.box.of(self.raw.voxels)
        return self.plan.reorientation.view(voxels)

    @property
    def source_affine(self) -> npt.NDArray[np.float64]:
        """The file's affine, or one made of the spacing alone where it has none."""
        if self.raw.affine is not None:
            return self.raw.affine
        # Without an affine nothing was turned, so that these are the stored axes.
        return np.diag([*self.plan.spacing_mm, 1.0])

    @property
    def output_affine(self) -> npt.NDArray[np.float64]:
        """The affine of the output, (H, W, D) index to the world of :attr:`source_affine`."""
        affine = self.source_affine
        return self.plan.output_affine(affine if self.box is None else self.box.affine_of(affine))


def prepare_volume(
    raw: RawVolume,
    *,
    spec: Spec,
    spacing_mm: Spacing,
    spacing_source: str,
    intensity: Intensity,
    provenance: Provenance = "unknown",
    csv_pair: tuple[float, float] | None = None,
    rules: AxisRules = DEFAULT_RULES,
    hu_guard: HuGuard | None = "refuse",
    mask: LabelVolume | None = None,
) -> PreparedVolume:
    """Decide intensity and geometry of one volume, and refuse what cannot be right.

    Statistics and the guard look at all voxels, also at those outside of the box that is cropped
    to.

    Parameters
    ----------
    raw : RawVolume
        The volume.
    spec : Spec
        Spacing, shape, window and layout of the output.
    spacing_mm : tuple of float
        Source voxel size (H, W, D).
    spacing_source : str
        Where that came from; recorded.
    intensity, provenance, csv_pair
        As :func:`ctgpu.volume.intensity.resolve_rescale` takes them.
    rules : AxisRules
        Which orientations are taken.
    hu_guard : {"refuse", "warn"} or None
        As :func:`ctgpu.volume.intensity.check_hu` takes it; None for voxels that are not meant to
        be HU, as those of shards that were preprocessed already.
    mask : LabelVolume, optional
        Labels of the same voxels; a crop may be about them.

    Raises
    ------
    GeometryError, IntensityError
    """
    rescale = resolve_rescale(raw, intensity=intensity, provenance=provenance, csv_pair=csv_pair)
    if spacing_source == "header" and raw.spacing_contradiction is not None:
        raise GeometryError(raw.spacing_contradiction)
    require_geometry(raw.voxels.shape, spacing_mm)
    rules.assume(raw, spacing_mm)
    orientation = orientation_of(raw)
    rules.check(raw, orientation, spec.orientation)
    turned = (
        Reorientation.between(orientation.codes, spec.orientation)
        if orientation is not None and spec.orientation != STORED
        else AS_STORED
    )
    finding = None
    if hu_guard is None:
        check_finite(raw.voxels)
    else:
        finding = check_hu(raw.voxels, rescale, guard=hu_guard)
    statistics = statistics_of(raw.voxels, rescale, spec) if spec.needs_statistics else None
    box = crop_box(raw.voxels, rescale, spacing_mm, spec, mask)
    made_of = raw.voxels if box is None else box.of(raw.voxels)
    plan = plan_volume(
        turned.view(made_of).shape,
        turned.along(spacing_mm),
        spec,
        statistics=statistics,
        reorientation=turned,
    )
    return PreparedVolume(
        raw, rescale, plan, spacing_source, orientation, finding, statistics, box, mask
    )
