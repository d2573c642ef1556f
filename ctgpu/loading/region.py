"""Boxes of voxels: where they are in a stored volume, and how few bytes bring them in."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Layout

#: An array or a tensor.
VolumeT = TypeVar("VolumeT", bound=Any)
Shape = tuple[int, int, int]


def to_dhw(volume: VolumeT, layout: Layout) -> VolumeT:
    """A view of (…, stored axes) as (…, D, H, W); of an array or a tensor."""
    if layout == "DHW":
        return volume
    turned: VolumeT = volume.swapaxes(-1, -2).swapaxes(-2, -3)
    return turned


def to_hwd(volume: VolumeT, layout: Layout) -> VolumeT:
    """A view of (…, stored axes) as (…, H, W, D); of an array or a tensor."""
    if layout == "HWD":
        return volume
    turned: VolumeT = volume.swapaxes(-3, -2).swapaxes(-2, -1)
    return turned


def stored_order(shape_hwd: Shape, layout: Layout) -> Shape:
    """An (H, W, D) triple in the order in which the axes are stored."""
    h, w, d = shape_hwd
    return (h, w, d) if layout == "HWD" else (d, h, w)


def random_start(
    stored: Shape, box: Shape, *, seed: int, epoch: int, index: int, repeat: int = 0
) -> tuple[int, int, int]:
    """First voxel of a random box, in stored order; a function of its arguments alone.

    `repeat` is how often the sample came before in its epoch.
    """
    # Raw draws of a counter-based generator: the same in every version of NumPy.
    draws = np.random.Philox(key=[seed, epoch], counter=[0, index, 1, repeat]).random_raw(3)
    first, second, third = (
        int(draw) % (n - k + 1) for draw, n, k in zip(draws, stored, box, strict=True)
    )
    return first, second, third


def read_region(
    reader: ShardReader,
    entry: SampleEntry,
    stored: Shape,
    start: Shape,
    out: npt.NDArray[Any],
) -> None:
    """Read a box into `out`, unverified: in one piece, or plane by plane of the slowest axis.

    Of each plane the rows of the box are read, from its first voxel to its last.  `out` is of the
    type that is stored.

    Raises
    ------
    FetchError
        If the tar is too short.
    """
    _, rows, columns = stored
    _, height, width = out.shape
    plane_voxels = rows * columns
    first = start[1] * columns + start[2]
    at = out.itemsize * (start[0] * plane_voxels + first)
    plane_bytes = out.itemsize * plane_voxels
    if width == columns and height == rows:
        reader.read_part(entry, "bin", at, out.data.cast("B"))
        return
    span = (height - 1) * columns + width
    if width == columns:
        for plane in out:
            reader.read_part(entry, "bin", at, plane.data.cast("B"))
            at += plane_bytes
        return
    scratch = np.empty(height * columns, out.dtype)
    part = scratch[:span].data.cast("B")
    for plane in out:
        reader.read_part(entry, "bin", at, part)
        plane[...] = scratch.reshape(height, columns)[:, :width]
        at += plane_bytes
