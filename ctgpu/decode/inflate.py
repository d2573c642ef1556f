"""Deflate streams into memory that is already there.

One-shot calls are held back by page faults on fresh output, so both backends fill a buffer that
is used again and again, release the GIL, and verify every checksum:

- ``libdeflate``, through the C++ module, where CMake found the library;
- ``isal`` (from PyPI) everywhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from isal import isal_zlib

from ctgpu.buffers import Bytes

#: No deflate stream inflates to more than this many times its size.
MAX_RATIO = 1032

# The one way of isal to inflate memory into memory; its type stub knows files only.
_isal: Any = isal_zlib
_ISAL_ERRORS = (_isal.IsalError, OSError, EOFError)
# isal counts in 32 bits.
_PIECE_BYTES = 1 << 30
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
gzip_into = _FASTEST.gzip_into
member_into = _FASTEST.member_into


def inflate_backend() -> str:
    """Name of the library that inflates here: ``"libdeflate"`` or ``"isal"``."""
    return _FASTEST.name


def gzip_head(data: Bytes, size_bytes: int) -> bytes:
    """The first bytes that a gzip stream inflates to, fewer where it ends before.

    Raises
    ------
    InflateError
        If they cannot be inflated.
    """
    reader, head = _isal._GzipReader(data.data), b""
    try:
        while len(head) < size_bytes and (more := reader.read(size_bytes - len(head))):
            head += more
    except _ISAL_ERRORS as error:
        raise InflateError(f"its deflate stream is damaged ({error})") from error
    return head


def check_crc32(data: Bytes, crc: int) -> None:
    """Hold bytes against their CRC-32.

    Raises
    ------
    InflateError
        If they differ.
    """
    if isal_zlib.crc32(data) != crc:
        raise InflateError("its bytes do not match their CRC-32")
