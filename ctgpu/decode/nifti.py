"""NIfTI-1 and NIfTI-2 single files, plain or in gzip, either byte order.

The header is read with nibabel's definitions; the voxels never pass through nibabel.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.decode.inflate import InflateError, gzip_head, gzip_into
from ctgpu.decode.layout import Layout, check_affine, check_plausible, check_voxels
from ctgpu.errors import DecodeError
from ctgpu.volume import Rescale

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
}


def read_layout(file_name: str, data: Bytes, limit_bytes: int) -> Layout:
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
    compressed = bytes(data[:2]) == _GZIP_MAGIC
    try:
        head = gzip_head(data, max(_HEADER_BYTES)) if compressed else bytes(data[:540])
    except InflateError as error:
        raise DecodeError(f"{file_name} is not usable: {error}; fetch it again") from error
    header, byte_order = _parse(file_name, head)

    code = int(header["datatype"])
    if code not in _DTYPES:
        raise DecodeError(
            f"{file_name} has NIfTI datatype {code}; wanted int8 … int32, uint8 … uint32, float32 "
            "or float64: save the scan as int16"
        )
    dtype = np.dtype(byte_order + _DTYPES[code])
    shape = _shape(file_name, header)
    voxel_bytes = check_voxels(file_name, shape, dtype)
    offset = _offset(file_name, header)
    size_bytes = offset + voxel_bytes
    check_plausible(file_name, size_bytes, data.size, limit_bytes)
    if not compressed and size_bytes != data.size:
        raise DecodeError(
            f"{file_name} has {data.size:,} bytes and its header declares {size_bytes:,}: it is "
            "cut short or its header is damaged; fetch it again"
        )
    return Layout(
        shape=shape,
        dtype=dtype,
        order="F",
        offset=offset,
        inflated_bytes=size_bytes if compressed else 0,
        unpack=partial(gzip_into, data) if compressed else _nothing,
        facts={
            "format": "nifti",
            "spacing_mm": tuple(float(s) for s in header["pixdim"][1:4]),
            "affine": _affine(file_name, header),
            "header_rescale": _rescale(file_name, header),
        },
    )


def _nothing(_: Bytes) -> None:
    """A plain file has no checksum of its own."""


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


def _affine(file_name: str, header: Nifti1Header) -> Any:
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):
            affine = header.get_best_affine()  # type: ignore[no-untyped-call]
    except (HeaderDataError, ValueError) as error:
        raise DecodeError(
            f"{file_name} states an orientation that cannot be read ({error}): correct its header"
        ) from error
    return check_affine(file_name, np.asarray(affine, np.float64))
