"""CT-RATE's tables in a folder, with rows that a test says."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from ctgpu.data_sets import built_in
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.tables import Tables
from ctgpu.testing.ctrate import LABEL_NAMES

METADATA = (
    "VolumeName,Manufacturer,PatientSex,PatientAge,RescaleSlope,RescaleIntercept,"
    "XYSpacing,ZSpacing,Rows,Columns,NumberofSlices\n"
)
LABELS = "VolumeName," + ",".join(LABEL_NAMES) + "\n"
REPORTS = "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"
ROW = 'valid_1_a_1.nii.gz,Zürich,F,054Y,1,-1024,"[0.34, 0.35]",1.5,512,512,300'


def load(
    root: Path, split: str = "valid", *, carry: tuple[str, ...] = (), **files: str | bytes
) -> Tables:
    """Tables of CT-RATE, with these contents."""
    names = {
        "metadata": "dataset/metadata/validation_metadata.csv",
        "labels": "dataset/multi_abnormality_labels/valid_predicted_labels.csv",
        "reports": "dataset/radiology_text_reports/validation_reports.csv",
        "no_chest": "dataset/metadata/no_chest_valid.txt",
    }
    for table, content in files.items():
        path = root / names[table]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    metadata, *others = built_in().tables
    tables = (replace(metadata, carry=carry), *others)
    return Tables.load(FolderSource(root, data_set=replace(built_in(), tables=tables)), split)


def metadata(row: str) -> str:
    """A CSV of one row."""
    return METADATA + row + "\n"


def label_rows(*cells: str) -> str:
    """A CSV of labels in which each row has one of `cells` for the second class, and else zeros."""
    rest = ",0" * (len(LABEL_NAMES) - 2)
    return LABELS + "".join(f"v{n}.nii.gz,0,{cell}{rest}\n" for n, cell in enumerate(cells))
