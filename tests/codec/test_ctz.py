"""Heads say nothing that a decoder would have to take on trust."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import xxhash

from codec.ctz_cases import compressed, head_of, volume
from ctgpu.codec.ctz import CtzError, Head, Shape, empty_table, head_bytes

SHAPE: Shape = (9, 6, 40)


@pytest.fixture(scope="module")
def member() -> bytes:
    return compressed(volume(SHAPE, "float16"), "float16", "rice", layout="HWD")


def test_a_head_says_what_was_written(member: bytes) -> None:
    head = head_of(member, SHAPE)
    assert (head.kind, head.coding, head.layout) == ("float16", "rice", "HWD")
    assert (head.shape_dhw, head.tiles_dw, head.voxel_bytes) == (SHAPE, (2, 2), 2)
    stored = np.ascontiguousarray(volume(SHAPE, "float16").transpose(1, 2, 0))
    assert head.xxh3_128 == xxhash.xxh3_128_hexdigest(stored.tobytes())
    assert head.size_bytes == len(member) == head.starts()[-1]
    assert head.starts()[0] == head_bytes(SHAPE) == 64 + 4 * 24
    assert head.to_bytes() == member[: head_bytes(SHAPE)]


def parse(head: bytes, member: bytes, shape: Shape = SHAPE) -> Head:
    return Head.parse(head, shape_dhw=shape, member_bytes=len(member))


def sealed(head: bytes) -> bytes:
    """With the checksum that belongs to it: whoever wants to do harm can compute it too."""
    digest = xxhash.xxh3_64_intdigest(head[:56] + head[64:])
    return head[:56] + digest.to_bytes(8, "little") + head[64:]


def changed(member: bytes, at: int, value: bytes) -> bytes:
    head = member[: head_bytes(SHAPE)]
    return sealed(head[:at] + value + head[at + len(value) :])


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"PK", "does not begin as a .ctz"),
        (3, b"\2", "version 2, and 1 is known"),
        (4, b"\5", "what no .ctz says"),
        (5, b"\2", "what no .ctz says"),
        (6, b"\x0f", "what no .ctz says"),
        (6, b"\xfe", "what no .ctz says"),
        (7, b"\2", "what no .ctz says"),
        (8, b"\x0a", r"its shape \(D, H, W\) is \(10, 6, 40\), and \(9, 6, 40\) was wanted"),
        (20, b"\0\x80", "what no .ctz says"),
        (28, b"\1", "what no .ctz says"),
        (48, b"\1", "what no .ctz says"),
        (64, b"\xff\xff\xff\xff", "table says what no .ctz says"),
        (68, b"\xff\xff\xff\xff", "table says what no .ctz says"),
        (76, b"\1", "table says what no .ctz says"),
        (76, b"\2", "table says what no .ctz says"),
    ],
)
def test_a_head_that_lies_is_refused(member: bytes, at: int, value: bytes, said: str) -> None:
    with pytest.raises(CtzError, match=said):
        parse(changed(member, at, value), member)


def test_a_head_without_its_checksum_is_refused(member: bytes) -> None:
    head = bytearray(member[: head_bytes(SHAPE)])
    head[33] ^= 1
    with pytest.raises(CtzError, match="does not have its checksum"):
        parse(bytes(head), member)


def test_a_head_that_is_cut_short_is_refused(member: bytes) -> None:
    with pytest.raises(CtzError, match="its head has 159 bytes, and takes 160"):
        parse(member[:159], member)


def test_a_member_of_another_size_is_refused(member: bytes) -> None:
    with pytest.raises(CtzError, match=f"end at byte {len(member)} of {len(member) + 1}"):
        parse(member[: head_bytes(SHAPE)], member + b"\0")


def test_tiles_that_are_a_little_shorter_are_refused(member: bytes) -> None:
    size = int(head_of(member, SHAPE).table["size"][0]) - 1
    with pytest.raises(CtzError, match="its tiles end at byte"):
        parse(changed(member, 64, size.to_bytes(4, "little")), member)


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 65536, 1), (1, 1, -1)])
def test_there_is_no_head_of_such_a_shape(shape: Shape) -> None:
    with pytest.raises(ValueError, match="an axis takes 1 to 65535"):
        head_bytes(shape)


def test_a_table_has_an_entry_for_each_tile() -> None:
    assert len(empty_table((9, 65535, 33))) == 4


def test_what_is_written_is_read_again(member: bytes) -> None:
    head = dataclasses.replace(head_of(member, SHAPE), weights=(-5, 32767, -32767), first=-32768)
    again = parse(head.to_bytes(), member)
    assert (again.weights, again.first) == (head.weights, head.first)
