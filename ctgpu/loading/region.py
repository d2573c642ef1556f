"""Boxes of voxels: where they are in what is stored, and how few bytes bring them in."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.errors import UsageError
from ctgpu.shards.compressed import CompressedMember
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


def dhw_order(shape: Shape, layout: Layout) -> Shape:
    """A triple in the order in which the axes are stored as (D, H, W)."""
    if layout == "DHW":
        return shape
    h, w, d = shape
    return d, h, w


def memory_order(shape: Shape, layout: Layout, memory: Layout) -> Shape:
    """A triple in the order in which the axes are stored, in the order that they have in memory."""
    d, h, w = dhw_order(shape, layout)
    return stored_order((h, w, d), memory)


def in_stored_order(volume: VolumeT, memory: Layout, layout: Layout) -> VolumeT:
    """A view of (…, axes in the order of `memory`) as (…, stored axes)."""
    return to_hwd(volume, memory) if layout == "HWD" else to_dhw(volume, memory)


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


class Payload(NamedTuple):
    """What is read of a sample into an array of a caller.

    Attributes
    ----------
    extension : str
        Of the member that is read.
    dtype : str
        As it is stored, by the name that spec or masks give it.
    out : numpy.ndarray
        For a box of it, axes in stored order.
    """

    extension: str
    dtype: str
    out: npt.NDArray[Any]


def read_box(
    reader: ShardReader,
    entry: SampleEntry,
    payload: Payload,
    spec: Spec,
    start: Shape,
    *,
    scratch: BufferPool,
    verify: bool,
) -> None:
    """Read a box of a volume or a mask, or all of it.

    Parameters
    ----------
    reader, entry
        The sample.
    payload : Payload
        What of it, and where to; :func:`payloads` has checked it.
    spec : Spec
        What is stored.
    start : tuple of int
        First voxel of the box, in stored order.
    scratch : BufferPool
        Lends memory for what has to be read beside the box.
    verify : bool
        Hold what is read against its checksums: of a compressed volume the tiles that the box
        meets, otherwise all of it, which is read for that.

    Raises
    ------
    FetchError
        If the tar is too short, or the bytes do not have their checksum.
    """
    extension, dtype, out = payload
    stored = spec.stored_shape
    if entry.is_compressed:
        shape_dhw = dhw_order(stored, spec.layout)
        member = CompressedMember(reader, entry, extension, shape_dhw, dtype)
        out_dhw = to_dhw(out, spec.layout)
        member.read_box(dhw_order(start, spec.layout), out_dhw, scratch, verify=verify)
    elif out.shape == stored:
        reader.read_into(entry, extension, out.data.cast("B"), verify=verify)
    elif verify:
        with scratch.acquire(entry.members[extension].size_bytes) as buffer:
            reader.read_into(entry, extension, buffer.bytes.data)
            box = tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))
            out[...] = buffer.array(stored, out.dtype)[box]
    else:
        read_region(reader, entry, extension, stored, start, out)


def read_labels_and_report(
    reader: ShardReader, entry: SampleEntry
) -> tuple[npt.NDArray[np.float32], str]:
    """What stands beside the volume of a sample, verified: labels (classes,), and text.

    Raises
    ------
    FetchError
        If the tar is too short, or the bytes do not have their checksum.
    """
    labels = np.frombuffer(bytearray(reader.read(entry, "cls")), "<f4")
    return labels, reader.read(entry, "txt").decode()


def payloads(
    named: str,
    spec: Spec,
    masks: MaskFormat | None,
    entry: SampleEntry,
    start: Shape,
    out: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None,
) -> list[Payload]:
    """What is read of a sample into a caller's arrays.

    Parameters
    ----------
    named : str
        What messages call the data set.
    spec, masks
        What is stored.
    entry : SampleEntry
        The sample.
    start : tuple of int
        First voxel of the box, in stored order.
    out, mask : numpy.ndarray
        For a box of the volume, and for the same box of the mask, if that is wanted.

    Raises
    ------
    UsageError
        If an array is of another type or shape than what is stored, the box does not lie within
        it, or there are no masks.
    """
    wanted = [Payload(entry.volume_extension, spec.dtype, out)]
    _require_type("out", out, named, spec.dtype, numpy_dtype(spec.dtype))
    if mask is not None:
        if masks is None:
            raise UsageError(f"mask is given, and {named} has no masks; leave it out")
        _require_type("mask", mask, named, masks.dtype, masks.numpy_dtype)
        if mask.shape != out.shape:
            raise UsageError(f"mask has the shape {mask.shape}; give it that of out, {out.shape}")
        wanted.append(Payload(entry.mask_extension or "seg", masks.dtype, mask))
    within = len(start) == out.ndim == len(spec.stored_shape) and all(
        0 <= first <= first + count <= size and count
        for first, count, size in zip(start, out.shape, spec.stored_shape, strict=True)
    )
    if not within:
        raise UsageError(
            f"a box of {out.shape} voxels from {tuple(start)} is not within the "
            f"{spec.stored_shape} of {named}"
        )
    if not (entry.is_compressed or all(one.out.flags.c_contiguous for one in wanted)):
        raise UsageError(
            f"out or mask is not contiguous, and volumes of {named} that are not compressed are "
            "read into contiguous memory, their axes in stored order"
        )
    return wanted


def _require_type(
    name: str, array: npt.NDArray[Any], named: str, stored: str, wanted: np.dtype[Any]
) -> None:
    if array.dtype != wanted:
        raise UsageError(
            f"{name} is {array.dtype}, and {named} holds {stored}; give it an array of {wanted}"
        )
