"""``.npz`` archives: the zip directory, one ``.npy`` member, and its metadata.

A stored member is used where it lies; a deflated one is inflated in one go.  Nothing is unpickled,
and no member name becomes a path.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.decode.inflate import InflateError, check_crc32, member_into
from ctgpu.decode.npy import HEAD_BYTES, NpyHeader, read_header, unreadable_header
from ctgpu.decode.stored import (
    StoredVolume,
    check_plausible,
    check_voxels,
    metadata_facts,
    metadata_rescale,
)
from ctgpu.errors import DecodeError

#: Arrays that are taken for the volume, best first; else the single 3-D one is.
VOLUME_NAMES = ("volume", "data", "arr_0")
# Arrays that serve where the metadata does not state the same, and their shapes.
_FACT_SHAPES = {"spacing_mm": (3,), "spacing": (3,), "affine": (4, 4)}
_SPACING_KEYS = ("ZSpacing", "spacing_mm", "spacing")

_MAX_ARRAYS = 64
_MAX_DIRECTORY_BYTES = 1 << 20
_MAX_METADATA_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def locate_voxels(
    file_name: str, data: Bytes, limit_bytes: int, member_name: str | None = None
) -> StoredVolume:
    """Find the voxels of an ``.npz`` file.

    Parameters
    ----------
    file_name : str
        For messages.
    data : numpy.ndarray
        The file, shape (size,), uint8.
    limit_bytes : int
        Volumes larger than this are refused.
    member_name : str, optional
        The array that is the volume; by default one of :data:`VOLUME_NAMES`, or the only 3-D one.

    Raises
    ------
    DecodeError
        If the file is not an ``.npz`` with one volume that this package reads.
    """
    members = _directory(file_name, data)
    name, header = _choose(file_name, data, members, member_name)
    label, member = _label(file_name, name), members[name]
    voxel_bytes = check_voxels(label, header.shape, header.dtype)
    check_plausible(label, member.size_bytes, member.stop - member.start, limit_bytes)
    if header.size_bytes + voxel_bytes != member.size_bytes:
        raise DecodeError(
            f"{label} has {member.size_bytes:,} bytes and its header declares "
            f"{header.size_bytes + voxel_bytes:,}: the file is damaged; fetch it again"
        )
    metadata = _metadata(file_name, data, members)
    facts = _facts_in_arrays(file_name, data, members, metadata) | metadata
    return StoredVolume(
        shape=header.shape,
        dtype=header.dtype,
        order="F" if header.fortran_order else "C",
        offset=header.size_bytes + (0 if member.deflated else member.start),
        inflated_bytes=member.size_bytes if member.deflated else 0,
        unpack=partial(_unpack, data, member),
        facts={
            "format": "npz",
            "header_rescale": metadata_rescale(file_name, metadata),
            **metadata_facts(file_name, facts),
            "metadata": metadata,
        },
    )


def arrays_in(file_name: str, data: Bytes) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array of an ``.npz`` file, by its name; no voxel is read.

    Parameters
    ----------
    file_name, data
        As :func:`locate_voxels` takes them.

    Raises
    ------
    DecodeError
        If the file is no ``.npz`` that can be read.
    """
    members = _directory(file_name, data)
    headers = {n: _npy_header(_label(file_name, n), data, m) for n, m in members.items()}
    return {name: (head.shape, str(head.dtype)) for name, head in sorted(headers.items())}


class _Member(NamedTuple):
    start: int
    stop: int
    size_bytes: int
    crc: int
    deflated: bool


class _View(io.RawIOBase):
    """A file object over memory, for :mod:`zipfile`; no copy, and no read as large as a bomb's."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._data.size}[whence]
        if base + offset < 0:
            raise OSError("negative seek")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        part = self._data[self._position :]
        part = part if size < 0 else part[:size]
        if part.size > _MAX_DIRECTORY_BYTES:
            raise OSError(f"its directory takes more than {_MAX_DIRECTORY_BYTES:,} bytes")
        self._position += part.size
        return part.tobytes()


def _directory(file_name: str, data: Bytes) -> dict[str, _Member]:
    """Every array of the archive by its name in ``np.load``."""
    try:
        with zipfile.ZipFile(_View(data)) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise DecodeError(
            f"{file_name} is not a readable zip archive ({error}); wanted an .npz file: "
            "fetch it again"
        ) from error
    members: dict[str, _Member] = {}
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        member = _member(file_name, data, info, end)
        end = info.header_offset
        if info.filename.endswith(".npy"):
            members[info.filename.removesuffix(".npy")] = member
    if not 1 <= len(members) <= _MAX_ARRAYS:
        raise DecodeError(
            f"{file_name} holds {len(members)} arrays; wanted 1 to {_MAX_ARRAYS}: save one scan a "
            "file"
        )
    return members


def _member(file_name: str, data: Bytes, info: zipfile.ZipInfo, end: int) -> _Member:
    name = _label(file_name, info.filename)
    if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DecodeError(
            f"{name} is encrypted or compressed by method {info.compress_type}; wanted stored or "
            "deflate: save it with numpy.savez_compressed"
        )
    offset, deflated = info.header_offset, info.compress_type == zipfile.ZIP_DEFLATED
    local = data[offset : offset + _LOCAL_HEADER.size].tobytes() if offset >= 0 else b""
    if len(local) == _LOCAL_HEADER.size and local[:4] == b"PK\x03\x04":
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(local)
        start = offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        stop = start + info.compress_size
        if stop <= end and (deflated or info.compress_size == info.file_size):
            return _Member(start, stop, info.file_size, info.CRC, deflated)
    raise DecodeError(
        f"{name} does not lie where the zip directory says: the file is damaged; fetch it again"
    )


def _choose(
    file_name: str, data: Bytes, members: Mapping[str, _Member], wanted: str | None
) -> tuple[str, NpyHeader]:
    """The array that is the volume, by its name, or else because it is the only 3-D one."""
    headers: dict[str, NpyHeader] = {}

    def read(name: str) -> NpyHeader:
        return _npy_header(_label(file_name, name), data, members[name])

    if wanted is not None:
        if wanted not in members:
            raise DecodeError(
                f"{file_name} holds no array {wanted!r}, only {', '.join(sorted(members)[:4])}; "
                "correct arrays.member in the description of the data set, or the file"
            )
        header = read(wanted)
        header.require_numbers(_label(file_name, wanted))
        return wanted, header
    for name in VOLUME_NAMES:
        if name in members:
            headers[name] = read(name)
            # One of four axes is refused, and no mask beside it taken for it.
            if len(headers[name].shape) >= 3 and not headers[name].dtype.hasobject:
                return name, headers[name]
    headers |= {n: read(n) for n in members if n != "metadata" and n not in headers}
    pickled = [name for name, header in headers.items() if header.dtype.hasobject]
    volumes = [n for n, header in headers.items() if len(header.shape) == 3 and n not in pickled]
    # What bears the name of a volume, or might hold one, says best what is wrong.
    chosen = volumes or [name for name in headers if name in VOLUME_NAMES or name in pickled]
    if len(volumes) > 1 or not chosen:
        found = ", ".join(_label(file_name, name) for name in sorted(volumes)[:4])
        raise DecodeError(
            f"{file_name} holds {len(volumes)} 3-D arrays ({found or 'none'}); wanted an array "
            f"named {', '.join(VOLUME_NAMES)}, or a single 3-D one"
        )
    headers[chosen[0]].require_numbers(_label(file_name, chosen[0]))
    return chosen[0], headers[chosen[0]]


def _npy_header(name: str, data: Bytes, member: _Member) -> NpyHeader:
    head = data[member.start : min(member.stop, member.start + HEAD_BYTES)].tobytes()
    if member.deflated:
        try:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, HEAD_BYTES)
        except zlib.error as error:
            raise unreadable_header(name, error) from error
    return read_header(name, head)


def _label(file_name: str, member_name: str) -> str:
    """How messages name a member; its own name may hold anything."""
    return f"{file_name}:{member_name.encode('unicode_escape').decode()[:60]}"


def _metadata(file_name: str, data: Bytes, members: Mapping[str, _Member]) -> dict[str, Any]:
    if "metadata" not in members:
        return {}
    name, member = f"{file_name}:metadata", members["metadata"]
    header = _npy_header(name, data, member)
    header.require_numbers(name)
    check_plausible(name, member.size_bytes, member.stop - member.start, _MAX_METADATA_BYTES)
    try:
        array = _array(data, member, header)
        text = str(array.item()) if array.dtype.kind == "U" else array.tobytes().rstrip(b"\0")
        metadata = json.loads(text, parse_constant=lambda _: None)
        if not isinstance(metadata, dict):
            raise ValueError("it is not an object")
    except (InflateError, ValueError, TypeError, RecursionError) as error:
        raise DecodeError(
            f"{name} is not readable ({error}); wanted a JSON object as bytes or text: save it as "
            "numpy.frombuffer(json.dumps(...).encode(), numpy.uint8)"
        ) from error
    return metadata


def _facts_in_arrays(
    file_name: str, data: Bytes, members: Mapping[str, _Member], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Spacing and affine that lie in the archive as arrays of their own.

    Where they are no finite numbers of their shape they say nothing, as arrays of other names.
    """
    facts: dict[str, Any] = {}
    for key, shape in _FACT_SHAPES.items():
        same_in_metadata = (key,) if key == "affine" else _SPACING_KEYS
        if key not in members or any(metadata.get(k) is not None for k in same_in_metadata):
            continue
        name, member = _label(file_name, key), members[key]
        header = _npy_header(name, data, member)
        size_bytes = header.size_bytes + math.prod(shape) * header.dtype.itemsize
        if header.shape != shape or header.dtype.kind not in "iuf":
            continue
        if member.size_bytes != size_bytes:
            raise DecodeError(f"{name} is not as long as its header declares; fetch it again")
        try:
            numbers = _array(data, member, header).astype(np.float64)
        except InflateError as error:
            raise DecodeError(f"{name} is not usable: {error}; fetch it again") from error
        if np.isfinite(numbers).all():
            facts[key] = numbers.tolist()
    return facts


def _array(data: Bytes, member: _Member, header: NpyHeader) -> npt.NDArray[Any]:
    """A small array of plain numbers or text."""
    inflated = np.empty(member.size_bytes if member.deflated else 0, np.uint8)
    _unpack(data, member, inflated)
    body = inflated if member.deflated else data[member.start : member.stop]
    order: Literal["C", "F"] = "F" if header.fortran_order else "C"
    return np.ndarray(header.shape, header.dtype, body.data, header.size_bytes, order=order)


def _unpack(data: Bytes, member: _Member, out: Bytes) -> None:
    if member.deflated:
        member_into(data, member.start, member.stop, out, member.crc)
    else:
        check_crc32(data[member.start : member.stop], member.crc)
