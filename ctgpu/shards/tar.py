"""The bytes of a shard, as pure functions.

A sample is four members, ``<key>.bin .cls .txt .json``, and where there are masks ``.seg`` after
the first, with ustar headers that hold nothing but name and size; compressed, ``.bin`` is ``.ctz``
and ``.seg`` is ``.segz``.  These payloads start on a 4 KiB boundary, so that they can be written
and read past the page cache; where the headers alone would not bring them there, a pax extended
header comes first, whose ``comment`` record has exactly the missing size.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass

from ctgpu.errors import UsageError

BLOCK_BYTES = 512
ALIGNMENT_BYTES = 4096
#: The volume of a sample, and its mask: as they are, and compressed.
VOLUMES, MASKS = ("bin", "ctz"), ("seg", "segz")
#: Members that start on a boundary.
PAYLOADS = VOLUMES + MASKS
_SMALL = ("cls", "txt", "json")

#: Two empty blocks end an archive.
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)

#: The name field of a ustar header has 100 bytes; no extension is longer than ``.json``.
KEY_LIMIT_BYTES = 100 - len(".json")
#: The size field has eleven octal digits.
MEMBER_LIMIT_BYTES = 8**11 - 1

_PAX_NAME = "././@PaxHeader"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,95}")


def extensions(*, compressed: bool, masks: bool) -> tuple[str, ...]:
    """The members of a sample, in their order."""
    return (VOLUMES[compressed], *((MASKS[compressed],) if masks else ()), *_SMALL)


def volume_of(members: Container[str]) -> str:
    """The extension of a sample's volume: ``bin``, or compressed ``ctz``."""
    return VOLUMES[VOLUMES[1] in members]


def mask_of(members: Container[str]) -> str | None:
    """The extension of its mask, ``seg`` or compressed ``segz``; None where it has none."""
    return next((extension for extension in MASKS if extension in members), None)


def header(name: str, size_bytes: int, kind: bytes = b"0") -> bytes:
    """One ustar header block; mode 644, and zero for owner, group and time.

    Parameters
    ----------
    name : str
        Member name, at most 100 bytes of UTF-8.
    size_bytes : int
        Size of the member, below 8 GiB.
    kind : bytes
        ``b"0"`` for a file, ``b"x"`` for a pax extended header.
    """
    encoded = name.encode()
    if len(encoded) > 100 or not 0 <= size_bytes <= MEMBER_LIMIT_BYTES:
        raise ValueError(f"{name!r} of {size_bytes} bytes does not fit a ustar header")
    fields = (
        encoded.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size_bytes,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        bytes(100),
        b"ustar\x0000".ljust(255, b"\0"),
    )
    block = b"".join(fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def padding_bytes(size_bytes: int) -> int:
    """Bytes from the end of a member to the next block."""
    return -size_bytes % BLOCK_BYTES


def alignment(offset: int) -> bytes:
    """What to write at `offset` so that the payload after the next header is aligned."""
    missing = -(offset + BLOCK_BYTES) % ALIGNMENT_BYTES
    if missing == 0:
        return b""
    if missing == BLOCK_BYTES:
        # A pax header takes two blocks at least.
        missing += ALIGNMENT_BYTES
    size = missing - BLOCK_BYTES
    record = b"%d comment=" % size
    return header(_PAX_NAME, size, b"x") + record + b"." * (size - len(record) - 1) + b"\n"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the bytes of one sample go.

    Attributes
    ----------
    start, end : int
        Extent of the sample in the archive, in bytes; multiples of 512.
    offsets : tuple of int
        Where each member's data starts, in their order.
    frames : tuple of bytes
        What surrounds the data: before the first member, between members, after the last.
    """

    start: int
    end: int
    offsets: tuple[int, ...]
    frames: tuple[bytes, ...]


def place_sample(start: int, key: str, sizes: Mapping[str, int]) -> Placement:
    """Place a sample at `start`.

    Parameters
    ----------
    start : int
        End of the sample before, or 0.
    key : str
        Sample key, without a :func:`key_fault`.
    sizes : mapping of str to int
        Bytes of each member, by extension, in the order of the members.
    """
    frame = b""
    frames, offsets = [], []
    position = start
    for extension, size_bytes in sizes.items():
        if extension in PAYLOADS:
            frame += alignment(position + len(frame))
        frame += header(f"{key}.{extension}", size_bytes)
        frames.append(frame)
        position += len(frame)
        offsets.append(position)
        position += size_bytes
        frame = bytes(padding_bytes(size_bytes))
    frames.append(frame)
    return Placement(start, position + len(frame), tuple(offsets), tuple(frames))


def key_fault(key: str) -> str | None:
    """Why a tar, a WebDataset or a DALI index could not carry a key; None if they can.

    It is empty, longer than 95 bytes, not UTF-8, or holds dots, slashes, white space or control
    characters.
    """
    if _PLAIN_KEY.fullmatch(key):
        return None
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not 0 < size <= KEY_LIMIT_BYTES:
        return f"has {size} bytes, and a tar member takes 1 to {KEY_LIMIT_BYTES}"
    # DALI splits a name at its first dot, and the words of its index at white space.
    if any(c in "./\\" or c.isspace() or _is_control(c) for c in key):
        return (
            "holds a dot, a slash, white space or a control character, which WebDataset readers "
            "cannot tell apart from their own"
        )
    return None


def _is_control(c: str) -> bool:
    # A character without a name in this Python's Unicode may have one where the plan was made.
    return not c.isprintable() and unicodedata.category(c) != "Cn"


def check_payload(size_bytes: int) -> None:
    """Refuse a volume, or a mask, that a tar member cannot hold.

    Raises
    ------
    UsageError
        If it has 8 GiB or more.
    """
    if size_bytes > MEMBER_LIMIT_BYTES:
        raise UsageError(
            f"a volume of {size_bytes} bytes does not fit a tar member, which ends below 8 GiB; "
            "choose a smaller shape"
        )
