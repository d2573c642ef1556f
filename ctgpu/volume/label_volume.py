"""The mask of one scan as a label volume: files merged into one, and held against the scan.

A mask lies as its volume does: the same number of voxels along the same axes and, where both files
state an affine, the same place in the patient, within :data:`TOLERANCE_MM` at every corner.
"""

from __future__ import annotations

import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import GeometryError
from ctgpu.volume.foreground import Box, Values
from ctgpu.volume.raw import RawVolume

#: What rounding of float32, and of NIfTI's quaternions, may move a corner by.
TOLERANCE_MM = 0.01

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class LabelVolume:
    """Labels of every voxel of a scan; 0 is the background.

    Attributes
    ----------
    voxels : numpy.ndarray
        uint8 or uint16, along the axes of the file.
    files : int
        From how many files they are.
    overlap_voxels : int
        How often a label took a voxel from one of another file.
    buffer : Buffer or None
        Pooled memory that holds the voxels; released by :meth:`release`.
    """

    voxels: _Array
    files: int = 0
    overlap_voxels: int = 0
    buffer: Buffer | None = None

    @classmethod
    def empty(cls, voxels: _Array, dtype: npt.DTypeLike, pool: BufferPool) -> LabelVolume:
        """Background everywhere, of the shape of `voxels` and in their order in memory."""
        order = _by_stride(voxels)
        dtype = np.dtype(dtype)
        buffer = pool.acquire(math.prod(voxels.shape) * dtype.itemsize)
        with buffer.released_on_error():
            labels = buffer.array(tuple(voxels.shape[k] for k in order), dtype)
            labels.fill(0)
            return cls(labels.transpose(np.argsort(order)), buffer=buffer)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that it holds."""
        return self.voxels.nbytes if self.buffer is None else self.buffer.size_bytes

    def add(self, mask: _Array, number: int) -> None:
        """Give a label to the voxels of a mask that are above 0, whatever they had.

        Parameters
        ----------
        mask : numpy.ndarray
            Of the same shape; any strides, byte order, integer or floating dtype.
        number : int
            The label.
        """
        order = _by_stride(self.voxels)
        labels, mask = self.voxels.transpose(order), _plain(mask).transpose(order)
        self.files += 1
        try:
            from ctgpu._native import add_label
        except ImportError:  # a pure package
            inside = mask > 0
            self.overlap_voxels += int(np.count_nonzero(inside & (labels != 0)))
            labels[inside] = number
        else:
            self.overlap_voxels += add_label(mask, labels, number)

    def take(self, mask: _Array, known: npt.NDArray[np.uint8]) -> float | None:
        """Take the numbers of a mask.

        Parameters
        ----------
        mask : numpy.ndarray
            As of :meth:`add`.
        known : numpy.ndarray
            Above 0 at each number that there may be.

        Returns
        -------
        float or None
            A voxel that is none of these, if there is one; the labels are of no use then.
        """
        order = _by_stride(self.voxels)
        labels, mask = self.voxels.transpose(order), _plain(mask).transpose(order)
        self.files += 1
        try:
            from ctgpu._native import take_labels
        except ImportError:  # a pure package
            numbers = np.arange(len(known))[known > 0]
            unknown = ~np.isin(mask, numbers)
            if unknown.any():
                return float(mask[unknown][0])
            labels[...] = mask
            return None
        return take_labels(mask, labels, known)

    def box(self) -> Box | None:
        """The smallest box that holds every label; None where there is none."""
        return Values(1, int(np.iinfo(self.voxels.dtype).max)).box_in(self.voxels)

    def released_on_error(self) -> AbstractContextManager[None]:
        """As :meth:`ctgpu.buffers.Buffer.released_on_error`."""
        return nullcontext() if self.buffer is None else self.buffer.released_on_error()

    def release(self) -> None:
        """Give the memory back; the voxels must not be used afterwards."""
        self.voxels = np.empty((0, 0, 0), self.voxels.dtype)
        if self.buffer is not None:
            self.buffer.release()
            self.buffer = None


def require_same_place(name: str, mask: RawVolume, volume: RawVolume) -> None:
    """Refuse a mask that does not lie as its volume does, or whose numbers are scaled.

    Parameters
    ----------
    name : str
        What messages call the mask.
    mask, volume : RawVolume
        As they were decoded.

    Raises
    ------
    GeometryError
        Saying what differs.
    """
    if mask.voxels.shape != volume.voxels.shape:
        raise GeometryError(
            f"{name} has {_times(mask.voxels.shape)} voxels, and its volume "
            f"{_times(volume.voxels.shape)}; wanted a mask of the volume's own voxels: resample it "
            "onto the volume, or leave the volume out"
        )
    if not mask.header_rescale.is_identity:
        raise GeometryError(
            f"{name} states a slope of {mask.header_rescale.slope:g} and an intercept of "
            f"{mask.header_rescale.intercept:g}; wanted labels as they are: save it as integers"
        )
    if mask.affine is None or volume.affine is None:
        return
    if {mask.affine_source, volume.affine_source} != {"header"}:
        return
    corners = np.array(
        [(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in volume.voxels.shape))]
    )
    apart = np.linalg.norm(((mask.affine - volume.affine) @ corners.T)[:3], axis=0).max()
    if not apart <= TOLERANCE_MM:
        raise GeometryError(
            f"{name} lies up to {apart:.3g} mm from its volume by its affine; wanted the volume's "
            f"own affine, within {TOLERANCE_MM:g} mm: resample it onto the volume, or leave the "
            "volume out"
        )


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _by_stride(voxels: _Array) -> tuple[int, ...]:
    """The axes, the slowest in memory first; of one voxel the stride may be anything."""
    steps = [
        abs(step) if n > 1 else 0 for step, n in zip(voxels.strides, voxels.shape, strict=True)
    ]
    return tuple(sorted(range(3), key=lambda k: -steps[k]))


def _plain(mask: _Array) -> _Array:
    """Voxels that the compiled code reads: copied where they are of another kind."""
    dtype = mask.dtype.newbyteorder("=")
    if dtype == np.float16:
        dtype = np.dtype(np.float32)
    return mask if mask.dtype == dtype and mask.flags.aligned else mask.astype(dtype)
