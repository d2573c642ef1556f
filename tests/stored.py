"""One chest, stored in any orientation, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, ornt_transform

from ctgpu.testing.ctrate import chest_phantom
from support.phantoms import SPACING_MM


def chest_as(codes: str, shape: tuple[int, int, int] = (72, 80, 60)) -> nibabel.Nifti1Image:
    """The phantom of `shape` (left, back, head), reoriented by nibabel to these axis codes."""
    voxels = chest_phantom(shape, SPACING_MM, 1)
    image = nibabel.Nifti1Image(voxels, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1]))
    turn = ornt_transform(axcodes2ornt(tuple("LPS")), axcodes2ornt(tuple(codes)))
    return image.as_reoriented(turn)


def save(path: Path, image: nibabel.Nifti1Image, **fields: Any) -> Path:
    """Write it, with these header fields put in as they stand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytearray(image.to_bytes())
    header = type(image.header)(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(bytes(data))
    return path


def rotated(degrees: float, axis: int = 0) -> npt.NDArray[np.float64]:
    """4 × 4, a turn about a world axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    i, j = (k for k in range(3) if k != axis)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix
