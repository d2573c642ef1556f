"""NRRD: ``.nrrd``, and ``.nhdr`` with its voxels in a file beside it.

A line with the magic, then ``field: value`` and ``key:=value``, up to an empty line.  The format
is described at https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.decode.payload import (
    MOST_HEADER_BYTES,
    Compression,
    Payload,
    numbers,
    own_name,
    three_axes,
    whole,
)
from ctgpu.decode.stored import StoredVolume, affine_facts
from ctgpu.errors import DecodeError

_MAGIC = re.compile(rb"NRRD000[1-5][ \t\r]*\n")
_FIELD = re.compile(r"([^:=]+): ?(.*)")
_DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long"),
        *("signed long long int", "int64", "int64_t"),
    ),
    "u8": (
        *("ulonglong", "unsigned long long", "unsigned long long int"),
        *("uint64", "uint64_t"),
    ),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPE_OF = {word: dtype for dtype, words in _DTYPES.items() for word in words}
_COMPRESSIONS: Mapping[str, Compression | None] = {"raw": None, "gzip": "gzip", "gz": "gzip"}
_ENDIAN = {"little": "<", "big": ">"}
# Where the axes of the world lead in the patient.
_SPACES = {
    "right-anterior-superior": "RAS",
    "ras": "RAS",
    "left-anterior-superior": "LAS",
    "las": "LAS",
    "left-posterior-superior": "LPS",
    "lps": "LPS",
}
_MM = {"", "mm", "millimeter", "millimetre"}


def locate_voxels(
    file_name: str, data: Bytes, limit_bytes: int, header: bytes | None = None
) -> StoredVolume:
    """Find the voxels of an NRRD file.

    Parameters
    ----------
    file_name : str
        For messages.
    data : numpy.ndarray
        The file, or that of the voxels where `header` is another, shape (size,), uint8.
    limit_bytes : int
        Volumes larger than this are refused.
    header : bytes, optional
        The ``.nhdr`` file.

    Raises
    ------
    DecodeError
        If these are not a volume that this package reads.
    """
    fields, end = _fields(file_name, header or data[:MOST_HEADER_BYTES].tobytes())
    payload = _payload(file_name, fields)
    if header is None and payload.data_file is not None:
        raise DecodeError(
            f"{file_name} is a header alone and its voxels lie in {payload.data_file}, which only "
            "a folder's .nhdr files are read with: have both in one folder and pass that, or save "
            "the scan as one .nrrd"
        )
    return payload.locate(file_name, data, limit_bytes, 0 if header else end)


def data_file(file_name: str, header: bytes) -> str | None:
    """Name of the file that holds the voxels; None where they follow the header.

    Raises
    ------
    DecodeError
        If the header is none, or names a file that does not lie beside it.
    """
    fields, _ = _fields(file_name, header)
    return _data_file(file_name, fields)


def _fields(file_name: str, head: bytes) -> tuple[dict[str, str], int]:
    """What the header says, and where it ends."""
    if (magic := _MAGIC.match(head)) is None:
        raise DecodeError(
            f"{file_name} does not begin with the magic of an NRRD file, NRRD0001 to NRRD0005: "
            "fetch it again or leave it out"
        )
    fields: dict[str, str] = {}
    end = magic.end()
    while end < len(head):
        stop = head.find(b"\n", end)
        stop = len(head) if stop < 0 else stop + 1
        line = head[end:stop].decode("utf-8", "replace").strip()
        end = stop
        if not line:
            return fields, end
        if line.startswith("#") or ":=" in line:
            continue
        if (field := _FIELD.fullmatch(line)) is None:
            break
        name = field[1].strip().lower()
        fields["data file" if name == "datafile" else name] = field[2].strip()
    else:
        if len(head) < MOST_HEADER_BYTES:  # a header that has its file to itself
            return fields, end
    raise DecodeError(
        f"{file_name} has no whole NRRD header, lines of field: value up to an empty one: fetch it "
        "again or leave it out"
    )


def _payload(file_name: str, fields: Mapping[str, str]) -> Payload:
    word = fields.get("type", "none").lower()
    if word not in _DTYPE_OF:
        raise DecodeError(
            f"{file_name} has the type {word[:40]}; wanted an integer of at most 64 bits, float or "
            "double: save the scan as int16"
        )
    encoding = fields.get("encoding", "none").lower()
    if encoding not in _COMPRESSIONS:
        raise DecodeError(
            f"{file_name} has the encoding {encoding[:40]}; wanted raw or gzip: save it as one of "
            "these"
        )
    dtype, endian = _DTYPE_OF[word], fields.get("endian", "").lower()
    if endian not in _ENDIAN and dtype[-1] != "1":
        raise DecodeError(
            f"{file_name} has the endian {endian[:40] or 'none'}; wanted little or big: correct "
            "its header"
        )
    shape = whole(file_name, "sizes", fields.get("sizes", ""))
    skip = _skip(file_name, fields)
    if skip and encoding != "raw":
        raise DecodeError(
            f"{file_name} skips bytes of a compressed stream; wanted the stream alone: save it "
            "again"
        )
    return Payload(
        shape=three_axes(shape),
        dtype=np.dtype(_ENDIAN.get(endian, "") + dtype),
        data_file=_data_file(file_name, fields),
        offset=None if skip == -1 else skip,
        compression=_COMPRESSIONS[encoding],
        facts={"format": "nrrd", **_geometry(file_name, fields, len(shape))},
    )


def _skip(file_name: str, fields: Mapping[str, str]) -> int:
    values = {
        key: whole(file_name, key, text)
        for key in ("line skip", "lineskip", "byte skip", "byteskip")
        if (text := fields.get(key)) is not None
    }
    lines = values.get("line skip") or values.get("lineskip") or [0]
    skip = values.get("byte skip") or values.get("byteskip") or [0]
    if lines != [0] or len(skip) != 1 or skip[0] < -1:
        raise DecodeError(
            f"{file_name} has line skip {lines} and byte skip {skip}; wanted no lines, and a "
            "number of bytes or -1: save it without"
        )
    return skip[0]


def _data_file(file_name: str, fields: Mapping[str, str]) -> str | None:
    name = fields.get("data file")
    if name is None:
        return None
    if name.upper().startswith("LIST") or "%" in name:
        raise DecodeError(
            f"{file_name} says that its voxels lie in several files ({name[:60]}); wanted one: "
            "save the scan as .nrrd"
        )
    return own_name(file_name, name)


def _geometry(file_name: str, fields: Mapping[str, str], axes: int) -> dict[str, Any]:
    """Spacing and affine; without directions in a known space nothing says how the scan lies."""
    units = {u.lower() for u in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if units - _MM:
        raise DecodeError(
            f"{file_name} has the space units {fields['space units'][:60]}; wanted mm: save it so"
        )
    directions = fields.get("space directions")
    if directions is None:
        if "spacings" not in fields or axes < 3:
            return {}
        words = fields["spacings"].split()[:3]
        return {"spacing_mm": tuple(numbers(file_name, "spacings", " ".join(words), 3))}
    vectors = re.findall(r"\(([^)]*)\)|none", directions)[:3]
    steps = np.array([numbers(file_name, "space directions", v, 3) for v in vectors])
    if steps.shape != (3, 3):
        raise DecodeError(
            f"{file_name} has space directions {directions[:80]!r}; wanted three of three numbers: "
            "correct its header"
        )
    space = _SPACES.get(fields.get("space", "").lower())
    if space is None:
        return {"spacing_mm": tuple(np.linalg.norm(steps, axis=1).tolist())}
    origin = fields.get("space origin")
    start = numbers(file_name, "space origin", origin.strip("()"), 3) if origin else [0.0] * 3
    return affine_facts(file_name, steps.T, start, space)
