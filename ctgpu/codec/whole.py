"""A whole `.ctz` that is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.buffers import Bytes
from ctgpu.codec.ctz import (
    HEADER_BYTES,
    SLACK_BYTES,
    CtzError,
    Head,
    Kind,
    Readable,
    Shape,
    head_bytes,
)
from ctgpu.codec.decompress import decompress, slabs_at_once, tiles_of
from ctgpu.spec import Layout

# The stored types that each kind may stand for.
_DTYPES: Mapping[Kind, tuple[str, ...]] = {
    "uint8": ("uint8",),
    "int16": ("int16", "uint16"),
    "grid": ("float16",),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}


def head_of(member: Bytes, shape_dhw: Shape | None = None) -> Head:
    """The head of a member.

    Parameters
    ----------
    member : numpy.ndarray
        uint8, all of its bytes.
    shape_dhw : tuple of int, optional
        The shape that it must have; by default the one that it states, for which nothing has been
        allocated yet.

    Raises
    ------
    CtzError
        If it is no `.ctz`, or damaged.
    """
    if shape_dhw is None:
        if len(member) < HEADER_BYTES or member[:3].tobytes() != b"CTZ":
            raise CtzError("it does not begin as a .ctz")
        depth, height, width = np.frombuffer(member, "<u4", 3, 8).tolist()
        shape_dhw = depth, height, width
    try:
        size_bytes = head_bytes(shape_dhw)
    except ValueError as error:
        raise CtzError(str(error)) from None
    if size_bytes > len(member):
        raise CtzError(f"its head takes {size_bytes} bytes, and it has {len(member)}")
    return Head.parse(member[:size_bytes].data, shape_dhw=shape_dhw, member_bytes=len(member))


def require_kind(head: Head, dtype: str) -> None:
    """Refuse a volume that does not hold what is wanted.

    Parameters
    ----------
    head : Head
        Of the volume.
    dtype : str
        As a spec or the format of masks names it, such as ``"bfloat16"``.

    Raises
    ------
    CtzError
        If its voxels are of another type.
    """
    if dtype not in _DTYPES[head.kind]:
        raise CtzError(f"it holds {head.kind}, and {dtype} was wanted")


def decompress_whole(room: Bytes, size_bytes: int, out: npt.NDArray[Any], layout: Layout) -> Head:
    """Decode a member, and hold the volume against the checksum that its head states.

    Parameters
    ----------
    room : numpy.ndarray
        uint8: the member, and :data:`~ctgpu.codec.ctz.SLACK_BYTES` more, of any content.
    size_bytes : int
        Of the member.
    out : numpy.ndarray
        Contiguous, of the volume's shape in the order of `layout`, of 8 or 16 bits; overwritten.
    layout : {"DHW", "HWD"}
        Order of the axes of `out`.

    Raises
    ------
    CtzError
        If it is no `.ctz` of that shape and those voxels, or is damaged.
    """
    out_dhw = out if layout == "DHW" else out.transpose(2, 0, 1)
    depth, height, width = out_dhw.shape
    head = head_of(room[:size_bytes], (depth, height, width))
    if head.voxel_bytes != out.itemsize or head.layout != layout:
        raise CtzError(
            f"its voxels have {head.voxel_bytes} bytes, in the order {head.layout}; wanted "
            f"{out.itemsize}, and {layout}"
        )
    _decode(head, room, out_dhw)
    if xxhash.xxh3_128_hexdigest(out.data) != head.xxh3_128:
        raise CtzError(f"what is decoded does not have the checksum {head.xxh3_128} of its head")
    return head


def decode_member(
    content: Readable | Bytes,
    shape_dhw: Shape,
    dtype: str,
    voxel: np.dtype[Any],
    layout: Layout = "DHW",
) -> npt.NDArray[Any]:
    """A ``.ctz`` or ``.segz`` that is in memory, decoded; each tile is held against its checksum.

    Parameters
    ----------
    content : buffer
        All of its bytes.
    shape_dhw : tuple of int
        Voxels that it must have.
    dtype : str
        Type that they must be of, as a spec or a mask's format names it.
    voxel : numpy.dtype
        The same, as NumPy has it.
    layout : {"DHW", "HWD"}
        Order of the axes that is wanted, whatever that of the volume.

    Returns
    -------
    numpy.ndarray
        Of that type, axes in that order, contiguous.

    Raises
    ------
    CtzError
        If it is no `.ctz`, damaged, or of other voxels; before memory is taken for these.
    """
    member = np.frombuffer(content, np.uint8)
    head = head_of(member, shape_dhw)
    require_kind(head, dtype)
    d, h, w = shape_dhw
    out = np.empty(shape_dhw if layout == "DHW" else (h, w, d), voxel)
    out_dhw = out if layout == "DHW" else out.transpose(2, 0, 1)
    room = np.empty(len(member) + SLACK_BYTES, np.uint8)
    room[: len(member)] = member
    _decode(head, room, out_dhw)
    return out


def _decode(head: Head, room: Bytes, out_dhw: npt.NDArray[Any]) -> None:
    """All of a member, which has room behind it; each tile is held against its checksum."""
    starts, runs = head.starts(), tiles_of(head, (0, 0, 0), head.shape_dhw)
    step = slabs_at_once(out_dhw)
    for first in range(0, len(runs), step):
        some = runs[first : first + step]
        data = room[starts[some[0].start] : starts[some[-1].stop] + SLACK_BYTES]
        decompress(head, some, data, out_dhw)
