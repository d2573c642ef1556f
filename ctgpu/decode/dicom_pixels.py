"""A DICOM series as one volume: its slices side by side, in the order of their positions.

Pixels that are not compressed are copied from where they lie in their files; no library sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool, Bytes
from ctgpu.decode.dicom_frames import COMPRESSED, decoded_frames
from ctgpu.decode.dicom_header import ENCAPSULATED, SliceHeader
from ctgpu.decode.dicom_stack import stack_of
from ctgpu.decode.stored import MAX_VOLUME_BYTES, check_plausible, check_voxels
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import RawVolume, Rescale

_Plane = npt.NDArray[Any]

_SYNTAX = "1.2.840.10008.1.2"
#: Transfer syntaxes that are not compressed, and their byte order.
_NATIVE = {_SYNTAX: "<", f"{_SYNTAX}.1": "<", f"{_SYNTAX}.2": ">"}
_TAGS = {"<": b"\xe0\x7f\x10\x00", ">": b"\x7f\xe0\x00\x10"}


def memory_bytes(headers: Sequence[SliceHeader]) -> int:
    """Bytes of memory that :func:`decode_series` will need beside the files.

    0 for a series that it refuses for how its pixels are stored.
    """
    try:
        output = _Output.of("the series", headers)
    except DecodeError:
        return 0
    voxels = sum(header.rows * header.columns * header.frames for header in headers)
    return min(voxels * output.dtype.itemsize, MAX_VOLUME_BYTES)


def decode_series(
    name: str,
    files: Sequence[Bytes],
    headers: Sequence[SliceHeader],
    pool: BufferPool,
    *,
    limit_bytes: int = MAX_VOLUME_BYTES,
) -> RawVolume:
    """The volume that the files of a series make.

    Parameters
    ----------
    name : str
        What messages call the series.
    files : sequence of numpy.ndarray
        Each as stored, shape (size,), uint8.
    headers : sequence of SliceHeader
        What :func:`ctgpu.decode.dicom_header.read_header` has said of each of them.
    pool : BufferPool
        Where the memory of the volume comes from.
    limit_bytes : int
        Volumes larger than this are refused.

    Returns
    -------
    RawVolume
        Its axes H, W and D are columns, rows and slices.  Release it when done.

    Raises
    ------
    GeometryError
        If the slices are not those of one volume.
    DecodeError
        If pixels are missing, damaged, or stored as this package does not read them.
    EnvironmentFailure
        If pixels are compressed, and what decodes them is not installed.
    """
    stack = stack_of(name, headers)
    output = _Output.of(name, headers)
    size_bytes = check_voxels(name, stack.shape, output.dtype)
    check_plausible(name, size_bytes, sum(data.size for data in files), limit_bytes)
    buffer = pool.acquire(size_bytes)
    with buffer.released_on_error():
        voxels = buffer.array(stack.shape, output.dtype, order="F")
        # Slices, rows and columns, as the files have them.
        planes = voxels.T
        place_of = {place: k for k, place in enumerate(stack.order)}
        for file, (data, header) in enumerate(zip(files, headers, strict=True)):
            for frame, plane in enumerate(_planes(name, data, header)):
                output.take(plane, planes[place_of[file, frame]], header, frame)
    return RawVolume(
        voxels,
        spacing_mm=stack.spacing_mm,
        affine=stack.affine,
        header_rescale=output.rescale,
        format="dicom",
        buffer=buffer,
    )


class _Output(NamedTuple):
    """What becomes of stored values.

    Attributes
    ----------
    dtype : numpy.dtype
        Of the volume.
    rescale : Rescale
        What makes HU of it: that of all slices, or nothing.
    makes_hu : bool
        Whether slices differ in theirs, or in how they are stored, so that each becomes HU.
    """

    dtype: np.dtype[Any]
    rescale: Rescale
    makes_hu: bool

    @classmethod
    def of(cls, name: str, headers: Sequence[SliceHeader]) -> _Output:
        ranges = {(*_stored_range(name, h), pair) for h in headers for pair in _pairs(name, h)}
        dtypes, pairs = {_dtype(h) for h in headers}, {pair for *_, pair in ranges}
        if len(dtypes) == 1 and len(pairs) == 1:
            slope, intercept = pairs.pop()
            rescale = Rescale(slope, intercept, "header")
            return cls(dtypes.pop(), Rescale() if rescale.is_identity else rescale, False)
        hu = [slope * v + intercept for *ends, (slope, intercept) in ranges for v in ends]
        if all(slope.is_integer() and intercept.is_integer() for slope, intercept in pairs):
            for exact in (np.int16, np.int32):
                if np.iinfo(exact).min <= min(hu) and max(hu) <= np.iinfo(exact).max:
                    return cls(np.dtype(exact), Rescale(), True)
        return cls(np.dtype(np.float32), Rescale(), True)

    def take(self, plane: _Plane, target: _Plane, header: SliceHeader, frame: int) -> None:
        """Put one frame into its place."""
        if not self.makes_hu:
            target[...] = plane
            _drop_unused_bits(target, header)
            return
        stored = plane.copy()
        _drop_unused_bits(stored, header)
        pairs = _pairs("", header)
        slope, intercept = pairs[frame if len(pairs) > 1 else 0]
        np.copyto(target, stored * slope + intercept, casting="unsafe")


def _dtype(header: SliceHeader) -> np.dtype[Any]:
    """Of the stored values."""
    order = _NATIVE.get(header.transfer_syntax, "<")
    return np.dtype(f"{order}{'ui'[header.pixel_representation]}{header.bits_allocated // 8}")


def _stored_range(name: str, header: SliceHeader) -> tuple[int, int]:
    """Least and greatest value that can be stored.

    Raises
    ------
    DecodeError
        If pixels are stored as no CT's are, or compressed by what is not read.
    """
    bits = header.bits_stored
    if not (
        header.bits_allocated in (8, 16, 32)
        and 1 <= bits <= header.bits_allocated
        and header.high_bit == bits - 1
        and header.pixel_representation in (0, 1)
        and (header.samples_per_pixel, header.photometric) == (1, "MONOCHROME2")
    ):
        raise DecodeError(
            f"{name} stores pixels as {header.samples_per_pixel} channels of {bits} bits up to bit "
            f"{header.high_bit} of {header.bits_allocated}, or not as MONOCHROME2; wanted one "
            "channel of whole numbers that fill the low bits of 8, 16 or 32: leave the series out"
        )
    if header.transfer_syntax not in {*_NATIVE, *COMPRESSED}:
        raise DecodeError(
            f"{name} is compressed in a way that is not read here; wanted uncompressed pixels, "
            "JPEG lossless, JPEG-LS, JPEG 2000 or RLE: convert it, with `gdcmconv --raw` for "
            "instance"
        )
    if header.pixel_representation:
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


def _pairs(name: str, header: SliceHeader) -> Sequence[tuple[float, float]]:
    """Slope and intercept: of all frames, or one pair a frame.

    Raises
    ------
    DecodeError
        If one is there without the other, or a slope is zero.
    """
    slopes, intercepts = header.slopes, header.intercepts
    if not (slopes or intercepts):
        return [(1.0, 0.0)]
    count = max(len(slopes), len(intercepts))
    if not (slopes and intercepts and all(slopes)):
        raise DecodeError(
            f"{name} has slices without a slope other than zero and an intercept "
            "(RescaleSlope, RescaleIntercept): correct its headers"
        )
    slopes, intercepts = (
        of_frames * count if len(of_frames) == 1 else of_frames
        for of_frames in (slopes, intercepts)
    )
    return list(zip(slopes, intercepts, strict=True))


def _planes(name: str, data: Bytes, header: SliceHeader) -> Iterator[_Plane]:
    """The frames of one file as they are stored, each of shape (rows, columns)."""
    if not _is_at_pixels(data, header):
        raise DecodeError(
            f"{name} has a file that has changed since its header was read: start again with a "
            "new plan, or put the file back"
        )
    if header.pixel_bytes == ENCAPSULATED:
        if header.transfer_syntax not in COMPRESSED:
            raise DecodeError(
                f"{name} has compressed pixels in a file that says it has none: fetch it again"
            )
        yield from decoded_frames(name, data, header)
        return
    dtype = _dtype(header)
    row_bytes = header.columns * dtype.itemsize
    plane_bytes = header.rows * row_bytes
    size_bytes, offset = header.frames * plane_bytes, header.pixel_offset
    # Some padding may follow, but no row that the header forgot.
    if header.transfer_syntax not in _NATIVE or not (
        size_bytes <= header.pixel_bytes < size_bytes + row_bytes
        and offset + header.pixel_bytes <= data.size
    ):
        raise DecodeError(
            f"{name} has a file whose header declares {size_bytes:,} bytes of pixels, and that has "
            f"{min(header.pixel_bytes, max(0, data.size - offset)):,}: it is cut short or damaged, "
            "fetch it again"
        )
    for k in range(header.frames):
        start = offset + k * plane_bytes
        plane = data[start : start + plane_bytes].view(dtype)
        yield plane.reshape(header.rows, header.columns)


def _is_at_pixels(data: Bytes, header: SliceHeader) -> bool:
    """Whether the element of the pixels still is where it was found, as long as it was."""
    order = _NATIVE.get(header.transfer_syntax, "<")
    length = header.pixel_bytes & 0xFFFFFFFF
    head = data[max(0, header.pixel_offset - 12) : header.pixel_offset].tobytes()
    # Between tag and length may stand how the value is written.
    tag = _TAGS[order]
    return head[-4:] == length.to_bytes(4, "little" if order == "<" else "big") and (
        head.startswith(tag) or head[4:8] == tag
    )


def _drop_unused_bits(values: _Plane, header: SliceHeader) -> None:
    """Bits above those that are stored may hold anything, and in old files hold overlays."""
    unused = header.bits_allocated - header.bits_stored
    least, greatest = _stored_range("", header)
    if unused and (values.max() > greatest or values.min() < least):
        np.left_shift(values, unused, out=values)
        np.right_shift(values, unused, out=values)
