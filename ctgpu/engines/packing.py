"""What the CUDA kernel reads: volumes of a batch as the structs of ``kernels/cuda/tile.h``.

The tests hand the same structs to the same code compiled for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.engines.batch import KernelKey, Piece, pair_limits
from ctgpu.engines.tables import RUN_STEPS
from ctgpu.spec import Spec
from ctgpu.volume.stored import on_grid

_H, _W, _D = range(3)

_AXIS = np.dtype(
    [("steps", "u8"), ("n_out", "i4"), ("pad_before", "i4"), ("n_valid", "i4"), ("reserved", "i4")]
)
VOLUME = np.dtype(
    [("source", "u8"), ("out", "u8"), ("bands", "u8"), ("runs", "u8"), ("column_bytes", "i8")]
    + [("axes", _AXIS, 3)]
    + [(name, "f4") for name in ("slope", "intercept", "clip_lo", "clip_hi", "scale", "offset")]
    + [(name, "i4") for name in ("rescales", "clips_before")]
    + [("pair_lo", "i2", 2), ("pair_hi", "i2", 2), ("tile_h", "i4"), ("pad_bits", "i4")]
)
_MOST_VOLUMES = 16
_MOST_BLOCKS_Z = 65535  # of a grid, on every GPU
#: The kernel's argument.
BATCH = np.dtype(
    [("volumes", VOLUME, _MOST_VOLUMES), ("first_z", "i4", _MOST_VOLUMES)]
    + [(name, "i4") for name in ("count", "reserved")]
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, which makes some pieces.

    Attributes
    ----------
    key : KernelKey
    grid : tuple of int
        Blocks: tiles along the axis that the output is contiguous along, along H, and along the
        third, of all pieces together.
    batch : numpy.ndarray
        The kernel's argument, of :data:`BATCH`, shape (1,).
    """

    key: KernelKey
    grid: tuple[int, int, int]
    batch: npt.NDArray[Any]

    @classmethod
    def of(cls, described: Sequence[_Described]) -> Launch:
        """That of pieces for one kernel."""
        batch = np.zeros(1, BATCH)
        batch["count"] = len(described)
        x, y, z = zip(*(one.tiles for one in described), strict=True)
        for n, one in enumerate(described):
            batch["volumes"][0, n] = one.volume
            batch["first_z"][0, n] = sum(z[:n])
        return cls(described[0].key, (max(x), max(y), sum(z)), batch)


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
    return sum(piece.table_bytes for piece in pieces)


def pack(placed: Sequence[Placed], address: int) -> tuple[npt.NDArray[np.uint8], list[Launch]]:
    """The header of a batch, which is the tables of all its pieces, and the launches it needs.

    Parameters
    ----------
    placed : sequence of Placed
        Pieces of the batch; those of one kernel become one launch, or a few of sixteen.
    address : int
        Where the header will lie: a multiple of 16.
    """
    header = np.zeros(header_bytes([p.piece for p in placed]), np.uint8)
    by_kernel: dict[KernelKey, list[_Described]] = {}
    end = 0
    for one in placed:
        part = header[end : end + one.piece.table_bytes]
        described = _described(one, part, address + end)
        by_kernel.setdefault(described.key, []).append(described)
        end += len(part)
    launches = []
    for _, same in sorted(by_kernel.items()):
        most = min(_MOST_VOLUMES, _MOST_BLOCKS_Z // max(one.tiles[2] for one in same))
        launches += [Launch.of(same[n : n + most]) for n in range(0, len(same), most)]
    return header, launches


@dataclass(frozen=True, slots=True)
class _Described:
    """A piece as the kernel takes it: of :data:`VOLUME`, and its tiles as in :class:`Launch`."""

    key: KernelKey
    volume: Any
    tiles: tuple[int, int, int]


def _described(placed: Placed, header: npt.NDArray[np.uint8], address: int) -> _Described:
    """A piece, whose tables go into its part of the header."""
    piece, voxels = placed.piece, placed.voxels
    rows, bands = piece.bands(voxels, placed.source_address)
    key = piece.key(voxels, rows)
    # In voxels; that of a single one may be anything.
    strides = [
        stride // voxels.dtype.itemsize if n > 1 else 0
        for stride, n in zip(voxels.strides, voxels.shape, strict=True)
    ]
    described = np.zeros(1, VOLUME)[0]
    _describe(described, placed)
    source_address = placed.source_address
    if rows == 4 and strides[_H] < 0:
        source_address += voxels.strides[_H] * (voxels.shape[_H] - 1)
        strides[_H] = -strides[_H]
    described["source"] = source_address
    described["tile_h"] = bands.tile_rows
    described["column_bytes"] = strides[_W] * voxels.dtype.itemsize
    tables = [
        piece.axes[_H].table(*key.bytes_before(bands.slots)),
        *(piece.axes[k].strided(strides[k]) for k in (_W, _D)),
        piece.axes[_W].runs(key.tile_wd[0]) if rows == 4 else np.zeros(0, RUN_STEPS),
        bands.table(rows * strides[_H]),
    ]
    end, addresses = 0, []
    for table in tables:
        addresses.append(address + end)
        header[end : end + table.nbytes] = table.view(np.uint8)
        end += table.nbytes
    *steps, described["runs"], described["bands"] = addresses
    for axis, there, at in zip(piece.axes, described["axes"], steps, strict=True):
        there["steps"] = at
        there["n_out"], there["pad_before"] = axis.n_out, axis.pad_before
        there["n_valid"] = len(axis.steps)
    tiles = [
        -(-axis.n_out // size)
        for axis, size in zip(piece.axes, (bands.tile_rows, *key.tile_wd), strict=True)
    ]
    return _Described(key, described, (tiles[key.out], tiles[_H], tiles[_W + _D - key.out]))


def _describe(volume: Any, placed: Placed) -> None:
    job = placed.piece.job
    spec, values = job.plan.spec, job.plan.values
    volume["out"] = placed.out_address
    volume["slope"], volume["intercept"] = job.rescale.slope, job.rescale.intercept
    volume["clip_lo"], volume["clip_hi"] = values.clip_lo, values.clip_hi
    volume["scale"], volume["offset"] = values.scale, values.offset
    volume["rescales"] = not job.rescale.is_identity
    volume["clips_before"] = spec.clip == "before"
    volume["pair_lo"], volume["pair_hi"] = pair_limits(job) or (0, 0)
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
