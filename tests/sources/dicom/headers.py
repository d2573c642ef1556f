"""Headers and files of series, made without a file of DICOM."""

from __future__ import annotations

from typing import Any

from ctgpu.decode.dicom_header import SliceHeader
from ctgpu.sources.dicom.private import Series, SeriesFile

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def header(series_uid: str = "1.2", **changes: Any) -> SliceHeader:
    """A slice of a CT."""
    facts: dict[str, Any] = {
        "series_uid": series_uid,
        "study_uid": "1.1",
        "sop_uid": "1.2.3",
        "modality": "CT",
        "sop_class": CT_IMAGE,
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "rows": 4,
        "columns": 3,
        "frames": 1,
        "positions": ((0.0, 0.0, 0.0),),
        "orientations": ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
        "pixel_spacings_mm": ((1.0, 1.0),),
        "slopes": (1.0,),
        "intercepts": (-1024.0,),
        "bits_allocated": 16,
        "bits_stored": 16,
        "high_bit": 15,
        "pixel_representation": 0,
        "samples_per_pixel": 1,
        "photometric": "MONOCHROME2",
        "acquisition_number": 1,
        "instance_number": 1,
        "pixel_offset": 500,
        "pixel_bytes": 24,
    }
    return SliceHeader(**facts | changes)


def file(path: str, series_uid: str = "1.2", size_bytes: int = 10, **changes: Any) -> SeriesFile:
    """A slice, as it was looked into."""
    return SeriesFile(path, size_bytes, 7, header(series_uid, **changes))


def series(*paths: str, series_uid: str = "1.2", study_uid: str = "1.1") -> Series:
    """One that consists of some files."""
    files = tuple(file(path, series_uid, study_uid=study_uid) for path in paths)
    return Series(series_uid, study_uid, files)
