"""Voxels behind a header of text, or in a file beside it."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy as np
import pytest

from ctgpu.decode.inflate import InflateError
from ctgpu.decode.payload import Payload, numbers, own_name, three_axes, whole
from ctgpu.errors import DecodeError

VOXELS = np.arange(60, dtype="<i2").reshape(5, 4, 3)
HEAD = b"anything before"


def located(stored: bytes, **fields: Any) -> np.ndarray:
    payload = Payload((5, 4, 3), VOXELS.dtype, None, **fields)
    data = np.frombuffer(HEAD + stored, np.uint8)
    volume = payload.locate("a.mha", data, 1 << 20, len(HEAD))
    memory = np.zeros(volume.inflated_bytes, np.uint8)
    volume.unpack(memory)
    held = memory if volume.inflated_bytes else data
    return np.ndarray(volume.shape, volume.dtype, held.tobytes(), volume.offset, order="F")


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        (VOXELS.tobytes("F"), {}),
        (b"\0\0\0" + VOXELS.tobytes("F"), {"offset": 3}),
        (b"\0\0\0" + VOXELS.tobytes("F"), {"offset": None}),
        (VOXELS.tobytes("F") + b"\n", {}),
        (zlib.compress(VOXELS.tobytes("F")), {"compression": "zlib"}),
        (gzip.compress(VOXELS.tobytes("F")), {"compression": "gzip"}),
    ],
    ids=["plain", "skipped", "at the end", "padded", "zlib", "gzip"],
)
def test_the_first_axis_is_fastest_however_they_are_stored(
    stored: bytes, fields: dict[str, Any]
) -> None:
    np.testing.assert_array_equal(located(stored, **fields), VOXELS)


@pytest.mark.parametrize("compression", ["zlib", "gzip"])
@pytest.mark.parametrize("size_bytes", [0, 119, 122])
def test_a_stream_of_another_size_is_refused(compression: str, size_bytes: int) -> None:
    pack = {"zlib": zlib.compress, "gzip": gzip.compress}[compression]
    with pytest.raises(InflateError):
        located(pack(bytes(size_bytes)), compression=compression)


def test_what_the_bytes_cannot_hold_is_refused_before_memory_is_taken() -> None:
    for stored, fields in ((b"", {}), (VOXELS.tobytes()[1:], {}), (b"", {"compression": "zlib"})):
        with pytest.raises(DecodeError, match=r"a\.mha"):
            located(stored, **fields)
    huge = Payload((10**5, 10**5, 1000), VOXELS.dtype, None)
    with pytest.raises(DecodeError, match="at most 1,048,576 are accepted"):
        huge.locate("a.mha", np.zeros(9, np.uint8), 1 << 20, 0)


def test_only_a_file_beside_its_header_is_its_own() -> None:
    assert own_name("a.mhd", "a b.raw") == "a b.raw"
    for elsewhere in ("", ".", "..", "../a.raw", "/a.raw", "b/a.raw", "C:\\a.raw", "a\0"):
        with pytest.raises(DecodeError, match="one file beside it"):
            own_name("a.mhd", elsewhere)


def test_numbers_of_a_header() -> None:
    assert numbers("a", "Offset", "1 -2.5 1e3", 3) == [1, -2.5, 1000]
    assert numbers("a", "space origin", "1,2,3", 3) == [1, 2, 3]
    for text in ("", "1 2", "1 2 3 4", "1 2 x", "1 2 nan", "1 2 inf"):
        with pytest.raises(DecodeError, match=r"a has Offset .*; wanted 3 finite numbers"):
            numbers("a", "Offset", text, 3)
    assert whole("a", "sizes", "5 4 3") == [5, 4, 3]
    with pytest.raises(DecodeError, match=r"a has sizes '5 4\.5'; wanted whole numbers"):
        whole("a", "sizes", "5 4.5")
    assert three_axes([5, 4, 3, 1, 1]) == (5, 4, 3)
    assert three_axes([5, 4, 3, 2]) == (5, 4, 3, 2)
