"""From the bytes of a file to a :class:`ctgpu.volume.raw.RawVolume`."""

from __future__ import annotations

import numpy as np

from ctgpu.buffers import Buffer, BufferPool, Bytes
from ctgpu.decode import nifti, npz
from ctgpu.decode.inflate import InflateError, inflate_backend
from ctgpu.decode.mistaken import HEAD_BYTES, mistaken_for
from ctgpu.decode.raw import decode_raw
from ctgpu.decode.stored import MAX_VOLUME_BYTES, StoredVolume
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import RawVolume

__all__ = ["MAX_VOLUME_BYTES", "decode", "decode_raw", "inflate_backend", "inflated_size"]

_IN_PLACE = np.empty(0, np.uint8)


def decode(
    file_name: str, buffer: Buffer, pool: BufferPool, *, limit_bytes: int = MAX_VOLUME_BYTES
) -> RawVolume:
    """The volume inside the bytes of one file.

    Every size that the file declares is checked before memory is allocated for it, and every
    checksum it carries is verified.

    Parameters
    ----------
    file_name : str
        Its suffix tells the format: ``.npz``, ``.nii`` or ``.nii.gz``.
    buffer : Buffer
        The file as stored.  Taken over in every case: it holds the voxels of the returned volume
        where they are used in place, and has been released otherwise.
    pool : BufferPool
        Where the memory to inflate into comes from.
    limit_bytes : int
        Volumes larger than this are refused.

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
            stored = _locate_voxels(file_name, buffer.bytes, limit_bytes)
            if not stored.inflated_bytes:
                stored.unpack(_IN_PLACE)
                return stored.volume(buffer)
            inflated = pool.acquire(stored.inflated_bytes)
            with inflated.released_on_error():
                stored.unpack(inflated.bytes)
                volume = stored.volume(inflated)
        except InflateError as error:
            raise DecodeError(f"{file_name} is not usable: {error}; fetch it again") from error
    buffer.release()
    return volume


def inflated_size(file_name: str, data: Bytes) -> int:
    """Bytes of memory that :func:`decode` will need beside the file itself.

    Parameters
    ----------
    file_name : str
        As :func:`decode` takes it.
    data : numpy.ndarray
        The file as stored, shape (size,), uint8.

    Returns
    -------
    int
        0 where the voxels are used in place, and for a file that :func:`decode` refuses.
    """
    try:
        return _locate_voxels(file_name, data, MAX_VOLUME_BYTES).inflated_bytes
    except (DecodeError, InflateError):
        return 0


def _locate_voxels(file_name: str, data: Bytes, limit_bytes: int) -> StoredVolume:
    lower = file_name.lower()
    if not lower.endswith((".npz", ".nii", ".nii.gz")):
        raise DecodeError(f"{file_name} is no volume; wanted a name in .npz, .nii or .nii.gz")
    locate_voxels = npz.locate_voxels if lower.endswith(".npz") else nifti.locate_voxels
    try:
        return locate_voxels(file_name, data, limit_bytes)
    except DecodeError as error:
        if (found := mistaken_for(data[:HEAD_BYTES].tobytes())) is not None:
            raise DecodeError(f"{file_name} {found}") from error
        raise
