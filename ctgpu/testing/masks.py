"""Scans with masks on disk, laid out as data sets have them, and the descriptions of these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from ctgpu.data_sets.description import Description
from ctgpu.data_sets.writing import to_toml
from ctgpu.volume.raw import Spacing

#: Of the masks that :func:`labels_of` makes.
LABELS: Mapping[str, int] = {"body": 1, "lung": 2, "bone": 7}


def labels_of(hu: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A mask of HU with the numbers of :data:`LABELS`: what is dense, what is airy, the rest."""
    labels = np.zeros_like(hu, np.uint8)
    labels[hu > -300] = LABELS["body"]
    labels[(hu > -900) & (hu <= -600)] = LABELS["lung"]
    labels[hu > 250] = LABELS["bone"]
    return labels


def lay_out_with_masks(
    folder: Path,
    scans: Mapping[str, npt.NDArray[Any]],
    spacing_mm: Spacing,
    *,
    binary: bool = False,
    affine: npt.NDArray[np.float64] | None = None,
) -> Path:
    """Write scans and their masks, and a description of them.

    Parameters
    ----------
    folder : Path
        Where to; made if it is not there.
    scans : mapping of str to numpy.ndarray
        HU by study id, shape (H, W, D).
    spacing_mm : tuple of float
        Voxel size (H, W, D).
    binary : bool
        A file for each label, in a folder for each scan, instead of one file with numbers.
    affine : numpy.ndarray, optional
        4 × 4 of every scan; by default of the spacing alone.

    Returns
    -------
    Path
        The description, beside the folder.
    """
    affine = np.diag([*spacing_mm, 1.0]) if affine is None else affine
    for name, hu in scans.items():
        labels = labels_of(hu)
        if not binary:
            write_nifti(folder / "images" / f"{name}.nii.gz", hu, affine)
            write_nifti(folder / "labels" / f"{name}.nii.gz", labels, affine)
            continue
        write_nifti(folder / name / "ct.nii.gz", hu, affine)
        for label, number in LABELS.items():
            inside = (labels == number).astype(np.uint8)
            write_nifti(folder / name / "segmentations" / f"{label}.nii.gz", inside, affine)
    files = "{folder}/segmentations/{label}.nii.gz" if binary else "labels/{name}.nii.gz"
    content = {
        "name": "Scans with masks",
        "volumes": {
            "paths": ["{key}/ct.nii.gz"] if binary else ["images/{key}.nii.gz"],
            "hu": ["**"],
        },
        "masks": {"files": files, "labels": dict(LABELS)},
    }
    path = folder.with_suffix(".toml")
    path.write_text(to_toml(Description.of(content)), "utf-8")
    return path


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Path:
    """A NIfTI file, in a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make: Any = nibabel.Nifti1Image
    nibabel.save(make(voxels, affine), path)
    return path
