"""``.npy`` files: one bare array.  Nothing is unpickled."""

from __future__ import annotations

import io
import threading
import tokenize
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ctgpu.buffers import Bytes
from ctgpu.decode.stored import StoredVolume, check_limit, check_voxels
from ctgpu.errors import DecodeError

#: As much as a header may take.
MOST_HEADER_BYTES = 10_000
#: As much of a file as holds any header, with what comes before it.
HEAD_BYTES = 2 * MOST_HEADER_BYTES
# NumPy's reader parses the header as Python.  In CPython 3.11 and 3.12 two threads that do so at
# once may fail with SystemError (gh-106905), and warnings are silenced for the whole process.
_HEADER_LOCK = threading.Lock()
# What NumPy's reader raises on a header that is no header.
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class NpyHeader(NamedTuple):
    """What stands before the numbers of an array.

    Attributes
    ----------
    shape : tuple of int
        As declared.
    fortran_order : bool
        Whether the first axis is fastest.
    dtype : numpy.dtype
        As declared; byte order included.
    size_bytes : int
        Of the header.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    size_bytes: int

    def require_numbers(self, name: str) -> None:
        """Refuse pickled objects.

        Raises
        ------
        DecodeError
        """
        if self.dtype.hasobject:
            raise DecodeError(
                f"{name} is a pickled array of Python objects, which is never opened; wanted plain "
                "numbers: save the scan as int16, and metadata as JSON bytes"
            )


def read_header(name: str, head: bytes) -> NpyHeader:
    """The header that some bytes begin with.

    Parameters
    ----------
    name : str
        What messages call the array.
    head : bytes
        The first :data:`HEAD_BYTES` of the array as stored, or all of it where it has less.

    Raises
    ------
    DecodeError
        If they do not begin with one.
    """
    file = io.BytesIO(head)
    try:
        version = npy.read_magic(file)
        if version not in _READERS:
            raise ValueError(f".npy version {version} is not supported")
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = _READERS[version](file, max_header_size=MOST_HEADER_BYTES)
    except _HEADER_ERRORS as error:
        raise unreadable_header(name, error) from error
    return NpyHeader(shape, fortran_order, dtype, file.tell())


def unreadable_header(name: str, error: Exception) -> DecodeError:
    """What is said of an array without a header."""
    reason = str(error).partition("\n")[0][:80]
    return DecodeError(
        f"{name} does not begin with a readable .npy header ({reason}): the file is damaged or "
        "of another kind; fetch it again"
    )


def locate_voxels(file_name: str, data: Bytes, limit_bytes: int) -> StoredVolume:
    """Find the voxels of an ``.npy`` file, which are used where they lie.

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
        If the file is not an array that is a volume.
    """
    header = read_header(file_name, data[:HEAD_BYTES].tobytes())
    header.require_numbers(file_name)
    voxel_bytes = check_voxels(file_name, header.shape, header.dtype)
    check_limit(file_name, voxel_bytes, limit_bytes)
    if header.size_bytes + voxel_bytes != data.size:
        raise DecodeError(
            f"{file_name} has {data.size:,} bytes and its header declares "
            f"{header.size_bytes + voxel_bytes:,}: the file is damaged; fetch it again"
        )
    return StoredVolume(
        shape=header.shape,
        dtype=header.dtype,
        order="F" if header.fortran_order else "C",
        offset=header.size_bytes,
        inflated_bytes=0,
        unpack=lambda _: None,
        facts={"format": "npy"},
    )
