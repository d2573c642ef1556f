"""The members beside a volume in its shard: labels, report and metadata, as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ctgpu.shards.record import SampleEntry, checksum
from ctgpu.sources.tables import SampleRow
from ctgpu.spec import STORED
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.prepare import PreparedVolume


def sample_metadata(
    prepared: PreparedVolume,
    *,
    study_id: str,
    source_path: str,
    source_revision: str,
    report: Mapping[str, str],
    carried: Mapping[str, str] | None = None,
    fingerprint: str,
    payload_xxh3_128: str,
    stated_rescale: tuple[float, float] | None = None,
    read_xxh3_128: Mapping[str, str] | None = None,
    mask_xxh3_128: str | None = None,
) -> dict[str, Any]:
    """The ``.json`` member: enough to map a prediction back onto the scan.

    Nothing in it depends on the run, so shards are the same bytes on every machine.

    Parameters
    ----------
    prepared : PreparedVolume
        What was decided about the volume.
    study_id, source_path, source_revision, report, fingerprint, payload_xxh3_128
        Recorded as they are.
    carried : mapping, optional
        Cells of the tables that are to go along, by column.
    stated_rescale : tuple of float, optional
        Slope and intercept that its tables state, used or not.
    read_xxh3_128 : mapping, optional
        Checksums of the members that a sample of a tar was read from, the volume's as ``volume``.
    mask_xxh3_128 : str, optional
        Checksum of the stored mask.
    """
    plan, raw = prepared.plan, prepared.raw
    spec, turned = plan.spec, plan.reorientation
    shape = list(spec.stored_shape)
    affine, orientation = prepared.source_affine, prepared.orientation
    spacing_mm = turned.stored(plan.spacing_mm)
    return {
        "study_id": study_id,
        "preprocessed": True,
        "shape": shape,
        "dtype": spec.dtype,
        "volume_shape": shape,
        "volume_dtype": spec.dtype,
        "layout": spec.layout,
        **_if_known("orientation", None if spec.orientation == STORED else spec.orientation),
        **_if_known("normalisation", _normalisation(prepared)),
        "spacing_mm": list(plan.output_spacing_mm),
        "affine": prepared.output_affine.tolist(),
        "resized_shape": list(plan.resized_shape),
        "crop_start": list(plan.crop_start),
        "pad_before": list(plan.pad_before),
        "source": {
            "path": source_path,
            "revision": source_revision,
            "shape": list(raw.voxels.shape),
            "dtype": raw.voxels.dtype.newbyteorder("=").name,
            "spacing_mm": list(spacing_mm),
            "spacing_source": prepared.spacing_source,
            **_if_known("crop_box", prepared.box and prepared.box.ends),
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
        **_if_known("columns", carried or None),
        "fingerprint": fingerprint,
        "xxh3_128": payload_xxh3_128,
        **_if_known("mask", prepared.mask and _mask(prepared.mask, mask_xxh3_128)),
    }


def _mask(mask: LabelVolume, xxh3_128: str | None) -> dict[str, Any]:
    return {
        "dtype": mask.voxels.dtype.name,
        "files": mask.files,
        "overlap_voxels": mask.overlap_voxels,
        "xxh3_128": xxh3_128,
    }


def _normalisation(prepared: PreparedVolume) -> dict[str, float] | None:
    """What a volume was normalised by, where that is its own; ``hu * scale + offset`` is stored."""
    if prepared.statistics is None:
        return None
    values = prepared.plan.values
    return {
        **prepared.statistics.to_dict(),
        "scale": values.scale,
        "offset": values.offset,
        "pad_value": values.pad,
    }


def label_bytes(row: SampleRow) -> bytes:
    """The ``.cls`` member: little-endian float32, one for each class."""
    return row.labels.astype("<f4").tobytes()


def report_bytes(row: SampleRow) -> bytes:
    """The ``.txt`` member."""
    return row.text.encode()


def says_the_same(entry: SampleEntry, row: SampleRow) -> bool:
    """Whether the labels and the report of a stored sample are those of a row."""
    stored = entry.members
    return stored["cls"].xxh3_128 == checksum(label_bytes(row)) and (
        stored["txt"].xxh3_128 == checksum(report_bytes(row))
    )


def relabelled_metadata(
    metadata: Mapping[str, Any],
    row: SampleRow,
    *,
    report: bool,
    stated_rescale: bool,
    carried: bool,
) -> dict[str, Any]:
    """A ``.json`` member with what tables say now; what describes the voxels stays.

    Parameters
    ----------
    metadata : mapping
        As :func:`sample_metadata` made it.
    row : SampleRow
        What the tables say.
    report, stated_rescale, carried : bool
        Take these from the row.
    """
    source = dict(metadata["source"])
    # What earlier versions did not record is not worth a rewrite of the data set.
    if stated_rescale and source.pop("stated_rescale", None) is not None:
        source |= _if_known("stated_rescale", _finite(row.rescale_pair))
    if row.read_xxh3_128 is not None and "members" in source:
        source["members"] = source["members"] | row.read_xxh3_128
    return {
        **{name: value for name, value in metadata.items() if name != "columns" or not carried},
        "source": source,
        "report": dict(row.report) if report else metadata["report"],
        **_if_known("columns", row.carried or None),
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
