"""Marked volumes as SimpleITK writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
SPACING_MM = (0.7, 0.8, 1.5)
ORIGIN_LPS = (-10.0, -20.0, 30.0)
_TILT = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]])
#: Columns: where the axes of the array lead, in LPS.
_MATRICES = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1, 1]),
    "SLP": np.eye(3)[:, [2, 0, 1]],
    "tilted": _TILT,
}
DIRECTIONS = list(_MATRICES)
_TO_RAS = np.diag([-1.0, -1, 1])


def _affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = _TO_RAS @ matrix @ np.diag(SPACING_MM)
    affine[:3, 3] = _TO_RAS @ ORIGIN_LPS
    return affine


#: (H, W, D) index to RAS+ millimetres.
ITK_AFFINES = {name: _affine(matrix) for name, matrix in _MATRICES.items()}


def marked(shape_hwd: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Every voxel another number, as far as the type goes."""
    values = np.arange(np.prod(shape_hwd)).reshape(shape_hwd)
    return (values % 100 - (50 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)


def image_of(voxels: np.ndarray, direction: str = "LPS") -> Any:
    """A SimpleITK image of an (H, W, D) array."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(SPACING_MM)
    image.SetOrigin(ORIGIN_LPS)
    image.SetDirection(_MATRICES[direction].ravel().tolist())
    return image


def write_itk(
    path: Path, voxels: np.ndarray, direction: str = "LPS", *, compress: bool = False
) -> Path:
    """Write an (H, W, D) array in the format of the path's suffix."""
    SimpleITK.WriteImage(image_of(voxels, direction), str(path), useCompression=compress)
    return path


def copy_by_itk(source: Path, path: Path, *, compress: bool = False) -> Path:
    """Write a volume again in the format of the path's suffix."""
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(path), useCompression=compress)
    return path
