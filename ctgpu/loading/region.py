"""Boxes of voxels: where they are in what is stored, and how few bytes bring them in."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.errors import UsageError
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Layout, Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.stored import numpy_dtype

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
    extension: str,
    stored: Shape,
    start: Shape,
    out: npt.NDArray[Any],
) -> None:
    """Read a box of ``bin`` or ``seg`` into `out`, unverified.

    It is read in one piece, or plane by plane of the slowest axis: of each plane the rows of the
    box, from its first voxel to its last.  `out` is of the type that is stored.

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
        reader.read_part(entry, extension, at, out.data.cast("B"))
        return
    span = (height - 1) * columns + width
    if width == columns:
        for plane in out:
            reader.read_part(entry, extension, at, plane.data.cast("B"))
            at += plane_bytes
        return
    scratch = np.empty(height * columns, out.dtype)
    part = scratch[:span].data.cast("B")
    for plane in out:
        reader.read_part(entry, extension, at, part)
        plane[...] = scratch.reshape(height, columns)[:, :width]
        at += plane_bytes


def read_box(
    reader: ShardReader,
    entry: SampleEntry,
    extension: str,
    stored: Shape,
    start: Shape,
    out: npt.NDArray[Any],
    *,
    scratch: BufferPool | None,
) -> None:
    """Read a box of ``bin`` or ``seg``, or all of it, into `out`.

    Parameters
    ----------
    reader, entry, extension, stored, start, out
        As :func:`read_region` takes them.
    scratch : BufferPool or None
        Lends the memory for the whole of it, to hold that against its checksum; None does not.

    Raises
    ------
    FetchError
        If the tar is too short, or the bytes do not have their checksum.
    """
    if out.shape == stored:
        reader.read_into(entry, extension, out.data.cast("B"), verify=scratch is not None)
    elif scratch is not None:
        with scratch.acquire(entry.members[extension].size_bytes) as buffer:
            reader.read_into(entry, extension, buffer.bytes.data)
            box = tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))
            out[...] = buffer.array(stored, out.dtype)[box]
    else:
        read_region(reader, entry, extension, stored, start, out)


def payloads(
    named: str,
    spec: Spec,
    masks: MaskFormat | None,
    out: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None,
) -> dict[str, npt.NDArray[Any]]:
    """What is read of a sample into a caller's arrays, by its extension.

    Parameters
    ----------
    named : str
        What messages call the data set.
    spec, masks
        What is stored.
    out, mask : numpy.ndarray
        For a box of the volume, and for the same box of the mask, if that is wanted.

    Raises
    ------
    UsageError
        If an array is of another type or shape than what is stored, or there are no masks.
    """
    _require_type("out", out, named, spec.dtype, numpy_dtype(spec.dtype))
    if mask is None:
        return {"bin": out}
    if masks is None:
        raise UsageError(f"mask is given, and {named} has no masks; leave it out")
    _require_type("mask", mask, named, masks.dtype, masks.numpy_dtype)
    if mask.shape != out.shape:
        raise UsageError(f"mask has the shape {mask.shape}; give it that of out, {out.shape}")
    return {"bin": out, "seg": mask}


def _require_type(
    name: str, array: npt.NDArray[Any], named: str, stored: str, wanted: np.dtype[Any]
) -> None:
    if array.dtype != wanted:
        raise UsageError(
            f"{name} is {array.dtype}, and {named} holds {stored}; give it an array of {wanted}"
        )
