"""What a volume's file says and what the tables say about it, brought together."""

from __future__ import annotations

from contextlib import nullcontext

from ctgpu.sources.tables import SampleRow
from ctgpu.spec import Spec
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume
from ctgpu.volume.ref import SampleRef


def prepare_sample(
    raw: RawVolume,
    row: SampleRow,
    ref: SampleRef,
    *,
    spec: Spec,
    rules: AxisRules,
    hu_guard: HuGuard | None,
    mask: LabelVolume | None = None,
) -> PreparedVolume:
    """Decide intensity and geometry of one sample, and refuse what cannot be right.

    Parameters
    ----------
    raw : RawVolume
        What was decoded; owned by the result, or released on an error.
    row : SampleRow
        What the tables say about it.
    ref : SampleRef
        Where it is from.
    spec : Spec
        Spacing, shape, window and layout of the output.
    rules, hu_guard
        As :func:`ctgpu.volume.prepare.prepare_volume` takes them.
    mask : LabelVolume, optional
        Labels of its voxels; owned by the result, or released on an error.

    Raises
    ------
    TableError
        If neither the tables nor the file state a spacing.
    GeometryError, IntensityError
    """
    with raw.released_on_error(), mask.released_on_error() if mask else nullcontext():
        spacing_mm, spacing_source = row.choose_spacing_mm(raw.spacing_mm)
        return prepare_volume(
            raw,
            spec=spec,
            spacing_mm=spacing_mm,
            spacing_source=spacing_source,
            intensity=spec.intensity,
            provenance=ref.provenance,
            csv_pair=row.rescale_pair,
            rules=rules,
            hu_guard=hu_guard,
            mask=mask,
        )
