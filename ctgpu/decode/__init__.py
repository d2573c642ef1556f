"""From the bytes of a file to a :class:`ctgpu.volume.raw.RawVolume`."""

from __future__ import annotations

import numpy as np

from ctgpu.buffers import Buffer, BufferPool, Bytes
from ctgpu.data_sets.fields import AS_STORED, ArrayRule
from ctgpu.decode import metaimage, nifti, npy, npz, nrrd
from ctgpu.decode.inflate import InflateError, inflate_backend
from ctgpu.decode.mistaken import HEAD_BYTES, mistaken_for
from ctgpu.decode.payload import MOST_HEADER_BYTES
from ctgpu.decode.raw import decode_raw
from ctgpu.decode.stored import MAX_VOLUME_BYTES, StoredVolume
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import RawVolume
from ctgpu.volume.ref import VOLUME_SUFFIXES

__all__ = [
    "MAX_VOLUME_BYTES",
    "MOST_HEADER_BYTES",
    "data_file",
    "decode",
    "decode_raw",
    "inflate_backend",
    "inflated_size",
]

_IN_PLACE = np.empty(0, np.uint8)


def decode(
    file_name: str,
    buffer: Buffer,
    pool: BufferPool,
    *,
    limit_bytes: int = MAX_VOLUME_BYTES,
    arrays: ArrayRule = AS_STORED,
    header: bytes | None = None,
) -> RawVolume:
    """The volume inside the bytes of one file.

    Every size that the file declares is checked before memory is allocated for it, and every
    checksum it carries is verified.

    Parameters
    ----------
    file_name : str
        Its suffix tells the format: one of :data:`ctgpu.volume.ref.VOLUME_SUFFIXES`.
    buffer : Buffer
        The file as stored.  Taken over in every case: it holds the voxels of the returned volume
        where they are used in place, and has been released otherwise.
    pool : BufferPool
        Where the memory to inflate into comes from.
    limit_bytes : int
        Volumes larger than this are refused.
    arrays : ArrayRule
        What an ``.npz`` or ``.npy`` does not say of itself.
    header : bytes, optional
        The ``.mhd`` or ``.nhdr`` file, where the voxels lie in one of their own.

    Returns
    -------
    RawVolume
        Release it when done.

    Raises
    ------
    DecodeError
        If the bytes are not one whole volume in a format and dtype that this package reads.
    """
    with buffer.released_on_error():
        try:
            stored = _locate_voxels(file_name, buffer.bytes, limit_bytes, arrays, header)
            if not stored.inflated_bytes:
                stored.unpack(_IN_PLACE)
                return _with_axes(stored.volume(buffer), arrays.axes)
            inflated = pool.acquire(stored.inflated_bytes)
            with inflated.released_on_error():
                stored.unpack(inflated.bytes)
                volume = stored.volume(inflated)
        except InflateError as error:
            raise DecodeError(f"{file_name} is not usable: {error}; fetch it again") from error
    buffer.release()
    return _with_axes(volume, arrays.axes)


def inflated_size(
    file_name: str, data: Bytes, arrays: ArrayRule = AS_STORED, header: bytes | None = None
) -> int:
    """Bytes of memory that :func:`decode` will need beside the file itself.

    Parameters
    ----------
    file_name : str
        As :func:`decode` takes it.
    data : numpy.ndarray
        The file as stored, shape (size,), uint8.
    arrays, header : optional
        As :func:`decode` takes them.

    Returns
    -------
    int
        0 where the voxels are used in place, and for a file that :func:`decode` refuses.
    """
    try:
        return _locate_voxels(file_name, data, MAX_VOLUME_BYTES, arrays, header).inflated_bytes
    except (DecodeError, InflateError):
        return 0


def data_file(file_name: str, header: bytes) -> str | None:
    """Name of the file beside a header that holds its voxels; None where they follow it.

    Parameters
    ----------
    file_name : str
        Of the header: ``.mhd`` or ``.nhdr``.
    header : bytes
        The file, or what it begins with.

    Raises
    ------
    DecodeError
        If the header is none, or names a file that does not lie beside it.
    """
    of = metaimage.data_file if file_name.lower().endswith(".mhd") else nrrd.data_file
    return of(file_name, header)


def _locate_voxels(
    file_name: str, data: Bytes, limit_bytes: int, arrays: ArrayRule, header: bytes | None
) -> StoredVolume:
    lower = file_name.lower()
    try:
        if lower.endswith(".npz"):
            return npz.locate_voxels(file_name, data, limit_bytes, arrays.member)
        if lower.endswith(".npy"):
            return npy.locate_voxels(file_name, data, limit_bytes)
        if lower.endswith((".mha", ".mhd")):
            return metaimage.locate_voxels(file_name, data, limit_bytes, header)
        if lower.endswith((".nrrd", ".nhdr")):
            return nrrd.locate_voxels(file_name, data, limit_bytes, header)
        if lower.endswith((".nii", ".nii.gz")):
            return nifti.locate_voxels(file_name, data, limit_bytes)
    except DecodeError as error:
        head = data[:HEAD_BYTES].tobytes() if header is None else header[:HEAD_BYTES]
        if (found := mistaken_for(head)) is not None:
            raise DecodeError(f"{file_name} {found}") from error
        raise
    raise DecodeError(f"{file_name} is no volume; wanted a name in {', '.join(VOLUME_SUFFIXES)}")


def _with_axes(volume: RawVolume, axes: str) -> RawVolume:
    """A bare array, whose axes were stored in this order, as (H, W, D); another view, no copy.

    Spacing and affine that the file states for its axes follow them.
    """
    if not volume.is_bare or axes == "HWD":
        return volume
    order = [axes.index(axis) for axis in "HWD"]
    volume.voxels = volume.voxels.transpose(order)
    if volume.spacing_mm is not None and "ZSpacing" not in volume.metadata:
        h, w, d = (volume.spacing_mm[place] for place in order)
        volume.spacing_mm = h, w, d
    if volume.affine is not None:
        volume.affine = volume.affine[:, [*order, 3]]
    return volume
