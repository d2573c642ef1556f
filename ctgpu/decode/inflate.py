"""Deflate streams into memory that is already there.

One-shot calls are held back by page faults on fresh output, so both backends fill a buffer that
is used again and again, release the GIL, and verify every checksum:

- ``libdeflate``, through the C++ module, where CMake found the library or a wheel brings it;
- ``isal`` (from PyPI) everywhere else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib

from ctgpu.buffers import Bytes

#: No deflate stream inflates to more than this many times its size.
MAX_RATIO = 1032

# The one way of isal to inflate memory into memory; its type stub knows files only.
_isal: Any = isal_zlib
_ISAL_ERRORS = (_isal.IsalError, OSError, EOFError)
# isal counts in 32 bits.
_PIECE_BYTES = 1 << 30
_STEP_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"


class InflateError(Exception):
    """A stream is damaged, or does not inflate to what was declared."""


class Backend(NamedTuple):
    """One way to inflate.

    Attributes
    ----------
    name : str
        For records and ``ctgpu doctor``.
    gzip_into : callable
        ``(data, out)``: fills `out` exactly from all gzip members of `data`.
    member_into : callable
        ``(file, start, stop, out, crc)``: fills `out` exactly from the bare deflate stream
        ``file[start:stop]`` of a zip file and holds it against its CRC-32.  At least 10 writable
        bytes come before and 8 after the stream, as in every zip file; they may be changed
        meanwhile and are restored.
    """

    name: str
    gzip_into: Callable[[Bytes, Bytes], None]
    member_into: Callable[[Bytes, int, int, Bytes, int], None]


def _isal_gzip_into(data: Bytes, out: Bytes) -> None:
    reader, view, filled = _isal._GzipReader(data.data), out.data, 0
    try:
        while count := reader.readinto(view[filled : filled + _PIECE_BYTES]):
            filled += count
        surplus = reader.read(1)
    except _ISAL_ERRORS as error:
        raise InflateError(f"its deflate stream is damaged ({error})") from error
    if surplus:
        raise InflateError("it inflates to more than was declared")
    if filled < len(out):
        raise InflateError("it inflates to less than was declared")


def _isal_member_into(file: Bytes, start: int, stop: int, out: Bytes, crc: int) -> None:
    # isal writes straight into a buffer for gzip streams only, so the member is made one in place:
    # the same deflate stream between another header and trailer.
    framed = file.data[start - len(_GZIP_HEADER) : stop + 8]
    before, after = bytes(framed[: len(_GZIP_HEADER)]), bytes(framed[-8:])
    framed[: len(_GZIP_HEADER)] = _GZIP_HEADER
    framed[-8:] = struct.pack("<II", crc, len(out) & 0xFFFFFFFF)
    try:
        _isal_gzip_into(file[start - len(_GZIP_HEADER) : stop + 8], out)
    finally:
        framed[: len(_GZIP_HEADER)], framed[-8:] = before, after


def _libdeflate(native: Any) -> Backend:
    def gzip_into(data: Bytes, out: Bytes) -> None:
        try:
            native.gzip_into(data, out)
        except ValueError as error:
            raise InflateError(str(error)) from error

    def member_into(file: Bytes, start: int, stop: int, out: Bytes, crc: int) -> None:
        try:
            native.deflate_into(file[start:stop], out)
        except ValueError as error:
            raise InflateError(str(error)) from error
        check_crc32(out, crc)

    return Backend("libdeflate", gzip_into, member_into)


def _available() -> dict[str, Backend]:
    backends = {"isal": Backend("isal", _isal_gzip_into, _isal_member_into)}
    try:
        from ctgpu import _native
    except ImportError:
        return backends
    if hasattr(_native, "gzip_into"):
        backends = {"libdeflate": _libdeflate(_native), **backends}
    return backends


#: What can inflate here, fastest first.
BACKENDS = _available()
_FASTEST = next(iter(BACKENDS.values()))
member_into = _FASTEST.member_into


def inflate_backend() -> str:
    """Name of the library that inflates here: ``"libdeflate"`` or ``"isal"``."""
    return _FASTEST.name


def gzip_into(data: Bytes, out: Bytes, *, most_surplus_bytes: int = 0) -> int:
    """Fill `out` from the gzip members of `data`, as forgiving as gzip and nibabel are.

    What follows the last member and is none itself is ignored: padding with zeros, and anything
    else that does not begin as a member does.

    Parameters
    ----------
    data : numpy.ndarray
        The stream, shape (size,), uint8.
    out : numpy.ndarray
        Shape (size,), uint8.
    most_surplus_bytes : int
        So many bytes behind those of `out` are inflated too, to hold them against their checksum,
        and dropped.

    Returns
    -------
    int
        How many bytes were dropped; one more than `most_surplus_bytes` where there are more, of
        which the rest was not looked at.

    Raises
    ------
    InflateError
        If a member is damaged or cut, or `out` is not filled.
    """
    try:
        _FASTEST.gzip_into(data, out)
        return 0
    except InflateError:
        return _gzip_into_step_by_step(data, out, most_surplus_bytes)


def _gzip_into_step_by_step(data: Bytes, out: Bytes, most_surplus_bytes: int) -> int:
    """For streams that the backends refuse, which are few."""
    filled = surplus = 0
    for piece in _pieces(data, _STEP_BYTES):
        kept = min(len(piece), len(out) - filled)
        out[filled : filled + kept] = np.frombuffer(piece, np.uint8, kept)
        filled += kept
        surplus += len(piece) - kept
        if surplus > most_surplus_bytes:
            return most_surplus_bytes + 1
    if filled < len(out):
        raise InflateError(
            f"it inflates to {filled:,} bytes and {len(out):,} are declared: it is cut short"
        )
    return surplus


def zlib_into(data: Bytes, out: Bytes) -> int:
    """Fill `out` from the one zlib stream in `data`; what follows the stream is ignored.

    Returns
    -------
    int
        0: an inner size that is not that of `out` is an error.

    Raises
    ------
    InflateError
        If the stream is damaged or cut, or does not inflate to exactly `out`.
    """
    stream = isal_zlib.decompressobj(zlib.MAX_WBITS)
    filled = taken = 0
    while not stream.eof:
        step = data[taken : taken + _STEP_BYTES].data
        try:
            piece = stream.decompress(step, _STEP_BYTES)
        except _ISAL_ERRORS as error:
            raise InflateError(f"its zlib stream is damaged ({error})") from error
        used = len(step) - len(stream.unconsumed_tail) - len(stream.unused_data)
        if not (used or piece or stream.eof):
            raise InflateError("its zlib stream is damaged (it is cut short)")
        taken += used
        if filled + len(piece) > len(out):
            raise InflateError("it inflates to more than was declared")
        out[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled < len(out):
        raise InflateError("it inflates to less than was declared")
    return 0


def gzip_head(data: Bytes, size_bytes: int) -> bytes:
    """The first bytes that a gzip stream inflates to, fewer where it ends before.

    Raises
    ------
    InflateError
        If they cannot be inflated.
    """
    head = b""
    for piece in _pieces(data, max(size_bytes, 1 << 12)):
        head += piece
        if len(head) >= size_bytes:
            break
    return head[:size_bytes]


def _pieces(data: Bytes, step_bytes: int) -> Iterator[bytes]:
    """What the members of a gzip stream inflate to, up to what is no member, piece by piece."""
    position = 0
    while bytes(data[position : position + 2]) == GZIP_MAGIC:
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not member.eof:
            step = data[position : position + step_bytes].data
            try:
                piece = member.decompress(step, step_bytes)
            except zlib.error as error:
                raise InflateError(f"its deflate stream is damaged ({error})") from error
            taken = len(step) - len(member.unconsumed_tail) - len(member.unused_data)
            if not (taken or piece or member.eof):
                raise InflateError("its deflate stream is damaged (it is cut short)")
            position += taken
            yield piece
        position += _zeros_at(data[position:])


def _zeros_at(data: Bytes) -> int:
    """How many zeros `data` begins with."""
    count = 0
    while (step := data[count : count + _STEP_BYTES]).size:
        if step.any():
            return count + int((step != 0).argmax())
        count += step.size
    return count


def check_crc32(data: Bytes, crc: int) -> None:
    """Hold bytes against their CRC-32.

    Raises
    ------
    InflateError
        If they differ.
    """
    if isal_zlib.crc32(data) != crc:
        raise InflateError("its bytes do not match their CRC-32")
