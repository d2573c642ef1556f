"""A decoded volume, before any arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Buffer

Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Rescale:
    """``hu = slope * voxel + intercept`` in float32, and where the pair came from.

    Attributes
    ----------
    slope, intercept : float
        1 and 0 where the voxels already are HU.
    source : str
        Recorded per sample: ``"hu"``, ``"header"``, ``"metadata"`` or ``"csv"``.
    """

    slope: float = 1.0
    intercept: float = 0.0
    source: str = "hu"

    @property
    def is_identity(self) -> bool:
        """Whether the voxels are HU as they stand."""
        return self.slope == 1.0 and self.intercept == 0.0

    def hu_of(self, voxels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """HU of voxels, which are rounded to float32 first, as engines take them; then exact."""
        hu = voxels.astype(np.float32).astype(np.float64)
        if not self.is_identity:
            hu *= float(np.float32(self.slope))
            hu += float(np.float32(self.intercept))
        return hu


@dataclass(slots=True)
class RawVolume:
    """Voxels as a file holds them, in place, with what the file says about them.

    Attributes
    ----------
    voxels : numpy.ndarray
        Shape (H, W, D), any integer or floating dtype, any strides, either byte order; a view
        into `buffer`, not a copy.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D) by the file's own header, unchecked; None where it has none.
    affine : numpy.ndarray or None
        4 × 4 float64, voxel index to RAS+ millimetres; None where the file has none.
    affine_source : str
        ``"header"`` where the file states the affine, ``"spacing"`` where it was made of the voxel
        size alone, so that its directions mean nothing.
    spacing_contradiction, orientation_contradiction : str or None
        A sentence where the file states two voxel sizes, or two orientations, that differ; then
        `spacing_mm` and `affine` are one of each.
    header_rescale : Rescale
        The file's own scaling, part of decoding: NIfTI ``scl_slope``/``scl_inter``, or the slope
        and intercept of an ``.npz``'s metadata or of a DICOM series.
    metadata : dict
        Further facts the file states (an ``.npz``'s metadata), JSON-ready.
    format : str
        ``"nifti"``, ``"npz"``, ``"npy"``, ``"metaimage"``, ``"nrrd"``, ``"dicom"`` or ``"raw"``.
    buffer : Buffer or None
        Pooled memory that holds the voxels; released by :meth:`release`.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing | None = None
    affine: npt.NDArray[np.float64] | None = None
    affine_source: str = "header"
    spacing_contradiction: str | None = None
    orientation_contradiction: str | None = None
    header_rescale: Rescale = field(default_factory=Rescale)
    metadata: dict[str, Any] = field(default_factory=dict)
    format: str = "raw"
    buffer: Buffer | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it is an array of its own, and no image of a medical format."""
        return self.format in ("npz", "npy")

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that the volume holds."""
        return self.voxels.nbytes if self.buffer is None else self.buffer.size_bytes

    def released_on_error(self) -> AbstractContextManager[None]:
        """As :meth:`ctgpu.buffers.Buffer.released_on_error`."""
        return nullcontext() if self.buffer is None else self.buffer.released_on_error()

    def release(self) -> None:
        """Give the memory back; the voxels must not be used afterwards."""
        self.voxels = np.empty((0, 0, 0), self.voxels.dtype)
        if self.buffer is not None:
            self.buffer.release()
            self.buffer = None
