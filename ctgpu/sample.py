"""One sample: from raw voxels to what the engine takes, and to the members of a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.geometry import VolumePlan, plan_volume
from ctgpu.intensity import check_hu, resolve_rescale
from ctgpu.sources.base import Provenance
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
    """

    raw: RawVolume
    rescale: Rescale
    plan: VolumePlan
    spacing_source: str

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

    Raises
    ------
    GeometryError, IntensityError
    """
    rescale = resolve_rescale(raw, intensity=intensity, provenance=provenance, csv_pair=csv_pair)
    plan = plan_volume(raw.voxels.shape, spacing_mm, spec)
    check_hu(raw.voxels, rescale)
    return PreparedVolume(raw, rescale, plan, spacing_source)


def sample_metadata(
    prepared: PreparedVolume,
    *,
    study_id: str,
    source_path: str,
    source_revision: str,
    report: Mapping[str, str],
    fingerprint: str,
    payload_xxh3_128: str,
) -> dict[str, Any]:
    """The ``.json`` member: enough to map a prediction back onto the scan.

    Nothing in it depends on the run, so shards are the same bytes whoever made them.
    """
    plan, raw = prepared.plan, prepared.raw
    spec = plan.spec
    shape = list(spec.stored_shape)
    affine = prepared.source_affine
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
            "affine_source": "spacing" if raw.affine is None else "header",
            "intensity": {
                "source": prepared.rescale.source,
                "slope": prepared.rescale.slope,
                "intercept": prepared.rescale.intercept,
            },
        },
        "report": dict(report),
        "fingerprint": fingerprint,
        "xxh3_128": payload_xxh3_128,
    }


def to_json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON whose bytes depend on the value alone."""
    return json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
    ).encode()
