"""Reads the directory of any tar, hostile ones included, without a record and without the data.

Nothing is extracted and no name becomes a path.  Every size is held against the file's before it
is used; what is not a plain file inside a plain folder is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ctgpu.errors import DecodeError
from ctgpu.shards.tar import BLOCK_BYTES, padding_bytes

#: Extended headers hold names and comments; nobody needs more.
EXTENDED_LIMIT_BYTES = 1 << 20

_FILES = b"0\x007"
_USED = {b"path", b"size"}
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "a part of a multi-volume archive",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file in a tar.

    Attributes
    ----------
    name : str
        As stored.
    key, extension : str
        `name` split at the first dot after the last slash, as WebDataset does.
    offset, size_bytes : int
        Where its data is.
    """

    name: str
    key: str
    extension: str
    offset: int
    size_bytes: int


def scan_tar(fd: int, path: str | os.PathLike[str]) -> Iterator[TarMember]:
    """The files of a tar, in their order.

    Parameters
    ----------
    fd : int
        The tar, open for reading.
    path : path-like
        Named in errors.

    Raises
    ------
    DecodeError
        If it is truncated or damaged, or holds links, devices, or names that lead out of it.
    """
    limit = os.fstat(fd).st_size
    position = 0
    extended: dict[bytes, bytes] = {}
    while True:
        block = os.pread(fd, BLOCK_BYTES, position)
        if len(block) < BLOCK_BYTES:
            raise DecodeError(f"{path} is truncated: it ends at byte {limit} without an end mark")
        if not any(block):
            return
        name, size_bytes, kind = _header(block, position, path)
        if kind not in _FILES or b"size" not in extended:
            size = size_bytes
        else:
            size = _number(extended[b"size"], 10, position, path)
        data = position + BLOCK_BYTES
        if data + size > limit:
            raise DecodeError(
                f"{path} is truncated: a member at byte {position} claims {size} bytes, and the "
                f"file ends at byte {limit}"
            )
        position = data + size + padding_bytes(size)
        if kind in b"xgLK":
            if size > EXTENDED_LIMIT_BYTES:
                raise DecodeError(
                    f"{path} has an extended header of {size} bytes at byte {data - BLOCK_BYTES}; "
                    f"at most {EXTENDED_LIMIT_BYTES} are read"
                )
            content = os.pread(fd, size, data)
            if kind == b"x":
                # Nothing else is kept: there may be as many of them as the file is long.
                records = _records(content, data, path)
                extended |= {name: records[name] for name in _USED & records.keys()}
            elif kind == b"L":
                extended[b"path"] = content.rstrip(b"\0")
            continue
        name = extended.get(b"path", name)
        extended = {}
        if kind == b"5":
            continue
        if kind in _REFUSED or kind not in _FILES:
            what = _REFUSED.get(kind, f"an entry of type {kind!r}")
            raise DecodeError(
                f"{path} holds {what} named {name!r}; only plain files are read from a tar"
            )
        yield _member(name, data, size, path)


def _member(raw: bytes, offset: int, size_bytes: int, path: object) -> TarMember:
    name = raw.decode(errors="surrogateescape")
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    parts = folder.split("/") if folder else []
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise DecodeError(f"{path} holds a file named {name!r}, which leads out of the tar")
    return TarMember(name, "/".join([*parts, stem]), extension, offset, size_bytes)


def _header(block: bytes, position: int, path: object) -> tuple[bytes, int, bytes]:
    stated = _number(block[148:156], 8, position, path)
    if stated != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise DecodeError(f"{path} is damaged: the header at byte {position} fails its checksum")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    size = block[124:136]
    if size[0] & 0x80:
        return name, int.from_bytes(size, "big") & ~(0x80 << 88), block[156:157]
    return name, _number(size, 8, position, path), block[156:157]


def _number(field: bytes, base: int, position: int, path: object) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit() or len(digits) > 20:
        if not digits:
            return 0
        raise DecodeError(f"{path} is damaged: the header at byte {position} holds no number")
    try:
        return int(digits, base)
    except ValueError:
        raise DecodeError(
            f"{path} is damaged: the header at byte {position} holds no octal number"
        ) from None


def _records(content: bytes, position: int, path: object) -> dict[bytes, bytes]:
    records = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        size = _number(length[:21], 10, position, path)
        record, content = content[:size], content[size:]
        name, separator, value = record[len(length) + 1 :].partition(b"=")
        if not separator or not record.endswith(b"\n") or len(record) != size:
            raise DecodeError(f"{path} is damaged: the extended header at byte {position} is torn")
        records[name] = value[:-1]
    return records
