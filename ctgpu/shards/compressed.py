"""Compressed volumes in a shard: boxes of them, decoded into memory that the caller owns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.buffers import BufferPool, Bytes
from ctgpu.codec.ctz import (
    LANES,
    PLANES,
    SLACK_BYTES,
    CtzError,
    Head,
    Shape,
    head_bytes,
)
from ctgpu.codec.decompress import check_tiles, decompress, slabs_at_once, tiles_of
from ctgpu.codec.whole import require_kind
from ctgpu.errors import FetchError
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Layout


class CompressedMember:
    """One ``.ctz`` or ``.segz`` of an open shard; its head is read, and checked, at once.

    One thread reads it.  Where that verifies all tiles in their order, it also holds the member as
    a whole against its record: tiles of another volume may be as sound as those that are wanted.

    Parameters
    ----------
    reader : ShardReader
        The shard.
    entry : SampleEntry
        Of its record.
    extension : str
        ``ctz`` or ``segz``.
    shape_dhw : tuple of int
        Voxels that it must have.
    dtype : str
        Type that they must be of, as a spec or a mask's format names it.

    Raises
    ------
    FetchError
        If the tar is too short, or the head damaged or that of something else.
    """

    def __init__(
        self,
        reader: ShardReader,
        entry: SampleEntry,
        extension: str,
        shape_dhw: Shape,
        dtype: str,
    ) -> None:
        self._reader, self._entry, self._extension = reader, entry, extension
        with self._faults():
            self.head, data = _read_head(reader, entry, extension, shape_dhw, dtype)
        self._starts = self.head.starts()
        self._digest, self._digested_tiles = xxhash.xxh3_128(data), 0

    def read_box(
        self, start_dhw: Shape, out_dhw: npt.NDArray[Any], scratch: BufferPool, *, verify: bool
    ) -> None:
        """Decode a box, or all, of it; no other tiles are read than those that the box meets.

        Parameters
        ----------
        start_dhw : tuple of int
            First voxel of the box, which lies within the volume.
        out_dhw : numpy.ndarray
            Axes D, H, W, any strides, of the stored type; its shape is the box's.
        scratch : BufferPool
            Lends memory for what is read at a time.
        verify : bool
            Hold each tile against its checksum.

        Raises
        ------
        FetchError
            If the tar is too short, or a tile damaged.
        """
        with self._faults():
            self._read_box(start_dhw, out_dhw, scratch, verify=verify)

    def read_tiles(self, runs: Sequence[range], out: Bytes, *, verify: bool) -> None:
        """Read the bytes of some tiles, one after the other, as they are stored.

        Parameters
        ----------
        runs : sequence of range
            Numbers of tiles, as :func:`ctgpu.codec.decompress.tiles_of` gives them.
        out : numpy.ndarray
            uint8, long enough.
        verify : bool
            Hold each tile against its checksum.

        Raises
        ------
        FetchError
            If the tar is too short, or a tile damaged.
        """
        with self._faults():
            self._read_tiles(runs, out, verify=verify)

    def _fault(self, layout: Layout, scratch: BufferPool) -> str | None:
        if self.head.layout != layout:
            return f"is of a volume in the order {self.head.layout}, and {layout} was wanted"
        if damaged := self._damaged_tiles(scratch):
            others = len(damaged) - 1
            more = f", nor have {others} more of {len(self.head.table)} tiles" if others else ""
            return f"is damaged: {_where(self.head, damaged[0])} does not have its checksum{more}"
        try:
            found = self._decoded_xxh3_128(scratch)
        except CtzError as error:
            return f"cannot be decoded: {error}"
        if found != self.head.xxh3_128:
            return f"decodes to what has the checksum {found}; its head says {self.head.xxh3_128}"
        return None

    def _read_box(
        self, start_dhw: Shape, out_dhw: npt.NDArray[Any], scratch: BufferPool, *, verify: bool
    ) -> None:
        runs = tiles_of(self.head, start_dhw, out_dhw.shape)
        step = slabs_at_once(out_dhw)
        with self._room(min(step, len(runs)) * len(runs[0]), scratch) as room:
            for first in range(0, len(runs), step):
                some = runs[first : first + step]
                self._read_tiles(some, room, verify=verify)
                decompress(self.head, some, room, out_dhw, start_dhw, verify=False)

    def _read_tiles(self, runs: Sequence[range], out: Bytes, *, verify: bool) -> None:
        used = 0
        for run in runs:
            begin, end = int(self._starts[run.start]), int(self._starts[run.stop])
            part = out[used : used + end - begin]
            self._reader.read_part(self._entry, self._extension, begin, part.data)
            if verify:  # while it still is in the processor's cache
                check_tiles(self.head, [run], part)
                self._hold_whole(run, part)
            used += end - begin

    def _hold_whole(self, run: range, part: Bytes) -> None:
        """Count tiles in that follow those so far; after the last, the member is known."""
        if run.start != self._digested_tiles:
            return
        self._digest.update(part.data)
        self._digested_tiles = run.stop
        wanted = self._entry.members[self._extension].xxh3_128
        if run.stop == len(self.head.table) and self._digest.hexdigest() != wanted:
            raise CtzError(f"it does not have its checksum {wanted}")

    def _damaged_tiles(self, scratch: BufferPool) -> list[int]:
        damaged = []
        with self._room(1, scratch) as room:
            for number in range(len(self.head.table)):
                tile = range(number, number + 1)
                self._read_tiles([tile], room, verify=False)
                try:
                    check_tiles(self.head, [tile], room)
                except CtzError:
                    damaged.append(number)
        return damaged

    def _decoded_xxh3_128(self, scratch: BufferPool) -> str:
        """Of the volume in its layout."""
        depth, height, width = self.head.shape_dhw
        dhw = self.head.layout == "DHW"
        step = PLANES if dhw else depth  # what follows each other in memory
        voxel = np.dtype(f"u{self.head.voxel_bytes}")
        digest = xxhash.xxh3_128()
        with scratch.acquire(step * height * width * voxel.itemsize) as buffer:
            for first in range(0, depth, step):
                planes = min(step, depth - first)
                shape = (planes, height, width) if dhw else (height, width, planes)
                part = buffer.array(shape, voxel)
                part_dhw = part if dhw else part.transpose(2, 0, 1)
                self._read_box((first, 0, 0), part_dhw, scratch, verify=False)
                digest.update(part.data)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _room(self, tiles: int, scratch: BufferPool) -> Iterator[Bytes]:
        """Memory for so many tiles of any volume of this shape: a pool keeps to one size."""
        tile_bytes = PLANES * LANES * self.head.shape_dhw[1] * self.head.voxel_bytes
        with scratch.acquire(tiles * tile_bytes + SLACK_BYTES) as buffer:
            yield buffer.bytes

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except CtzError as error:
            raise FetchError(
                f"{self._reader.path}: {self._entry.key}.{self._extension} cannot be decoded: "
                f"{error}; the tar has changed since it was written"
            ) from error


def compressed_fault(
    reader: ShardReader,
    entry: SampleEntry,
    extension: str,
    shape_dhw: Shape,
    dtype: str,
    layout: Layout,
    stated_xxh3_128: str | None,
    scratch: BufferPool,
) -> str | None:
    """What is wrong with a compressed volume or mask, in words; None if it is what was stored.

    Each tile is held against its checksum, and what is decoded against that of the head, which has
    to be that of the sample's JSON.  Of a volume in the order D, H, W a slab is decoded at a time.

    Parameters
    ----------
    reader, entry, extension, shape_dhw, dtype
        As :class:`CompressedMember` takes them.
    layout : {"DHW", "HWD"}
        Order of the axes that its checksum is over.
    stated_xxh3_128 : str or None
        Of the volume or the mask, as the sample's JSON has it; None where that says nothing.
    scratch : BufferPool
        Lends memory: for a volume in the order H, W, D as much as it has, decoded.

    Raises
    ------
    FetchError
        If the tar is too short.
    """
    name = f"{entry.key}.{extension}"
    try:
        member = CompressedMember(reader, entry, extension, shape_dhw, dtype)
    except FetchError as error:
        if not isinstance(error.__cause__, CtzError):
            raise
        return f"{name} cannot be decoded: {error.__cause__}"
    if fault := member._fault(layout, scratch):
        return f"{name} {fault}"
    if stated_xxh3_128 not in (None, member.head.xxh3_128):
        return (
            f"{name} holds what has the checksum {member.head.xxh3_128}, and {entry.key}.json says "
            f"{stated_xxh3_128}"
        )
    return None


def _read_head(
    reader: ShardReader, entry: SampleEntry, extension: str, shape_dhw: Shape, dtype: str
) -> tuple[Head, bytearray]:
    """The head of a member, and its bytes."""
    wanted_bytes, member_bytes = head_bytes(shape_dhw), entry.members[extension].size_bytes
    if member_bytes < wanted_bytes:
        raise CtzError(f"it has {member_bytes} bytes, and its head takes {wanted_bytes}")
    data = bytearray(wanted_bytes)
    reader.read_part(entry, extension, 0, memoryview(data))
    head = Head.parse(data, shape_dhw=shape_dhw, member_bytes=member_bytes)
    require_kind(head, dtype)
    return head, data


def _where(head: Head, number: int) -> str:
    """A tile, and which voxels it holds."""
    slab, column = divmod(number, head.tiles_dw[1])
    first, left = slab * PLANES, column * LANES
    last = min(first + PLANES, head.shape_dhw[0]) - 1
    right = min(left + LANES, head.shape_dhw[2]) - 1
    return f"tile {number} (planes {first} to {last} of D, columns {left} to {right} of W)"
