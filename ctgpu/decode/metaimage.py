"""MetaImage: ``.mha``, and ``.mhd`` with its voxels in a file beside it.

Lines of ``Key = Value``; the last, ``ElementDataFile``, says where the voxels are.  As ITK has it,
axes and origin are in the patient's left, posterior and superior directions, and each row of
``TransformMatrix`` is where one axis of the array leads.  The format is described at
https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctgpu.buffers import Bytes
from ctgpu.decode.payload import (
    MOST_HEADER_BYTES,
    Payload,
    numbers,
    own_name,
    three_axes,
    whole,
)
from ctgpu.decode.stored import StoredVolume, affine_facts
from ctgpu.errors import DecodeError

# MET_LONG has four bytes or eight, by the machine that wrote it.
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin")
_LAST_KEY = "ElementDataFile"


def locate_voxels(
    file_name: str, data: Bytes, limit_bytes: int, header: bytes | None = None
) -> StoredVolume:
    """Find the voxels of a MetaImage.

    Parameters
    ----------
    file_name : str
        For messages.
    data : numpy.ndarray
        The file, or that of the voxels where `header` is another, shape (size,), uint8.
    limit_bytes : int
        Volumes larger than this are refused.
    header : bytes, optional
        The ``.mhd`` file.

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
            "a folder's files are read with: have both in one folder and pass that, or save the "
            "scan as .mha"
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
    fields: dict[str, str] = {}
    end = 0
    while _LAST_KEY not in fields:
        stop = head.find(b"\n", end)
        # A header that has its file to itself may lack the last end of line.
        stop = len(head) if stop < 0 else stop + 1
        key, equals, value = head[end:stop].decode("utf-8", "replace").partition("=")
        if not equals or not key.strip() or not key.isprintable():
            raise DecodeError(
                f"{file_name} does not begin with the header of a MetaImage, lines of Key = Value "
                f"up to {_LAST_KEY}: fetch it again or leave it out"
            )
        fields[key.strip()] = value.strip()
        end = stop
    return fields, end


def _payload(file_name: str, fields: Mapping[str, str]) -> Payload:
    def flag(*keys: str) -> bool:
        return _first(fields, *keys, default="False").lower() in ("true", "1")

    element = fields.get("ElementType", "none")
    if element not in _DTYPES:
        raise DecodeError(
            f"{file_name} has the ElementType {element[:40]}; wanted one of {', '.join(_DTYPES)}: "
            "save the scan as int16"
        )
    if not flag("BinaryData"):
        raise DecodeError(
            f"{file_name} holds its voxels as text; wanted BinaryData = True: save it as binary"
        )
    channels = fields.get("ElementNumberOfChannels", "1")
    if channels != "1":
        raise DecodeError(
            f"{file_name} has {channels[:20]} channels; wanted 1: save one scan a file"
        )
    is_big = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    shape = whole(file_name, "DimSize", fields.get("DimSize", ""))
    header_bytes = whole(file_name, "HeaderSize", fields.get("HeaderSize", "0"))
    if len(header_bytes) != 1 or header_bytes[0] < -1:
        raise DecodeError(
            f"{file_name} has HeaderSize {fields['HeaderSize'][:40]}; wanted a number of bytes, or "
            "-1: correct its header"
        )
    return Payload(
        shape=three_axes(shape),
        dtype=np.dtype((">" if is_big else "<") + _DTYPES[element]),
        data_file=_data_file(file_name, fields),
        offset=None if header_bytes[0] == -1 else header_bytes[0],
        compression="zlib" if flag("CompressedData") else None,
        facts={"format": "metaimage", **_geometry(file_name, fields, len(shape))},
    )


def _data_file(file_name: str, fields: Mapping[str, str]) -> str | None:
    name = fields[_LAST_KEY]
    if name.upper() == "LOCAL":
        return None
    if name.upper().startswith("LIST") or "%" in name:
        raise DecodeError(
            f"{file_name} says that its voxels lie in several files ({name[:60]}); wanted one: "
            "save the scan as .mha"
        )
    return own_name(file_name, name)


def _geometry(file_name: str, fields: Mapping[str, str], axes: int) -> dict[str, Any]:
    """Spacing and affine; without a matrix nothing says how the scan lies."""
    spacing = _first(fields, "ElementSpacing", "ElementSize")
    matrix, origin = _first(fields, *_MATRICES), _first(fields, *_ORIGINS)
    facts: dict[str, Any] = {}
    if spacing is not None and axes >= 3:
        steps = numbers(file_name, "ElementSpacing", spacing, axes)[:3]
        facts["spacing_mm"] = tuple(steps)
        if matrix is not None:
            rows = np.reshape(numbers(file_name, "TransformMatrix", matrix, axes**2), (axes, axes))
            start = numbers(file_name, "Offset", origin, axes)[:3] if origin else [0.0] * 3
            facts |= affine_facts(file_name, rows[:3, :3].T * steps, start, "LPS")
    return facts


def _first(fields: Mapping[str, str], *keys: str, default: Any = None) -> Any:
    return next((fields[key] for key in keys if key in fields), default)
