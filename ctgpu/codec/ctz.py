"""The header and the table of a `.ctz`, checked before anything is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.spec import Layout

Kind = Literal["uint8", "int16", "grid", "float16", "bfloat16"]
Coding = Literal["pack", "rice"]
Shape = tuple[int, int, int]
Readable = bytes | bytearray | memoryview

#: Of a tile; the last of an axis may have fewer.
PLANES, LANES = 8, 32
HEADER_BYTES = 64
#: Bytes behind the last tile that decoders may load, and ignore.
SLACK_BYTES = 4096

KINDS: tuple[Kind, ...] = ("uint8", "int16", "grid", "float16", "bfloat16")
CODINGS: tuple[Coding, ...] = ("pack", "rice")
LAYOUTS: tuple[Layout, ...] = ("DHW", "HWD")

_MAGIC = b"CTZ"
_VERSION = 1
_HEADER = struct.Struct("<3sBBBbB3I4h4x16s8x8s")
_TABLE = np.dtype(
    [("size", "<u4"), ("packed", "<u4"), ("quotients", "<u4"), ("raw", "<u4"), ("xxh3_64", "<u8")]
)
_GRIDS: dict[Kind, range] = {
    "uint8": range(1),
    "int16": range(1),
    "grid": range(-1, 15),
    "float16": range(-1, 15),
    "bfloat16": range(-7, 15),
}
_MOST_VOXELS = 65535


class CtzError(ValueError):
    """What claims to be a compressed volume is none, or is damaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What stands before the tiles.

    Attributes
    ----------
    kind : {"uint8", "int16", "grid", "float16", "bfloat16"}
        What the voxels are; ``grid`` is float16 on a grid, ``int16`` also stands for uint16.
    coding : {"pack", "rice"}
        How residuals are coded.
    grid : int
        One unit of the numbers that are predicted is 2 to the power of ``-grid``.
    layout : {"DHW", "HWD"}
        Of the volume that `xxh3_128` is over.
    shape_dhw : tuple of int
        Voxels of D, H and W.
    weights : tuple of int
        Of the prediction, in 1/32768.
    first : int
        Prediction of the first row of every tile.
    xxh3_128 : str
        Of the volume in its layout, as a record has it.
    table : numpy.ndarray
        One entry for each tile, those of a slab of D one after the other: ``size``, ``packed``,
        ``quotients`` in bytes, ``raw`` (0 or 1), and ``xxh3_64`` of its bytes.
    """

    kind: Kind
    coding: Coding
    grid: int
    layout: Layout
    shape_dhw: Shape
    weights: tuple[int, int, int]
    first: int
    xxh3_128: str
    table: npt.NDArray[Any]

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel of the volume."""
        return 1 if self.kind == "uint8" else 2

    @property
    def tiles_dw(self) -> tuple[int, int]:
        """How many tiles there are along D and W."""
        depth, _, width = self.shape_dhw
        return -(-depth // PLANES), -(-width // LANES)

    def starts(self) -> npt.NDArray[np.int64]:
        """Where each tile begins in the member, and where the last one ends, in bytes."""
        sizes = self.table["size"].astype(np.int64)
        return head_bytes(self.shape_dhw) + np.concatenate([[0], np.cumsum(sizes)])

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole member."""
        return head_bytes(self.shape_dhw) + int(self.table["size"].sum(dtype=np.int64))

    def to_bytes(self) -> bytes:
        """Header and table."""
        table = self.table.tobytes()
        head = self._packed(bytes(8))[:56]
        return self._packed(_digest(head, table)) + table

    def _packed(self, digest: bytes) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            _VERSION,
            KINDS.index(self.kind),
            CODINGS.index(self.coding),
            self.grid,
            LAYOUTS.index(self.layout),
            *self.shape_dhw,
            *self.weights,
            self.first,
            bytes.fromhex(self.xxh3_128),
            digest,
        )

    @classmethod
    def parse(cls, data: Readable, *, shape_dhw: Shape, member_bytes: int) -> Head:
        """The head of a member.

        Parameters
        ----------
        data : buffer
            Its first :func:`head_bytes` bytes.
        shape_dhw : tuple of int
            The shape that the volume must have: nothing is taken from the head unseen.
        member_bytes : int
            Size of the member.

        Raises
        ------
        CtzError
            If it is no `.ctz` of this version, is damaged, or is of another shape or size.
        """
        view = memoryview(data).cast("B")
        if len(view) != head_bytes(shape_dhw):
            raise CtzError(f"its head has {len(view)} bytes, and takes {head_bytes(shape_dhw)}")
        magic, version, kind, coding, grid, layout, *numbers = _HEADER.unpack_from(view)
        if magic != _MAGIC:
            raise CtzError("it does not begin as a .ctz")
        if version != _VERSION:
            raise CtzError(f"it is a .ctz of version {version}, and {_VERSION} is known")
        *shape, u, v, s, first, volume_digest, digest = numbers
        if digest != _digest(view[:56], view[HEADER_BYTES:]):
            raise CtzError("its header or table does not have its checksum")
        if tuple(shape) != shape_dhw:
            raise CtzError(f"its shape (D, H, W) is {tuple(shape)}, and {shape_dhw} was wanted")
        known = kind < len(KINDS) and coding < len(CODINGS) and layout < len(LAYOUTS)
        if not known or grid not in _GRIDS[KINDS[kind]]:
            raise CtzError("its header says what no .ctz says")
        if any(view[28:32]) or any(view[48:56]) or -32768 in (u, v, s):
            raise CtzError("its header says what no .ctz says")
        table = np.frombuffer(view[HEADER_BYTES:], _TABLE)
        head = cls(
            *(KINDS[kind], CODINGS[coding], grid, LAYOUTS[layout], shape_dhw, (u, v, s), first),
            *(volume_digest.hex(), table),
        )
        head._check(member_bytes)
        return head

    def _check(self, member_bytes: int) -> None:
        """Hold the table against the shape: whatever its checksum says, it may come from anyone."""
        raw_bytes = self.voxel_bytes * self._tile_voxels()
        table = {
            name: self.table[name].astype(np.int64) for name in ("size", "packed", "quotients")
        }
        raw = self.table["raw"]
        whole = np.where(raw == 1, table["size"] == raw_bytes, table["size"] <= raw_bytes)
        parts = np.where(raw == 1, 0, table["packed"] + table["quotients"])
        if (raw > 1).any() or not whole.all() or (parts > table["size"]).any():
            raise CtzError("its table says what no .ctz says")
        if self.size_bytes != member_bytes:
            raise CtzError(f"its tiles end at byte {self.size_bytes} of {member_bytes}")

    def _tile_voxels(self) -> npt.NDArray[np.int64]:
        depth, height, width = self.shape_dhw
        planes = np.minimum(PLANES, depth - PLANES * np.arange(self.tiles_dw[0]))
        lanes = np.minimum(LANES, width - LANES * np.arange(self.tiles_dw[1]))
        return (np.outer(planes, lanes) * height).ravel().astype(np.int64)


def head_bytes(shape_dhw: Shape) -> int:
    """Bytes of header and table of a volume.

    Raises
    ------
    ValueError
        If an axis has no voxel, or more than 65,535.
    """
    if not all(1 <= n <= _MOST_VOXELS for n in shape_dhw):
        raise ValueError(f"the shape (D, H, W) is {shape_dhw}; an axis takes 1 to {_MOST_VOXELS}")
    depth, _, width = shape_dhw
    return HEADER_BYTES + -(-depth // PLANES) * -(-width // LANES) * _TABLE.itemsize


def empty_table(shape_dhw: Shape) -> npt.NDArray[Any]:
    """A table for the tiles of a volume, to be filled."""
    return np.zeros((head_bytes(shape_dhw) - HEADER_BYTES) // _TABLE.itemsize, _TABLE)


def _digest(head: Readable, table: Readable) -> bytes:
    digest = xxhash.xxh3_64(bytes(head))
    digest.update(table)
    return digest.intdigest().to_bytes(8, "little")
