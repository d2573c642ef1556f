"""Boxes of a `.ctz` into memory that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.buffers import Bytes
from ctgpu.codec.ctz import LANES, PLANES, SLACK_BYTES, CtzError, Head, Shape


def tiles_of(head: Head, start_dhw: Shape, shape_dhw: Shape) -> list[range]:
    """The tiles that a box meets: for each slab of planes a run of them, side by side in the file.

    Parameters
    ----------
    head : Head
        Of the volume.
    start_dhw, shape_dhw : tuple of int
        The box: its first voxel, and how many there are of each axis.
    """
    (d, _, w), (depth, _, width) = start_dhw, shape_dhw
    columns = range(w // LANES, -(-(w + width) // LANES))
    slabs = range(d // PLANES, -(-(d + depth) // PLANES))
    across = head.tiles_dw[1]
    return [range(s * across + columns.start, s * across + columns.stop) for s in slabs]


def slabs_at_once(out_dhw: npt.NDArray[Any]) -> int:
    """How many runs :func:`decompress` should be given at a time.

    Into memory where D is the fastest axis several, so that it writes whole cache lines.
    """
    along_d, _, along_w = map(abs, out_dhw.strides)
    return 4 if along_d < along_w else 1


def check_tiles(head: Head, runs: Sequence[range], data: Bytes) -> None:
    """Hold tiles, whose bytes lie one after the other, against their checksums.

    Raises
    ------
    CtzError
        If one does not have it.
    """
    view, end = data.data, 0
    for run in runs:
        entries = head.table[run.start : run.stop]
        sizes, digests = entries["size"].tolist(), entries["xxh3_64"].tolist()
        for number, size_bytes, digest in zip(run, sizes, digests, strict=True):
            start, end = end, end + size_bytes
            if xxhash.xxh3_64_intdigest(view[start:end]) != digest:
                raise CtzError(f"its tile {number} does not have its checksum")


def decompress(
    head: Head,
    runs: Sequence[range],
    data: Bytes,
    out_dhw: npt.NDArray[Any],
    start_dhw: Shape = (0, 0, 0),
    *,
    verify: bool = True,
    variant: str = "",
) -> None:
    """Decode some tiles, and write what of them lies in a box.

    Parameters
    ----------
    head : Head
        Of the volume.
    runs : sequence of range
        Numbers of tiles, as :func:`tiles_of` gives them; :func:`slabs_at_once` at a time.
    data : numpy.ndarray
        uint8: the bytes of these tiles one after the other, and
        :data:`~ctgpu.codec.ctz.SLACK_BYTES` more, of any content.
    out_dhw : numpy.ndarray
        The box: axes D, H, W, any strides, of 8 or 16 bits as the volume; written where the tiles
        meet it.
    start_dhw : tuple of int
        Where in the volume the box begins.
    verify : bool
        Hold each tile against its checksum first.  What is damaged is found otherwise too, as far
        as it contradicts itself.
    variant : str
        Which instructions to use; empty for the best that this CPU can run.

    Raises
    ------
    CtzError
        If a tile is damaged.
    """
    from ctgpu import _native

    numbers = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    table = head.table[numbers]
    used_bytes = int(table["size"].sum(dtype=np.int64))
    if len(data) < used_bytes + SLACK_BYTES:
        raise ValueError(f"data has {len(data)} bytes, and takes {used_bytes + SLACK_BYTES}")
    if verify:
        check_tiles(head, runs, data)
    try:
        _native.ctz_decode(
            kind=head.kind,
            coding=head.coding,
            grid=head.grid,
            weights=head.weights,
            first=head.first,
            shape_dhw=head.shape_dhw,
            numbers=numbers,
            table=table.view(np.uint32).reshape(-1, 6),
            data=data,
            start_dhw=start_dhw,
            out=out_dhw.view(np.uint8 if out_dhw.itemsize == 1 else np.uint16),
            variant=variant,
        )
    except _native.CtzFault as fault:
        raise CtzError(f"its {fault}") from None
