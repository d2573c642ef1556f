"""Volumes for the CUDA kernel: which bytes they span, what fits together, which kernel they take.

Everything here is plain NumPy and knows no device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.engines.base import Job
from ctgpu.engines.tables import BAND, FEWEST_ROWS, RUN, RUN_STEPS, SLOTS, STEP, Axis, Bands
from ctgpu.errors import DeviceError
from ctgpu.volume.stored import Stored, numpy_dtype, stored_as

# As in tile.h.
THREADS = 320
_PLANE = 256
_H, _W, _D = range(3)

#: Offsets of source voxels are 32-bit in the kernel.
MOST_SOURCE_VOXELS = 2**31 - 1

#: What the kernel reads, by kind and size of the dtype, as C++ names it.
VOXEL_TYPES = {
    "i1": "signed char",
    "i2": "short",
    "i4": "int",
    "i8": "long long",
    "u1": "unsigned char",
    "u2": "unsigned short",
    "u4": "unsigned int",
    "u8": "unsigned long long",
    "f2": "ctgpu::Half",
    "f4": "float",
    "f8": "double",
}


@dataclass(frozen=True, slots=True, order=True)
class KernelKey:
    """What a kernel is compiled for.

    Attributes
    ----------
    voxel : str
        Kind and size of the source's dtype, such as ``"i2"``.
    swap : bool
        Whether the source is in the other byte order.
    fast, out : int
        Axis along which source and output are contiguous.
    rescales, clips_before : bool
        Steps of ``preprocess_math.h`` that are done.
    stored : str
        What the voxels of the output are, as :func:`ctgpu.volume.stored.stored_as` says.
    rows : int
        Source rows along H that one load brings: 4 where they lie together, else 1.
    pairs : bool
        Whether two voxels are clipped at once, as integers, before they are converted.
    """

    voxel: str
    swap: bool
    fast: int
    out: int
    rescales: bool
    clips_before: bool
    stored: Stored = "float16"
    rows: int = 1
    pairs: bool = False

    @property
    def defines(self) -> tuple[str, ...]:
        """The compiler options that choose it."""
        return (
            f"-DCTGPU_VOXEL={VOXEL_TYPES[self.voxel]}",
            f"-DCTGPU_SWAP={self.swap:d}",
            f"-DCTGPU_FAST={self.fast}",
            f"-DCTGPU_OUT={self.out}",
            f"-DCTGPU_RESCALES={self.rescales:d}",
            f"-DCTGPU_CLIPS_BEFORE={self.clips_before:d}",
            f"-DCTGPU_STORED=ctgpu::Stored::{self.stored}",
            f"-DCTGPU_ROWS={self.rows}",
            f"-DCTGPU_PAIRS={self.pairs:d}",
        )

    @property
    def tile_wd(self) -> tuple[int, int]:
        """Size of a tile along W and D, as ``Tile`` in tile.h has it."""
        w = 16 if self.fast != self.out else _PLANE // 4 if self.out == _W else 4
        return w, _PLANE // w

    def bytes_before(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Where slots begin in a block's shared memory: ``GROUP`` and ``SLOT`` of tile.h."""
        if self.rows == 4:
            group = 8 * 34 + 13
            return 4 * (slots // 4 * group + slots % 4 * (SLOTS // 4 * group))
        return 4 * slots * (8 * (36 if self.fast == self.out else 33) + 1)


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes that a strided view covers.

    Attributes
    ----------
    address : int
        Of the first byte.
    size_bytes : int
        Up to the end of the last voxel.
    origin_bytes : int
        From `address` to voxel (0, 0, 0).
    """

    address: int
    size_bytes: int
    origin_bytes: int

    @classmethod
    def of(cls, voxels: Any) -> Span:
        """The span of a NumPy or CuPy array of at least one voxel."""
        reach = [s * (n - 1) for s, n in zip(voxels.strides, voxels.shape, strict=True)]
        before = -sum(min(r, 0) for r in reach)
        after = sum(max(r, 0) for r in reach)
        return cls(address_of(voxels) - before, before + after + voxels.dtype.itemsize, before)


def address_of(array: Any) -> int:
    """Where a NumPy or CuPy array's element (0, …) lies."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return int(interface["data"][0])


def can_be_read_in_place(voxels: Any) -> bool:
    """Whether the kernel can read these voxels from a plain copy of the bytes they span."""
    size = voxels.dtype.itemsize
    span = Span.of(voxels)
    known = voxels.dtype.str[1:] in VOXEL_TYPES
    whole_steps = all(stride % size == 0 for stride in voxels.strides)
    return known and whole_steps and bool(span.size_bytes <= 2 * voxels.size * size)


def readable(voxels: Any) -> Any:
    """The voxels themselves, or a dense copy where the kernel cannot read them in place."""
    if can_be_read_in_place(voxels):
        return voxels
    known = voxels.dtype.str[1:] in VOXEL_TYPES
    return voxels.astype(voxels.dtype if known else np.float32, order="K")


@dataclass(frozen=True, slots=True)
class Piece:
    """A job, or a slab of one along the output's D.

    Attributes
    ----------
    job : Job
    voxels : array
        The source voxels it needs; none where it is all padding.
    axes : tuple of Axis
        H, W and D.
    d_first : int
        Its first output voxel along D.
    """

    job: Job
    voxels: Any
    axes: tuple[Axis, Axis, Axis]
    d_first: int

    @classmethod
    def of(cls, job: Job, d_first: int, d_size: int) -> Piece:
        """The slab from `d_first` on, `d_size` voxels of output."""
        axes, needed = [], []
        slowest = int(np.argmax(np.abs(job.voxels.strides)))
        for k, plan in enumerate(job.plan.axes):
            axis, source = Axis.of(plan), slice(None)
            if k == _D and d_size < axis.n_out:
                axis, source = axis.cut(d_first, d_size)
            elif k == slowest:  # what is cropped away there need not be copied
                axis, source = axis.cut(0, axis.n_out)
            axes.append(axis)
            needed.append(source)
        return cls(job, job.voxels[tuple(needed)], (axes[0], axes[1], axes[2]), d_first)

    @property
    def is_whole(self) -> bool:
        """Whether this is all of its job."""
        return self.axes[_D].n_out == self.job.plan.axes[_D].n_out

    @property
    def source_bytes(self) -> int:
        """Device memory for the source."""
        if not self.voxels.size:
            return 0
        if can_be_read_in_place(self.voxels):
            return Span.of(self.voxels).size_bytes
        return int(self.voxels.size) * max(int(self.voxels.dtype.itemsize), 4)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of its output, in the order of the layout."""
        h, w, d = (axis.n_out for axis in self.axes)
        return (h, w, d) if self.job.plan.spec.layout == "HWD" else (d, h, w)

    @property
    def out_dtype(self) -> np.dtype[Any]:
        """Type of its output in memory."""
        return numpy_dtype(self.job.plan.spec.dtype)

    @property
    def out_bytes(self) -> int:
        """Device memory for the output."""
        return self.out_dtype.itemsize * math.prod(self.out_shape)

    @property
    def device_bytes(self) -> int:
        """Device memory for everything, with room for alignment."""
        return self.source_bytes + self.out_bytes + self.table_bytes + 4 * ALIGNMENT

    @property
    def table_bytes(self) -> int:
        """Room for its tables, whichever kernel reads them."""
        steps = sum(len(axis.steps) for axis in self.axes) * STEP.itemsize
        bands = -(-self.axes[_H].n_out // FEWEST_ROWS) * BAND.itemsize
        runs = (self.axes[_W].n_out // RUN + 2) * RUN_STEPS.itemsize
        return -(-(steps + bands + runs) // STEP.itemsize) * STEP.itemsize

    def out_view(self) -> npt.NDArray[Any]:
        """The part of the job's output that this piece fills."""
        slab = slice(self.d_first, self.d_first + self.axes[_D].n_out)
        return (
            self.job.out[:, :, slab] if self.job.plan.spec.layout == "HWD" else self.job.out[slab]
        )

    def bands(self, voxels: Any, source_address: int) -> tuple[int, Bands]:
        """How many rows one load brings when the voxels are held so, and the tiles along H."""
        axis = self.axes[_H]
        if _rows_lie_together(voxels, source_address) and not self.axes[_W].skips_voxels:
            if voxels.strides[_H] < 0:
                axis = axis.reversed(voxels.shape[_H])
            bands = axis.bands(4)
            if bands is not None:
                return 4, bands
        bands = self.axes[_H].bands(1)
        assert bands is not None  # two rows of every step always fit
        return 1, bands

    def key(self, voxels: Any, rows: int = 1) -> KernelKey:
        """The kernel for this piece when its voxels are held as `voxels`.

        Parameters
        ----------
        voxels : array
        rows : int
            As :meth:`bands` has it.
        """
        spec = self.job.plan.spec
        key = KernelKey(
            voxel=voxels.dtype.str[1:],
            swap=not voxels.dtype.isnative,
            fast=_fastest(voxels),
            out=_D if spec.layout == "HWD" else _W,
            rescales=not self.job.rescale.is_identity,
            clips_before=spec.clip == "before",
            stored=stored_as(spec),
            rows=rows,
        )
        can_be_paired = rows == 4 and key.voxel == "i2" and not key.swap and key.clips_before
        pairs = can_be_paired and pair_limits(self.job) is not None
        return replace(key, pairs=pairs)


def _fastest(voxels: Any) -> int:
    """The axis along which voxels are contiguous, or nearest to that."""
    strides = [
        abs(s) if n > 1 else 1 << 62 for s, n in zip(voxels.strides, voxels.shape, strict=True)
    ]
    return int(np.argmin(strides))


def _rows_lie_together(voxels: Any, source_address: int) -> bool:
    """Whether every four rows, from the lowest in memory on, are one vector on its own size."""
    size, n_h = voxels.dtype.itemsize, voxels.shape[_H]
    if not n_h or n_h % 4 or _fastest(voxels) != _H or abs(voxels.strides[_H]) != size:
        return False
    lowest = source_address + min(voxels.strides[_H], 0) * (n_h - 1)
    others = [voxels.strides[k] for k in (_W, _D) if voxels.shape[k] > 1]
    return not any(distance % (4 * size) for distance in (lowest, *others))


def pair_limits(job: Job) -> tuple[int, int] | None:
    """Whole numbers to clip int16 voxels to, before steps 1 and 2, in the place of step 3.

    That gives the same numbers where a rescale only adds a whole number.

    Returns
    -------
    tuple of int or None
        The least and the largest; None where there are none.
    """
    values, rescale = job.plan.values, job.rescale
    least, most = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    if rescale.slope != 1 or not abs(rescale.intercept) <= most or rescale.intercept % 1:
        return None
    limits = []
    for limit in (np.float32(values.clip_lo), np.float32(values.clip_hi)):
        there = float(limit) - rescale.intercept
        if math.isinf(there):
            there = least if there < 0 else most
        if there % 1 or not least <= there <= most:
            return None
        limits.append(int(there))
    return limits[0], limits[1]


#: Of everything in a batch's device memory: what loads of any width and DMA engines like.
ALIGNMENT = 256


def aligned(size_bytes: int) -> int:
    """`size_bytes`, rounded up."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def plan_batches(jobs: Sequence[Job], limit_bytes: int) -> Iterator[list[Piece]]:
    """The jobs as batches that take at most `limit_bytes` of device memory each.

    Raises
    ------
    DeviceError
        If one slice of one volume does not fit.
    """
    batch: list[Piece] = []
    free = limit_bytes
    for job in jobs:
        for piece in _pieces(job, limit_bytes):
            if batch and piece.device_bytes > free:
                yield batch
                batch, free = [], limit_bytes
            batch.append(piece)
            free -= piece.device_bytes
    if batch:
        yield batch


def _pieces(job: Job, limit_bytes: int) -> list[Piece]:
    n = job.plan.axes[_D].n_out
    size = n
    while True:
        pieces = [Piece.of(job, first, min(size, n - first)) for first in range(0, n, size)]
        if all(_fits(piece, limit_bytes) for piece in pieces):
            return pieces
        if size == 1:
            need = max(piece.device_bytes for piece in pieces)
            raise DeviceError(
                f"one slice of a volume of shape {job.plan.source_shape} needs {need >> 20} MiB of "
                f"GPU memory and {limit_bytes >> 20} MiB are to be had; free GPU memory, or use "
                "--device cpu"
            )
        half = size // 2
        size = half // 8 * 8 or half  # whole vectors, as long as there are


def _fits(piece: Piece, limit_bytes: int) -> bool:
    voxels = piece.source_bytes // piece.job.voxels.dtype.itemsize
    return piece.device_bytes <= limit_bytes and voxels <= MOST_SOURCE_VOXELS
