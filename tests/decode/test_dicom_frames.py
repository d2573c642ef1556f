"""Compressed frames: fragments, their tables, and codestreams that are not what the file says."""

from __future__ import annotations

import struct
import sys

import msgspec
import numpy as np
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder

from ctgpu.decode.dicom_frames import COMPRESSED, decoded_frames
from ctgpu.decode.dicom_header import SliceHeader, read_header
from ctgpu.errors import DecodeError, EnvironmentFailure
from support.dicom_series import SYNTAXES, datasets_of, file_bytes

HU = np.random.default_rng(5).integers(-1000, 1000, (36, 33, 3)).astype(np.int16)
AFFINE = np.diag([-0.7, -0.8, 1.5, 1])
METHODS = [name for name, syntax in SYNTAXES.items() if syntax.is_compressed]
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)


def made(transfer_syntax: str, form: str = "enhanced") -> tuple[bytes, SliceHeader, list[bytes]]:
    """A file up to its pixels, its header, and its frames."""
    data = file_bytes(datasets_of(HU, AFFINE, form=form)[0], transfer_syntax)
    header = read_header(data, "a.dcm")
    value = data[header.pixel_offset :]
    frames = list(generate_frames(value, number_of_frames=header.frames))
    return data[: header.pixel_offset], header, frames


def decoded(head: bytes, value: bytes, header: SliceHeader) -> np.ndarray:
    data = np.frombuffer(head + value, np.uint8)
    return np.stack(list(decoded_frames("key-of-it", data, header)))


def items(*fragments: bytes, table: bytes = b"") -> bytes:
    parts = (ITEM + struct.pack("<I", len(part)) + part for part in (table, *fragments))
    return b"".join(parts) + END


def halves(frame: bytes) -> tuple[bytes, bytes]:
    middle = len(frame) // 4 * 2
    return frame[:middle], frame[middle:]


STORED = HU.transpose(2, 1, 0) + 1024


@pytest.mark.parametrize("method", METHODS)
def test_frames_however_they_are_fragmented(method):
    head, header, frames = made(method)
    # A fragment a frame, with a table and without.
    for has_table in (True, False):
        value = encapsulate(frames, has_bot=has_table) + END
        np.testing.assert_array_equal(decoded(head, value, header), STORED)
    # In two fragments each, which only a table tells apart.
    value = encapsulate(frames, fragments_per_frame=2, has_bot=True) + END
    np.testing.assert_array_equal(decoded(head, value, header), STORED)
    value = encapsulate(frames, fragments_per_frame=2, has_bot=False) + END
    with pytest.raises(DecodeError, match=r"^key-of-it has 3 frames in 6 fragments and does not"):
        decoded(head, value, header)


@pytest.mark.parametrize("method", METHODS)
def test_one_frame_in_several_fragments(method):
    head, header, (frame,) = made(method, "single")
    value = items(*halves(frame))
    np.testing.assert_array_equal(decoded(head, value, header), STORED[:1])


def test_what_lies_behind_the_pixels_is_no_matter():
    head, header, frames = made("jpeg-ls")
    value = items(*frames) + b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 4) + bytes(4)
    np.testing.assert_array_equal(decoded(head, value, header), STORED)


@pytest.mark.parametrize("method", METHODS)
def test_pixels_that_are_cut_short_are_refused(method):
    head, header, (frame,) = made(method, "single")
    value = items(frame)
    for size in (0, 4, 8, 12, 16, len(value) // 2, len(value) - 9, len(value) - 8):
        with pytest.raises(DecodeError, match=r"^key-of-it has compressed pixels that are cut"):
            decoded(head, value[:size], header)


def test_other_numbers_of_frames_are_refused():
    head, header, frames = made("jpeg-ls")
    for value in (items(*frames[:2]), items(*frames, frames[0]), END, items()):
        with pytest.raises(DecodeError, match=r"^key-of-it has "):
            decoded(head, value, header)


@pytest.mark.parametrize(
    "table",
    [(0, 1, 2), (8, 16, 24), (0, 1 << 31, 1 << 30), (0, 0, 0), (0,), (0, 1 << 20, 1 << 21)],
)
def test_tables_that_lie_are_refused(table):
    head, header, frames = made("jpeg-ls")
    fragments = [half for frame in frames for half in halves(frame)]
    value = items(*fragments, table=struct.pack(f"<{len(table)}I", *table))
    with pytest.raises(DecodeError, match=r"^key-of-it has "):
        decoded(head, value, header)


@pytest.mark.parametrize("method", ["jpeg-lossless", "jpeg-ls", "jpeg2000"])
def test_a_codestream_of_another_shape_is_refused_before_it_is_decoded(method):
    head, header, (frame,) = made(method, "single")
    for changes in ({"rows": 34}, {"columns": 35}, {"rows": 36, "columns": 33}):
        other = msgspec.structs.replace(header, **changes)
        with pytest.raises(DecodeError, match=r"own header states 33 × 36 of 1 channels; wanted"):
            decoded(head, items(frame), other)
    if method == "jpeg2000":
        place = frame.index(b"\xff\x4f\xff\x51") + 8
        bomb = frame[:place] + struct.pack(">II", 1 << 31, 1 << 31) + frame[place + 8 :]
    else:
        marker = {"jpeg-lossless": b"\xff\xc3", "jpeg-ls": b"\xff\xf7"}[method]
        place = frame.index(marker) + 5
        bomb = frame[:place] + b"\xff\xff\xff\xff" + frame[place + 4 :]
    with pytest.raises(DecodeError, match=r"own header states \d+ × \d+ of 1 channels"):
        decoded(head, items(bomb), header)


@pytest.mark.parametrize("method", ["jpeg-lossless", "jpeg-ls", "jpeg2000"])
def test_a_codestream_without_its_end_is_refused(method):
    head, header, (frame,) = made(method, "single")
    short = frame[: len(frame) // 4 * 2]
    with pytest.raises(DecodeError, match=f"^key-of-it has a frame of {name_of(header)} without"):
        decoded(head, items(short), header)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_codestream_is_refused(method):
    head, header, _ = made(method, "single")
    for frame in (
        bytes(64),
        b"\xff\xd8" + bytes(62),
        b"\xff\x4f\xff\x51" + bytes(60),
        b"\xff" * 64,
    ):
        with pytest.raises(DecodeError, match=r"^key-of-it h"):
            decoded(head, items(frame), header)


def test_an_rle_frame_that_is_too_long_or_unfolds_to_another_size_is_refused():
    head, header, (frame,) = made("rle", "single")
    with pytest.raises(DecodeError, match=r"bytes of RLE for 2,376 bytes of pixels"):
        decoded(head, items(frame + bytes(8000)), header)
    # Each pair of bytes makes 128.
    bomb = frame[:64] + b"\x81\x00" * 1000
    with pytest.raises(DecodeError, match="holds RLE that cannot be decoded"):
        decoded(head, items(bomb), header)


@pytest.mark.parametrize("transfer_syntax", COMPRESSED)
def test_pydicom_has_the_plugin_of_each(transfer_syntax):
    assert COMPRESSED[transfer_syntax].plugin in get_decoder(transfer_syntax).available_plugins


@pytest.mark.parametrize(
    ("method", "module"),
    [("jpeg-lossless", "gdcm"), ("jpeg-ls", "jpeg_ls"), ("jpeg2000", "openjpeg")],
)
def test_a_plugin_that_is_not_installed_is_named(method, module, monkeypatch):
    head, header, (frame,) = made(method, "single")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFailure, match=rf"{module} is not installed here: .*\[dicom\]"):
        decoded(head, items(frame), header)


def name_of(header: SliceHeader) -> str:
    return COMPRESSED[header.transfer_syntax].name
