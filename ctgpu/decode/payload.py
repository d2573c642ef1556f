"""Voxels behind a header of text, or in a file beside it: what MetaImage and NRRD share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.decode.inflate import InflateError, gzip_into, zlib_into
from ctgpu.decode.stored import (
    StoredVolume,
    check_end,
    check_limit,
    check_plausible,
    check_voxels,
)
from ctgpu.errors import DecodeError

#: No header of text is longer.
MOST_HEADER_BYTES = 1 << 16

Compression = Literal["gzip", "zlib"]
_INFLATE: Mapping[Compression, Callable[[Bytes, Bytes], int]] = {
    "gzip": gzip_into,
    "zlib": zlib_into,
}


@dataclass(frozen=True, slots=True)
class Payload:
    """What a header says about its voxels, of which the first axis is fastest.

    Attributes
    ----------
    shape : tuple of int
        (H, W, D).
    dtype : numpy.dtype
        Byte order included.
    data_file : str or None
        Name of the file that holds them; None where they follow the header.
    offset : int or None
        Where they begin, in bytes from the end of the header or from the beginning of their own
        file; None where they are what that file ends with.
    compression : {"gzip", "zlib"} or None
        How they are stored.
    facts : dict
        As :class:`ctgpu.decode.stored.StoredVolume` has them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data_file: str | None
    offset: int | None = 0
    compression: Compression | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def locate(self, name: str, data: Bytes, limit_bytes: int, start: int) -> StoredVolume:
        """Find the voxels.

        Parameters
        ----------
        name : str
            For messages.
        data : numpy.ndarray
            What they are in, shape (size,), uint8.
        limit_bytes : int
            Volumes larger than this are refused.
        start : int
            Where the header ends in `data`.

        Raises
        ------
        DecodeError
            If these bytes cannot hold such a volume.
        """
        voxel_bytes = check_voxels(name, self.shape, self.dtype)
        check_limit(name, voxel_bytes, limit_bytes)
        at_end = max(start, data.size - voxel_bytes)
        offset = at_end if self.offset is None else start + self.offset
        stored_bytes = max(0, data.size - offset)
        if self.compression is None:
            check_end(name, offset + voxel_bytes, data.size, voxel_bytes // self.shape[2])
        else:
            check_plausible(name, voxel_bytes, stored_bytes, limit_bytes)
        packed = self.compression is not None
        return StoredVolume(
            shape=self.shape,
            dtype=self.dtype,
            order="F",
            offset=0 if packed else offset,
            inflated_bytes=voxel_bytes if packed else 0,
            unpack=partial(self._unpack, data, offset),
            facts=self.facts,
        )

    def _unpack(self, data: Bytes, offset: int, memory: Bytes) -> None:
        if self.compression is not None and _INFLATE[self.compression](data[offset:], memory):
            raise InflateError("it inflates to more than was declared")


def own_name(name: str, data_file: str) -> str:
    """The name of a data file, if it lies beside its header.

    Raises
    ------
    DecodeError
        If it may be anywhere else: a header from elsewhere must not choose which files are read.
    """
    if data_file in ("", ".", "..") or any(c in data_file for c in "/\\\0"):
        raise DecodeError(
            f"{name} says that its voxels lie in {data_file[:80]!r}; wanted the name of one file "
            "beside it: put them there, and correct the header"
        )
    return data_file


def numbers(name: str, key: str, text: str, count: int) -> list[float]:
    """Finite numbers of a header.

    Raises
    ------
    DecodeError
        If they are anything else, or of another number.
    """
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DecodeError(
            f"{name} has {key} {text[:60]!r}; wanted {count} finite numbers: correct its header"
        )
    return values


def whole(name: str, key: str, text: str) -> list[int]:
    """Whole numbers of a header.

    Raises
    ------
    DecodeError
        If they are anything else.
    """
    try:
        return [int(word[:20]) for word in text.split()]
    except ValueError:
        raise DecodeError(
            f"{name} has {key} {text[:60]!r}; wanted whole numbers: correct its header"
        ) from None


def three_axes(shape: list[int]) -> tuple[int, ...]:
    """A shape without the axes of one that may follow the third."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)
