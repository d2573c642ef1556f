"""Reads files that may hold anything: regular ones only, no more than expected, no traps.

What is refused is an :class:`OSError` or a :class:`ValueError` with a reason in words, which the
caller turns into its own sentence about the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import stat
import time
from typing import Annotated, Any, TypeVar

import msgspec
import xxhash
from msgspec import Meta

from ctgpu.arguments import converted, learn
from ctgpu.buffers import Allocate, Buffer, Bytes

#: Plans and records of a million samples stay below it.
JSON_LIMIT_BYTES = 1 << 30

#: A number or size in bytes that fits 64 bits.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
#: XXH3-128, as :func:`ctgpu.shards.record.checksum` gives it.
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
#: As :meth:`ctgpu.spec.Spec.fingerprint` gives it.
Fingerprint = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
#: Text that may become part of a path.
Text = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
Scalar = str | int | float | bool | None
#: A few levels of JSON, kept as stated; deeper ones could not be written again everywhere.
Stated: Any = Scalar
for _ in range(8):
    Stated = Scalar | list[Stated] | dict[str, Stated]

_T = TypeVar("_T")

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
# A lease may be read while it is written.
_GROWTH_BYTES = 1 << 16
# macOS refuses to read 2 GiB at once.
_MOST_READ_BYTES = 1 << 30
_MOST_DIGITS = 1000
_HALF_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
# The coarsest clock by which file systems in use stamp a change; two within it look like one.
_CLOCK_NS = 20_000_000
_MOST_WAITS = 50
# A file is stamped when a write begins; one call may write two gigabytes and take its time, and
# stand still within, for the disk to keep up (Linux: 0.2 s).
_LONGEST_WRITE_NS = 30 * 10**9
_LONGEST_PAUSE_S = 0.3

Stamp = tuple[int, int, int, int]


class FileChanged(OSError):
    """A file was written or cut while it was read, or has another size than before."""


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file for reading; anything else in its place is not even opened.

    Links to regular files are followed.

    Raises
    ------
    OSError
        If it cannot be opened or is no regular file.
    """
    # Opening a device may do something.
    _require_regular(os.stat(path).st_mode, path)
    # And should a pipe take the file's place now, opening that must not hang.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _require_regular(os.fstat(fd).st_mode, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_exactly(fd: int, out: memoryview, offset: int) -> None:
    """Fill `out`, which is of bytes, with those of a file from `offset` on.

    Raises
    ------
    EOFError
        If the file ends before.
    OSError
        If it cannot be read.
    """
    while out:
        count = os.preadv(fd, [out[:_MOST_READ_BYTES]], offset)
        if not count:
            raise EOFError(f"it was cut by {len(out)} bytes")
        out, offset = out[count:], offset + count


def read_file(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """All of a regular file.

    Raises
    ------
    OSError
        If it cannot be read, is no regular file, has more than `limit_bytes`, or grows and grows.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        room_bytes = min(size_bytes + _GROWTH_BYTES, limit_bytes)
        content = file.read(room_bytes + 1) if size_bytes <= limit_bytes else b""
    if size_bytes > limit_bytes or len(content) > room_bytes:
        reason = f"it has more than {room_bytes:,} bytes, which none of its kind has"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return content


def stamp_of(file: int | str | os.PathLike[str]) -> Stamp:
    """What changes when a file is replaced or written: device, inode, size, time of change."""
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_unchanged(
    path: str | os.PathLike[str],
    allocate: Allocate,
    size_bytes: int | None = None,
) -> Buffer:
    """All of a regular file in one buffer, as it was at one time.

    Parameters
    ----------
    path : path
        The file.
    allocate : callable
        Lends a buffer of so many bytes; it has been released if anything is raised.
    size_bytes : int, optional
        How many bytes there must be.

    Raises
    ------
    FileChanged
        If it has another size than `size_bytes`, or was written or cut while it was read.
    OSError
        If it cannot be read or is no regular file.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        before = _settled_stamp(file.fileno())
        _require_size(before, size_bytes)
        buffer = allocate(before[2])
        with buffer.released_on_error():
            _fill_unchanged(buffer.bytes, file.fileno(), before)
    return buffer


def read_unchanged_into(path: str | os.PathLike[str], out: Bytes) -> None:
    """All of a regular file, as it was at one time, into memory of its size.

    Raises
    ------
    FileChanged, OSError
        As :func:`read_unchanged`.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        before = _settled_stamp(file.fileno())
        _require_size(before, out.size)
        _fill_unchanged(out, file.fileno(), before)


def parse_json(content: bytes | str) -> Any:
    """JSON without what JSON does not have: NaN, infinite numbers, halves of characters.

    Halves that stand for the bytes of a file name are text (see :func:`os.fsdecode`).

    Raises
    ------
    ValueError
        If it is anything else, or nested too deeply.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        value = json.loads(
            text, parse_constant=_refuse_number, parse_float=_finite, parse_int=_integer
        )
        _refuse_halves(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_json(path: str | os.PathLike[str], limit_bytes: int = JSON_LIMIT_BYTES) -> Any:
    """The JSON in a regular file.

    Raises
    ------
    OSError, ValueError
        As :func:`read_file` and :func:`parse_json`.
    """
    return parse_json(read_file(path, limit_bytes))


def decode(content: bytes, kind: type[_T]) -> _T:
    """JSON as what a type says, each field held against its own; fields it does not name are left.

    Parameters
    ----------
    content : bytes
        JSON, as :func:`parse_json` takes it.
    kind : type
        A dataclass, or any other type that ``msgspec`` knows.

    Raises
    ------
    ValueError
        If it is anything else; the message says where.
    """
    if _HALF_ESCAPE.search(content):
        # msgspec refuses the bytes of a file name; what it takes comes out the same.
        return converted(parse_json(content), kind)
    try:
        learn(kind)
        return msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _settled_stamp(fd: int) -> Stamp:
    """The stamp of a file, taken when every later change gives it another one."""
    for _ in range(_MOST_WAITS):
        stamp = stamp_of(fd)
        age_ns = time.time_ns() - stamp[3]
        if not 0 <= age_ns < _CLOCK_NS:
            return stamp
        time.sleep((_CLOCK_NS - age_ns) * 1e-9)
    raise _changed("it is being written all the time")


def _may_be_written(fd: int, stamp: Stamp) -> bool:
    """Whether a write that had begun when the stamp was taken may go on."""
    if time.time_ns() - stamp[3] > _LONGEST_WRITE_NS:
        return False
    if not hasattr(fcntl, "F_SETLEASE"):
        return True
    try:
        # A writer that comes at this very moment sends a signal; the usual one would end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        # Granted only where nobody has the file open for writing.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def _require_size(stamp: Stamp, size_bytes: int | None) -> None:
    if size_bytes not in (None, stamp[2]):
        raise _changed(f"it has {stamp[2]} bytes, but had {size_bytes} when it was listed")


def _fill_unchanged(out: Bytes, fd: int, before: Stamp) -> None:
    """Fill `out` with a file, and make sure that it is as it was when it had the stamp."""
    may_go_on = _may_be_written(fd, before)
    _fill(out, fd)
    is_same = not may_go_on or _is_same(out, fd)
    if stamp_of(fd) != before or not is_same:
        raise _changed("it was written while it was read")


def _fill(out: Bytes, fd: int) -> None:
    try:
        read_exactly(fd, out.data, 0)
    except EOFError as error:
        raise _changed(f"{error} while it was read") from error


def _is_same(out: Bytes, fd: int) -> bool:
    """Whether the file has these bytes still; a write under way has gone on meanwhile."""
    first = xxhash.xxh3_64_intdigest(out.data)
    time.sleep(_LONGEST_PAUSE_S)
    _fill(out, fd)
    return xxhash.xxh3_64_intdigest(out.data) == first


def _changed(reason: str) -> FileChanged:
    return FileChanged(errno.EBUSY, f"{reason}; wait until nothing writes to it any more")


def _require_regular(mode: int, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        reason = f"it is {kind}, and a regular file is wanted there"
        raise OSError(errno.EINVAL, reason, os.fspath(path))


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:20]}… is a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _refuse_number(text)
    return number


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text[:20]} is no finite number")


def _refuse_halves(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("it holds half a character") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_halves(key)
            _refuse_halves(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_halves(item)
