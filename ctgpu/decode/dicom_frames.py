"""Compressed pixels of DICOM files: frame after frame, by pydicom and its plugins.

A codestream says itself how large an image it unfolds to, and decoders are forgiving to those that
are cut short.  So each frame is held against the file's header before a decoder sees it.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.decode.dicom_header import SliceHeader
from ctgpu.decode.dicom_quiet import quiet
from ctgpu.errors import DecodeError


class _Method(NamedTuple):
    """What decodes a transfer syntax: a plugin of pydicom, and the modules that it needs."""

    name: str
    plugin: str
    modules: tuple[str, ...] = ()


_JPEG = _Method("JPEG lossless", "gdcm", ("gdcm",))
_JPEG_LS = _Method("JPEG-LS", "pyjpegls", ("jpeg_ls",))
_JPEG_2000 = _Method("JPEG 2000", "pylibjpeg", ("pylibjpeg", "openjpeg"))
_RLE = _Method("RLE", "pydicom")
_SYNTAX = "1.2.840.10008.1.2."
#: Transfer syntaxes that are read, beside those that are not compressed.
COMPRESSED = {
    **{_SYNTAX + part: _JPEG for part in ("4.57", "4.70")},
    **{_SYNTAX + part: _JPEG_LS for part in ("4.80", "4.81")},
    **{_SYNTAX + part: _JPEG_2000 for part in ("4.90", "4.91", "4.201", "4.202", "4.203")},
    _SYNTAX + "5": _RLE,
}

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_END_OF_IMAGE = b"\xff\xd9"
# The codestream of JPEG 2000 and the marker of its sizes; in the box of a file format it begins
# within so many bytes.
_J2K_SIZES, _MOST_BOX_BYTES = b"\xff\x4f\xff\x51", 1 << 10
# Markers of JPEG and JPEG-LS that state a shape, among those of other tables.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
# RLE makes a plane at most so much longer.
_MOST_RLE_RATIO, _RLE_HEADER_BYTES = 2, 1 << 10


def decoded_frames(
    name: str, data: Bytes, header: SliceHeader
) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """The frames of one file, each of shape (rows, columns).

    Parameters
    ----------
    name : str
        What messages call the series.
    data : numpy.ndarray
        The file, shape (size,), uint8.
    header : SliceHeader
        Of the file, with a transfer syntax of :data:`COMPRESSED`.

    Raises
    ------
    DecodeError
        If there are fewer or more of them than the header says, or one is not what it says.
    EnvironmentFailure
        If pydicom or its plugin is not installed.
    """
    method = COMPRESSED[header.transfer_syntax]
    damaged = f"{name} holds {method.name} that cannot be decoded: fetch it again"
    with quiet(damaged):
        from pydicom.encaps import encapsulate
        from pydicom.pixels.decoders.base import get_decoder

        for module in method.modules:
            importlib.import_module(module)
        decoder = get_decoder(header.transfer_syntax)
    options: Any = {
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": header.photometric,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": header.pixel_representation,
        "pixel_keyword": "PixelData",
    }
    for frame in _frames(name, data, header):
        _check_frame(name, method, frame, header)
        with quiet(damaged):
            array, _ = decoder.as_array(
                encapsulate([frame], has_bot=False),
                index=0,
                raw=True,
                decoding_plugin=method.plugin,
                **options,
            )
        yield array


def _frames(name: str, data: Bytes, header: SliceHeader) -> Iterator[bytes]:
    """The bytes of each frame, out of the fragments that pixels are stored in."""
    table, *fragments = _fragments(name, data, header.pixel_offset)
    if header.frames in (1, len(fragments)):
        groups = [fragments] if header.frames == 1 else [[fragment] for fragment in fragments]
    else:
        # The table says where the first fragment of each frame begins, counted from its own end.
        offsets = np.frombuffer(data[slice(*table)].tobytes(), "<u4", (table[1] - table[0]) // 4)
        begins = [table[1] + int(offset) for offset in offsets]
        if len(begins) != header.frames or begins[0] != table[1]:
            raise DecodeError(
                f"{name} has {header.frames} frames in {len(fragments)} fragments and does not "
                "say which belong together: fetch it again"
            )
        ends = [*begins[1:], data.size]
        groups = [
            [fragment for fragment in fragments if begin < fragment[0] <= end]
            for begin, end in zip(begins, ends, strict=True)
        ]
    for group in groups:
        yield b"".join(data[slice(*fragment)].tobytes() for fragment in group)


def _fragments(name: str, data: Bytes, offset: int) -> list[tuple[int, int]]:
    """Where each of them lies: first the table of frames, which may be empty, then the pixels."""
    found: list[tuple[int, int]] = []
    while True:
        head = data[offset : offset + 8].tobytes()
        size_bytes = int.from_bytes(head[4:], "little")
        start, stop = offset + 8, offset + 8 + size_bytes
        if head[:4] == _END and len(found) > 1:
            return found
        if len(head) < 8 or head[:4] != _ITEM or stop > data.size:
            raise DecodeError(
                f"{name} has compressed pixels that are cut short or damaged after "
                f"{max(0, len(found) - 1)} fragments: fetch it again"
            )
        found.append((start, stop))
        offset = stop


def _check_frame(name: str, method: _Method, frame: bytes, header: SliceHeader) -> None:
    """Refuse a frame that is not what the file's header says, or has no end."""
    if method is _RLE:
        plane_bytes = header.rows * header.columns * header.bits_allocated // 8
        if len(frame) > _MOST_RLE_RATIO * plane_bytes + _RLE_HEADER_BYTES:
            raise DecodeError(
                f"{name} has a frame of {len(frame):,} bytes of RLE for {plane_bytes:,} bytes of "
                "pixels: it is damaged, fetch it again"
            )
        return
    stated = _j2k_image(frame) if method is _JPEG_2000 else _jpeg_image(frame)
    if stated != (header.rows, header.columns, 1):
        found = "none" if stated is None else "{} × {} of {} channels".format(*stated)
        raise DecodeError(
            f"{name} has a frame of {method.name} whose own header states {found}; wanted "
            f"{header.rows} × {header.columns} of 1, as the file's says: it is damaged, fetch it "
            "again"
        )
    if not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise DecodeError(
            f"{name} has a frame of {method.name} without an end: it is cut short, fetch it again"
        )


def _jpeg_image(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and channels that a stream of JPEG or JPEG-LS states; None where it is none."""
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker, size_bytes = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in _JPEG_FRAMES:
            rows, columns, channels = struct.unpack_from(">HHB", frame, place + 5)
            return rows, columns, channels
        # Padding, which may stand before a marker.
        place += 1 if marker == 0xFF else 2 + size_bytes
    return None


def _j2k_image(frame: bytes) -> tuple[int, int, int] | None:
    """As :func:`_jpeg_image`, of a codestream of JPEG 2000."""
    place = frame.find(_J2K_SIZES, 0, _MOST_BOX_BYTES)
    if place < 0 or len(frame) < place + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, place + 8)
    (channels,) = struct.unpack_from(">H", frame, place + 40)
    return bottom - top, right - left, channels
