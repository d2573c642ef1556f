"""One sample: from raw voxels to what the engine takes, and to the members of a shard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError
from ctgpu.geometry import VolumePlan, plan_volume
from ctgpu.intensity import HuGuard, check_finite, check_hu, resolve_rescale
from ctgpu.orientation import DEFAULT_RULES, AxisRules, Orientation, orientation_of
from ctgpu.shards.record import SampleEntry, checksum
from ctgpu.sources.base import Provenance
from ctgpu.sources.tables import SampleRow, report_text
from ctgpu.spec import Intensity, Spec
from ctgpu.volume import RawVolume, Rescale, Spacing


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
    """

    raw: RawVolume
    rescale: Rescale
    plan: VolumePlan
    spacing_source: str
    orientation: Orientation | None = None
    hu_finding: str | None = None

    @property
    def source_affine(self) -> npt.NDArray[np.float64]:
        """The file's affine, or one made of the spacing alone where it has none."""
        if self.raw.affine is not None:
            return self.raw.affine
        return np.diag([*self.plan.spacing_mm, 1.0])


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
) -> PreparedVolume:
    """Decide intensity and geometry of one volume, and refuse what cannot be right.

    Parameters
    ----------
    raw : RawVolume
        The volume.
    spec : Spec
        What the output shall be.
    spacing_mm : tuple of float
        Source voxel size (H, W, D).
    spacing_source : str
        Where that came from; recorded.
    intensity, provenance, csv_pair
        As :func:`ctgpu.intensity.resolve_rescale` takes them.
    rules : AxisRules
        Which orientations are taken.
    hu_guard : {"refuse", "warn"} or None
        As :func:`ctgpu.intensity.check_hu` takes it; None for voxels that are not meant to be HU,
        as those of shards that were preprocessed already.

    Raises
    ------
    GeometryError, IntensityError
    """
    rescale = resolve_rescale(raw, intensity=intensity, provenance=provenance, csv_pair=csv_pair)
    if spacing_source == "header" and raw.spacing_contradiction is not None:
        raise GeometryError(raw.spacing_contradiction)
    orientation = orientation_of(raw)
    rules.check(raw, orientation)
    plan = plan_volume(raw.voxels.shape, spacing_mm, spec)
    finding = None
    if hu_guard is None:
        check_finite(raw.voxels)
    else:
        finding = check_hu(raw.voxels, rescale, guard=hu_guard)
    return PreparedVolume(raw, rescale, plan, spacing_source, orientation, finding)


def sample_metadata(
    prepared: PreparedVolume,
    *,
    study_id: str,
    source_path: str,
    source_revision: str,
    report: Mapping[str, str],
    fingerprint: str,
    payload_xxh3_128: str,
    stated_rescale: tuple[float, float] | None = None,
    read_xxh3_128: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The ``.json`` member: enough to map a prediction back onto the scan.

    Nothing in it depends on the run, so shards are the same bytes whoever made them.

    Parameters
    ----------
    prepared : PreparedVolume
        What was decided about the volume.
    study_id, source_path, source_revision, report, fingerprint, payload_xxh3_128
        Recorded as they are.
    stated_rescale : tuple of float, optional
        Slope and intercept that its tables state, used or not.
    read_xxh3_128 : mapping, optional
        Checksums of the members that a sample of a tar was read from, the volume's as ``volume``.
    """
    plan, raw = prepared.plan, prepared.raw
    spec = plan.spec
    shape = list(spec.stored_shape)
    affine, orientation = prepared.source_affine, prepared.orientation
    return {
        "study_id": study_id,
        "preprocessed": True,
        "shape": shape,
        "dtype": "float16",
        "volume_shape": shape,
        "volume_dtype": "float16",
        "layout": spec.layout,
        "spacing_mm": [
            axis.n_source / axis.n_resized * spacing
            for axis, spacing in zip(plan.axes, plan.spacing_mm, strict=True)
        ],
        "affine": plan.output_affine(affine).tolist(),
        "resized_shape": list(plan.resized_shape),
        "crop_start": list(plan.crop_start),
        "pad_before": list(plan.pad_before),
        "source": {
            "path": source_path,
            "revision": source_revision,
            "shape": list(raw.voxels.shape),
            "dtype": raw.voxels.dtype.newbyteorder("=").name,
            "spacing_mm": list(plan.spacing_mm),
            "spacing_source": prepared.spacing_source,
            "affine": affine.tolist(),
            "affine_source": "spacing" if raw.affine is None else raw.affine_source,
            "orientation": orientation and orientation.codes,
            "tilt_degrees": orientation and orientation.tilt_degrees,
            "shear_degrees": orientation and orientation.shear_degrees,
            "intensity": {
                "source": prepared.rescale.source,
                "slope": prepared.rescale.slope,
                "intercept": prepared.rescale.intercept,
                **_if_known("finding", prepared.hu_finding),
            },
            **_if_known("stated_rescale", _finite(stated_rescale)),
            **_if_known("members", read_xxh3_128),
        },
        "report": dict(report),
        "fingerprint": fingerprint,
        "xxh3_128": payload_xxh3_128,
    }


def label_bytes(row: SampleRow) -> bytes:
    """The ``.cls`` member: little-endian float32, one for each class."""
    return row.labels.astype("<f4").tobytes()


def report_bytes(row: SampleRow) -> bytes:
    """The ``.txt`` member."""
    return report_text(row.report).encode()


def says_the_same(entry: SampleEntry, row: SampleRow) -> bool:
    """Whether the labels and the report of a stored sample are those of a row."""
    stored = entry.members
    return stored["cls"].xxh3_128 == checksum(label_bytes(row)) and (
        stored["txt"].xxh3_128 == checksum(report_bytes(row))
    )


def relabelled_metadata(
    metadata: Mapping[str, Any], row: SampleRow, *, report: bool, stated_rescale: bool
) -> dict[str, Any]:
    """A ``.json`` member with what tables say now; what describes the voxels stays.

    Parameters
    ----------
    metadata : mapping
        As :func:`sample_metadata` made it.
    row : SampleRow
        What the tables say.
    report, stated_rescale : bool
        Take these from the row.
    """
    source = dict(metadata["source"])
    # What earlier versions did not record is not worth a rewrite of the data set.
    if stated_rescale and source.pop("stated_rescale", None) is not None:
        source |= _if_known("stated_rescale", _finite(row.rescale_pair))
    if row.read_xxh3_128 is not None and "members" in source:
        source["members"] = source["members"] | row.read_xxh3_128
    return {
        **metadata,
        "source": source,
        "report": dict(row.report) if report else metadata["report"],
    }


def _if_known(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _finite(pair: tuple[float, float] | None) -> list[float] | None:
    return list(pair) if pair is not None and all(map(math.isfinite, pair)) else None


def to_json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON whose bytes depend on the value alone."""
    return json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
    ).encode()
