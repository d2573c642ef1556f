"""NIfTI-1 and NIfTI-2 single files, plain or in gzip, either byte order.

The header is read with nibabel's definitions; the voxels never pass through nibabel.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.decode.inflate import GZIP_MAGIC, InflateError, gzip_head, gzip_into
from ctgpu.decode.nifti_geometry import geometry_facts
from ctgpu.decode.stored import (
    MAX_VOLUME_BYTES,
    StoredVolume,
    check_end,
    check_plausible,
    check_voxels,
)
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import Rescale

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
# As much of a stream within a stream holds the header, however it was compressed.
_MOST_HEAD_BYTES = 1 << 16
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


def locate_voxels(file_name: str, data: Bytes, limit_bytes: int) -> StoredVolume:
    """Find the voxels of a ``.nii`` or ``.nii.gz`` file; its first bytes tell which it is.

    Parameters
    ----------
    file_name : str
        For messages.
    data : numpy.ndarray
        The file, shape (size,), uint8.
    limit_bytes : int
        Volumes larger than this are refused.

    Raises
    ------
    DecodeError
        If the file is not a NIfTI volume that this package reads.
    """
    stream = _Stream.open(file_name, data)
    header, byte_order = _parse(file_name, stream.head)

    code = int(header["datatype"])
    if code not in _DTYPES:
        raise DecodeError(
            f"{file_name} has NIfTI datatype {code}; wanted int8 … int64, uint8 … uint64, float32 "
            "or float64: save the scan as int16"
        )
    dtype = np.dtype(byte_order + _DTYPES[code])
    shape = _shape(file_name, header)
    voxel_bytes = check_voxels(file_name, shape, dtype)
    offset = _offset(file_name, header)
    size_bytes = offset + voxel_bytes
    check_plausible(file_name, size_bytes, stream.stored_bytes, limit_bytes)
    slice_bytes = voxel_bytes // shape[2]
    if not stream.levels:
        check_end(file_name, size_bytes, data.size, slice_bytes)
    return StoredVolume(
        shape=shape,
        dtype=dtype,
        order="F",
        offset=offset,
        inflated_bytes=stream.memory_bytes(size_bytes),
        unpack=partial(stream.unpack, size_bytes, slice_bytes),
        facts={
            "format": "nifti",
            "header_rescale": _rescale(file_name, header),
            **geometry_facts(file_name, header),
        },
    )


class _Stream(NamedTuple):
    """A NIfTI file as it is stored: plain, in gzip, or in gzip twice.

    Twice is what ``webdataset.TarWriter`` makes of the bytes of a ``.nii.gz``.
    """

    name: str
    data: Bytes
    levels: int
    head: bytes
    #: Size where it was gzipped once, or not at all.
    stored_bytes: int

    @classmethod
    def open(cls, name: str, data: Bytes) -> _Stream:
        head_bytes = max(_HEADER_BYTES)
        if bytes(data[:2]) != GZIP_MAGIC:
            return cls(name, data, 0, bytes(data[:head_bytes]), data.size)
        try:
            head = gzip_head(data, head_bytes)
            if head[:2] != GZIP_MAGIC:
                return cls(name, data, 1, head, data.size)
            inner = np.frombuffer(gzip_head(data, _MOST_HEAD_BYTES), np.uint8)
            head = gzip_head(inner, head_bytes)
        except InflateError as error:
            raise DecodeError(f"{name} is not usable: {error}; fetch it again") from error
        # A gzip stream ends with the size of what it holds.
        stored_bytes = int.from_bytes(data[-4:].tobytes(), "little")
        check_plausible(name, stored_bytes, data.size, MAX_VOLUME_BYTES)
        return cls(name, data, 2, head, stored_bytes)

    def memory_bytes(self, size_bytes: int) -> int:
        """What inflating takes: the NIfTI file, and behind it the stream that it lies in."""
        return (0, size_bytes, size_bytes + self.stored_bytes)[self.levels]

    def unpack(self, size_bytes: int, slice_bytes: int, memory: Bytes) -> None:
        """Fill the first `size_bytes` of memory.  A plain file has no checksum of its own."""
        if not self.levels:
            return
        out, stream = memory[:size_bytes], self.data
        if self.levels == 2:
            stream = memory[size_bytes:]
            if gzip_into(self.data, stream):
                raise InflateError("it was gzipped twice and does not end with the inner size")
        surplus_bytes = gzip_into(stream, out, most_surplus_bytes=slice_bytes)
        check_end(self.name, size_bytes, size_bytes + surplus_bytes, slice_bytes)


def _parse(file_name: str, head: bytes) -> tuple[Nifti1Header, str]:
    # Importing nibabel takes longer than most commands, so only a file that needs it pays.
    import nibabel

    for byte_order in "<>":
        size = int(np.frombuffer(head[:4].ljust(4, b"\0"), byte_order + "i4")[0])
        if size in _HEADER_BYTES and len(head) >= size:
            header_class = getattr(nibabel, _HEADER_BYTES[size])
            header = header_class(head[:size], endianness=byte_order, check=False)
            magic = header["magic"].tobytes()[:3]
            if magic in (b"n+1", b"n+2"):
                return header, byte_order
            raise DecodeError(
                f"{file_name} has the NIfTI magic {magic!r}; wanted a single file, n+1 or n+2: "
                "convert header and image pairs to .nii.gz"
            )
    raise DecodeError(
        f"{file_name} does not begin with a NIfTI header; wanted a .nii or .nii.gz file: "
        "fetch it again or leave it out"
    )


def _shape(file_name: str, header: Nifti1Header) -> tuple[int, ...]:
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise DecodeError(
            f"{file_name} declares {dim[0]} dimensions; wanted 3: its header is damaged, fetch it "
            "again"
        )
    shape = dim[1 : 1 + dim[0]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _offset(file_name: str, header: Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    if not offset.is_integer() or offset < header.single_vox_offset:
        raise DecodeError(
            f"{file_name} places its voxels at byte {offset:g}; wanted {header.single_vox_offset} "
            "or more: its header is damaged, fetch it again"
        )
    return int(offset)


def _rescale(file_name: str, header: Nifti1Header) -> Rescale:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # By the standard a slope of zero, and by custom one that is not finite, states no scaling.
    if slope == 0 or not math.isfinite(slope) or (slope, intercept) == (1, 0):
        return Rescale()
    if not math.isfinite(intercept):
        raise DecodeError(
            f"{file_name} has scl_slope {slope:g} and scl_inter {intercept:g}; wanted finite "
            "numbers: correct the header"
        )
    return Rescale(slope, intercept, "header")
