"""A whole member in memory: every bit of the volume, or one sentence that says what is wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from codec.ctz_cases import SHAPES, compressed, volume
from ctgpu.buffers import Bytes
from ctgpu.codec.ctz import KINDS, SLACK_BYTES, CtzError, Kind, Shape, head_bytes
from ctgpu.codec.whole import decode_member, decompress_whole, head_of, require_kind
from ctgpu.spec import Layout

#: Two slabs of two tiles each, and of the last ones not all planes and columns.
SHAPE: Shape = (9, 6, 40)
HEAD = head_bytes(SHAPE)


def room_of(member: bytes) -> Bytes:
    """The member, and behind it what a decoder may load and must not heed."""
    return np.frombuffer(member + b"\xff" * SLACK_BYTES, np.uint8)


def decoded(
    member: bytes, shape: tuple[int, ...], dtype: str = "<u2", layout: Layout = "DHW"
) -> npt.NDArray[Any]:
    out = np.full(shape, 7, dtype)
    decompress_whole(room_of(member), len(member), out, layout)
    return out


@pytest.fixture(scope="module")
def member() -> bytes:
    return compressed(volume(SHAPE, "float16"), "float16", "rice")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["DHW", "HWD"])
def test_all_of_it_comes_back_in_its_layout(kind: Kind, layout: Layout) -> None:
    for shape in SHAPES:
        voxels = volume(shape, kind)
        stored = voxels if layout == "DHW" else voxels.transpose(1, 2, 0)
        member = compressed(voxels, kind, "pack", layout=layout)
        out = np.empty(stored.shape, voxels.dtype)
        head = decompress_whole(room_of(member), len(member), out, layout)
        assert np.array_equal(out, stored)
        assert (head.kind, head.shape_dhw, head.layout) == (kind, shape, layout)


def test_a_head_is_read_by_the_shape_that_it_states_or_one_that_is_wanted(member: bytes) -> None:
    data = np.frombuffer(member, np.uint8)
    head = head_of(data)
    assert (head.shape_dhw, head.kind, head.coding) == (SHAPE, "float16", "rice")
    assert head_of(data, SHAPE).to_bytes() == head.to_bytes() == member[:HEAD]
    with pytest.raises(CtzError, match=r"its shape \(D, H, W\) is \(9, 6, 40\), and \(10, 6, 40\)"):
        head_of(data, (10, 6, 40))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it does not begin as a .ctz"),
        (b"CTZ", "it does not begin as a .ctz"),
        (b"version https://git-lfs.github.com/spec/v1\n" + bytes(100), "it does not begin as"),
        (b"CTZ\1" + bytes(60), r"the shape \(D, H, W\) is \(0, 0, 0\); an axis takes 1 to 65535"),
        (b"CTZ\1\2\0\0\0" + b"\xff\xff\0\0" * 3 + bytes(90), "its head takes 402653248 bytes, and"),
    ],
)
def test_what_is_none_takes_no_memory(content: bytes, said: str) -> None:
    with pytest.raises(CtzError, match=said):
        head_of(np.frombuffer(content, np.uint8))


def test_wherever_it_is_cut_short_that_is_said(member: bytes) -> None:
    said = {}
    for size in (0, 63, 64, HEAD - 1, HEAD, len(member) - 1):
        with pytest.raises(CtzError) as caught:
            decoded(member[:size], SHAPE)
        said[size] = str(caught.value)
    assert said == {
        0: f"its head takes {HEAD} bytes, and it has 0",
        63: f"its head takes {HEAD} bytes, and it has 63",
        64: f"its head takes {HEAD} bytes, and it has 64",
        HEAD - 1: f"its head takes {HEAD} bytes, and it has {HEAD - 1}",
        HEAD: f"its tiles end at byte {len(member)} of {HEAD}",
        len(member) - 1: f"its tiles end at byte {len(member)} of {len(member) - 1}",
    }


def test_a_byte_of_a_head_or_a_tile_that_is_another_is_found(member: bytes) -> None:
    starts = head_of(np.frombuffer(member, np.uint8)).starts().tolist()
    places = {32: "its header or table", HEAD - 1: "its header or table"}
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        places |= {start: f"its tile {number} does", end - 1: f"its tile {number} does"}
    for place, said in places.items():
        content = bytearray(member)
        content[place] ^= 0x10
        with pytest.raises(CtzError, match=f"{said}.* not have its checksum"):
            decoded(bytes(content), SHAPE)


def test_another_volume_than_the_head_promises_is_found(member: bytes) -> None:
    head = head_of(np.frombuffer(member, np.uint8))
    other = replace(head, xxh3_128="0" * 32).to_bytes() + member[HEAD:]
    with pytest.raises(CtzError, match=f"is decoded does not have the checksum {'0' * 32} of its"):
        decoded(other, SHAPE)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "said"),
    [
        ((9, 6, 41), "<u2", "DHW", r"is \(9, 6, 40\), and \(9, 6, 41\) was wanted"),
        ((9, 8, 40), "<u2", "DHW", r"is \(9, 6, 40\), and \(9, 8, 40\) was wanted"),
        (SHAPE, "u1", "DHW", "its voxels have 2 bytes, in the order DHW; wanted 1, and DHW"),
        ((6, 40, 9), "<u2", "HWD", "its voxels have 2 bytes, in the order DHW; wanted 2, and HWD"),
    ],
)
def test_another_shape_size_or_order_than_is_wanted_is_refused(
    member: bytes, shape: tuple[int, ...], dtype: str, layout: Layout, said: str
) -> None:
    with pytest.raises(CtzError, match=said):
        decoded(member, shape, dtype, layout)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("uint8", {"uint8"}),
        ("int16", {"int16", "uint16"}),
        ("grid", {"float16"}),
        ("float16", {"float16"}),
        ("bfloat16", {"bfloat16"}),
    ],
)
def test_what_it_holds_must_be_what_is_wanted(kind: Kind, dtypes: set[str]) -> None:
    head = head_of(np.frombuffer(compressed(volume(SHAPE, kind), kind, "pack"), np.uint8))
    for dtype in ("uint8", "int16", "uint16", "float16", "bfloat16", "<f2"):
        if dtype in dtypes:
            require_kind(head, dtype)
        else:
            with pytest.raises(CtzError, match=f"it holds {kind}, and {dtype} was wanted"):
                require_kind(head, dtype)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_member_is_decoded_in_either_order_into_memory_of_its_own(layout: Layout) -> None:
    wanted, voxel = volume(SHAPE, "float16"), np.dtype(np.uint16)
    content = compressed(wanted, "float16", "rice", layout=layout)
    for given in (content, memoryview(content), np.frombuffer(content, np.uint8)):
        found = decode_member(given, SHAPE, "float16", voxel)
        assert found.dtype == voxel
        assert found.flags.c_contiguous
        assert found.flags.owndata
        assert np.array_equal(found, wanted)
    turned = decode_member(content, SHAPE, "float16", voxel, "HWD")
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, wanted.transpose(1, 2, 0))


def test_a_member_that_is_damaged_or_something_else_is_no_volume(member: bytes) -> None:
    flipped = bytearray(member)
    flipped[HEAD] ^= 1
    for content, shape, dtype, sentence in (
        (bytes(flipped), SHAPE, "float16", "its tile 0 does not have"),
        (member[:-1], SHAPE, "float16", "its tiles end at byte"),
        (member[:50], SHAPE, "float16", f"its head takes {HEAD} bytes, and it has 50"),
        (b"", SHAPE, "float16", f"its head takes {HEAD} bytes, and it has 0"),
        (member, (0, 6, 40), "float16", "an axis takes 1 to 65535"),
        (member, SHAPE, "uint8", "it holds float16, and uint8 was wanted"),
    ):
        with pytest.raises(CtzError, match=sentence):
            decode_member(content, shape, dtype, np.dtype(np.uint16))
