"""What the CUDA kernel reads: volumes of a batch as the structs of ``kernels/cuda/tile.h``.

Everything here is plain NumPy and knows no device: the tests hand the same structs to the same
code compiled for the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.engines.base import Job
from ctgpu.errors import DeviceError
from ctgpu.spec import Spec
from ctgpu.volume.geometry import AxisPlan
from ctgpu.volume.stored import Stored, numpy_dtype, on_grid, stored_as

# As in tile.h.
THREADS = 320
_SLOTS = 40
_PLANE = 256
_MOST_ROWS = 32
_H, _W, _D = range(3)

#: Offsets of source voxels are 32-bit in the kernel.
MOST_SOURCE_VOXELS = 2**31 - 1

_STEP = np.dtype([("i0", "i4"), ("i1", "i4"), ("w", "f4")])
_AXIS = np.dtype(
    [("steps", "u8"), ("n_out", "i4"), ("pad_before", "i4"), ("n_valid", "i4"), ("stride", "i4")]
)
VOLUME = np.dtype(
    [("source", "u8"), ("out", "u8"), ("axes", _AXIS, 3)]
    + [(name, "f4") for name in ("slope", "intercept", "clip_lo", "clip_hi", "scale", "offset")]
    + [(name, "i4") for name in ("rescales", "clips_before", "first_tile", "tile_h", "pad_bits")]
    + [("reserved", "i4")]
)

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
    """

    voxel: str
    swap: bool
    fast: int
    out: int
    rescales: bool
    clips_before: bool
    stored: Stored = "float16"

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
        )

    @property
    def tile_wd(self) -> tuple[int, int]:
        """Size of a tile along W and D, as ``Tile`` in tile.h has it."""
        w = 16 if self.fast != self.out else _PLANE // 4 if self.out == _W else 4
        return w, _PLANE // w


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
class Axis:
    """One axis of a piece: :class:`ctgpu.volume.geometry.AxisPlan` as the kernel takes it."""

    n_out: int
    pad_before: int
    steps: npt.NDArray[Any]

    @classmethod
    def of(cls, plan: AxisPlan) -> Axis:
        """The whole axis."""
        steps = np.empty(plan.n_valid, _STEP)
        steps["i0"], steps["i1"], steps["w"] = plan.i0, plan.i1, plan.w
        return cls(plan.n_out, plan.pad_before, steps)

    def cut(self, first: int, size: int) -> tuple[Axis, slice]:
        """Output voxels `first` to ``first + size``, and the source voxels these need."""
        begin = max(first - self.pad_before, 0)
        steps = self.steps[begin : max(first + size - self.pad_before, begin)].copy()
        pad_before = min(max(self.pad_before - first, 0), size)
        if not len(steps):
            return Axis(size, pad_before, steps), slice(0, 0)
        low, high = int(steps["i0"][0]), int(steps["i1"][-1])
        steps["i0"] -= low
        steps["i1"] -= low
        return Axis(size, pad_before, steps), slice(low, high + 1)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile along this axis, such that no tile needs more source rows than fit."""
        for rows in range(_MOST_ROWS, _SLOTS // 2, -1):
            first = np.arange(0, self.n_out, rows) - self.pad_before
            begin = np.maximum(first, 0)
            end = np.minimum(
                np.minimum(first + rows, self.n_out - self.pad_before), len(self.steps)
            )
            begin, end = begin[end > begin], end[end > begin]
            needed = self.steps["i1"][end - 1] - self.steps["i0"][begin] + 1
            if (np.minimum(needed, 2 * (end - begin)) <= _SLOTS).all():
                return rows
        return _SLOTS // 2


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
        steps = sum(axis.steps.nbytes for axis in self.axes)
        return self.source_bytes + self.out_bytes + steps + VOLUME.itemsize + 4 * ALIGNMENT

    def out_view(self) -> npt.NDArray[Any]:
        """The part of the job's output that this piece fills."""
        slab = slice(self.d_first, self.d_first + self.axes[_D].n_out)
        return (
            self.job.out[:, :, slab] if self.job.plan.spec.layout == "HWD" else self.job.out[slab]
        )

    def key(self, voxels: Any) -> KernelKey:
        """The kernel for this piece when its voxels are held as `voxels`."""
        strides = [
            abs(s) if n > 1 else 1 << 62 for s, n in zip(voxels.strides, voxels.shape, strict=True)
        ]
        spec = self.job.plan.spec
        return KernelKey(
            voxel=voxels.dtype.str[1:],
            swap=not voxels.dtype.isnative,
            fast=int(np.argmin(strides)),
            out=_D if spec.layout == "HWD" else _W,
            rescales=not self.job.rescale.is_identity,
            clips_before=spec.clip == "before",
            stored=stored_as(spec),
        )


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


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch over volumes ``first … first + count - 1`` of a header."""

    key: KernelKey
    first: int
    count: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A piece with its addresses on the device.

    Attributes
    ----------
    piece : Piece
    voxels : array
        Its voxels as they were copied, for dtype and strides.
    source_address : int
        Of voxel (0, 0, 0).
    out_address : int
    """

    piece: Piece
    voxels: Any
    source_address: int
    out_address: int


def header_bytes(pieces: Sequence[Piece]) -> int:
    """Size of what :func:`pack` makes."""
    return sum(VOLUME.itemsize + sum(axis.steps.nbytes for axis in piece.axes) for piece in pieces)


def pack(placed: Sequence[Placed], address: int) -> tuple[npt.NDArray[np.uint8], list[Launch]]:
    """The header of a batch, volumes first and then their tables, and the launches it needs.

    Parameters
    ----------
    placed : sequence of Placed
        Volumes of the batch; those of one kernel become one launch.
    address : int
        Where the header will lie.
    """
    header = np.zeros(header_bytes([p.piece for p in placed]), np.uint8)
    volumes = header[: len(placed) * VOLUME.itemsize].view(VOLUME)
    ordered = sorted(
        ((p.piece.key(p.voxels), index) for index, p in enumerate(placed)),
    )
    launches: list[Launch] = []
    end = volumes.nbytes
    for n, (key, index) in enumerate(ordered):
        volume, piece, voxels = volumes[n], placed[index].piece, placed[index].voxels
        for k, axis in enumerate(piece.axes):
            table = volume["axes"][k]
            table["steps"] = address + end
            table["n_out"], table["pad_before"] = axis.n_out, axis.pad_before
            table["n_valid"] = len(axis.steps)
            if voxels.shape[k] > 1:  # the stride of a single voxel may be anything
                table["stride"] = voxels.strides[k] // voxels.dtype.itemsize
            header[end : end + axis.steps.nbytes] = axis.steps.view(np.uint8)
            end += axis.steps.nbytes
        _describe(volume, placed[index])
        blocks = math.prod(
            -(-axis.n_out // size)
            for axis, size in zip(piece.axes, (volume["tile_h"], *key.tile_wd), strict=True)
        )
        if launches and launches[-1].key == key:
            last = launches.pop()
            volume["first_tile"] = last.blocks
            launches.append(Launch(key, last.first, last.count + 1, last.blocks + blocks))
        else:
            launches.append(Launch(key, n, 1, blocks))
    return header, launches


def _describe(volume: Any, placed: Placed) -> None:
    job = placed.piece.job
    spec, values = job.plan.spec, job.plan.values
    volume["source"], volume["out"] = placed.source_address, placed.out_address
    volume["slope"], volume["intercept"] = job.rescale.slope, job.rescale.intercept
    volume["clip_lo"], volume["clip_hi"] = values.clip_lo, values.clip_hi
    volume["scale"], volume["offset"] = values.scale, values.offset
    volume["rescales"] = not job.rescale.is_identity
    volume["clips_before"] = spec.clip == "before"
    volume["tile_h"] = placed.piece.axes[_H].tile_rows
    volume["pad_bits"] = stored_bits(values.pad, spec)


def stored_bits(value: float, spec: Spec) -> int:
    """A number as the kernel would store it, by step 8 of ``preprocess_math.h``.

    Parameters
    ----------
    value : float
        Not rounded yet; no NaN.
    spec : Spec
        The contract: as what it is stored.

    Returns
    -------
    int
        The bits, as an unsigned number.
    """
    number, dtype = np.float32(value), spec.dtype
    if spec.precision_step is not None:
        number = np.float32(on_grid(np.array([number]), spec.precision_step)[0])
    if dtype == "bfloat16":
        bits = int(number.view(np.uint32))
        return bits + 0x7FFF + (bits >> 16 & 1) >> 16
    if dtype == "float16":
        with np.errstate(over="ignore"):  # infinite, as every engine has it
            return int(number.astype(np.float16).view(np.uint16))
    limits = np.iinfo(dtype)
    nearest = int(np.rint(np.clip(number, limits.min, limits.max)))
    return nearest % (1 << limits.bits)
