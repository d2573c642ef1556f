"""Boxes of members are the voxels that they were made of, and damage is found."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import xxhash

from codec.ctz_cases import SHAPES, box_of, compressed, head_of, volume
from ctgpu import _native
from ctgpu.codec import Coding, CtzError, decompress, head_bytes
from ctgpu.codec.ctz import CODINGS, KINDS, SLACK_BYTES, Kind, Shape
from ctgpu.codec.decompress import slabs_at_once, tiles_of
from support import plain_ctz

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("axes", ["DHW", "HWD", "WHD"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_variant_decodes_into_any_memory(
    shape: Shape, kind: Kind, coding: Coding, axes: str
) -> None:
    voxels = volume(shape, kind)
    member = compressed(voxels, kind, coding)
    for variant in _native.ctz_variants():
        assert (box_of(member, shape, axes=axes, variant=variant) == voxels).all()


@pytest.mark.parametrize("axes", ["DHW", "HWD"])
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_at_every_corner(kind: Kind, axes: str) -> None:
    shape: Shape = (35, 9, 97)
    voxels = volume(shape, kind)
    member = compressed(voxels, kind, "rice")
    for corner in itertools.product(*((0, n // 3, n - max(1, n // 2)) for n in shape)):
        d, h, w = corner
        box: Shape = (max(1, shape[0] // 2), max(1, shape[1] // 2), max(1, shape[2] // 2))
        wanted = voxels[d : d + box[0], h : h + box[1], w : w + box[2]]
        assert (box_of(member, shape, (d, h, w), box, axes=axes) == wanted).all(), corner


def test_a_box_meets_only_its_tiles() -> None:
    shape: Shape = (35, 9, 97)
    head = head_of(compressed(volume(shape, "float16"), "float16", "pack"), shape)
    assert tiles_of(head, (8, 0, 32), (8, 9, 32)) == [range(5, 6)]
    assert tiles_of(head, (7, 3, 31), (2, 1, 2)) == [range(0, 2), range(4, 6)]
    assert tiles_of(head, (0, 0, 0), shape) == [range(4 * n, 4 * n + 4) for n in range(5)]


def test_several_slabs_are_decoded_at_once_where_d_is_fastest() -> None:
    memory = np.empty((4, 5, 6), np.uint16)
    assert slabs_at_once(memory) == 1
    assert slabs_at_once(memory.transpose(2, 0, 1)) == 4


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.ctz")), ids=lambda path: path.stem)
def test_members_of_before_are_read(path: Path) -> None:
    member = path.read_bytes()
    shape: Shape = (9, 7, 33)
    kind: Kind = path.stem.partition("-")[0]  # type: ignore[assignment]
    assert head_of(member, shape).kind == kind
    for decoded in (box_of(member, shape), plain_ctz.decode(member)):
        stored = np.ascontiguousarray(decoded.transpose(1, 2, 0))
        assert xxhash.xxh3_128_hexdigest(stored.tobytes()) == head_of(member, shape).xxh3_128


def test_there_are_members_of_before_of_every_kind() -> None:
    names = {path.stem for path in GOLDEN.glob("*.ctz")}
    assert names == {f"{kind}-{coding}" for kind in KINDS for coding in CODINGS}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_passes(kind: Kind, coding: Coding) -> None:
    shape: Shape = (2, 3, 5)
    voxels = volume(shape, kind)
    member = compressed(voxels, kind, coding)
    for bit in range(8 * len(member)):
        damaged = bytearray(member)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        try:
            decoded = box_of(bytes(damaged), shape)
        except CtzError:
            continue
        # Of the head only the volume's own checksum and layout do not matter to voxels, and its
        # checksum is over these too.
        pytest.fail(f"bit {bit} was not noticed: {(decoded != voxels).sum()} voxels differ")


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_checksums_every_variant_finds_the_same_damage(kind: Kind, coding: Coding) -> None:
    shape: Shape = (9, 6, 40)
    member = compressed(volume(shape, kind), kind, coding)
    begin = head_bytes(shape)
    random = np.random.default_rng(5)
    found = 0
    for _ in range(300):
        damaged = bytearray(member)
        for at in random.integers(begin, len(member), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        outcomes = []
        for variant in _native.ctz_variants():
            try:
                outcome = box_of(bytes(damaged), shape, variant=variant, verify=False).tobytes()
            except CtzError as error:
                # Of several faults each finds its own first.
                outcome = str(error).partition(":")[0].encode()
            outcomes.append(outcome)
        assert len(set(outcomes)) == 1
        found += outcomes[0].startswith(b"its tile")
    assert found > 0


def test_residuals_wrap_around_at_16_bits() -> None:
    shape: Shape = (1, 16, 1)
    head = head_of(compressed(np.zeros(shape, np.uint16), "int16", "rice"), shape)
    # One group of code 13 with the bits 6 and a quotient of 12, then groups of nothing.
    tile = b"\xfd" + 7 * b"\xff" + b"\x06\x00" + b"\x00\x10"
    table = np.array([(len(tile), 2, 2, 0, xxhash.xxh3_64_intdigest(tile))], head.table.dtype)
    member = dataclasses.replace(head, table=table).to_bytes() + tile
    wanted = np.full(shape, ((12 << 13 | 6) & 0xFFFF) >> 1, np.uint16)
    assert (plain_ctz.decode(member) == wanted).all()
    for variant in _native.ctz_variants():
        assert (box_of(member, shape, variant=variant) == wanted).all()


def test_a_wrong_checksum_names_the_tile() -> None:
    shape: Shape = (9, 6, 40)
    member = bytearray(compressed(volume(shape, "float16"), "float16", "pack"))
    member[-1] ^= 64
    with pytest.raises(CtzError, match="its tile 3 does not have its checksum"):
        box_of(bytes(member), shape)


def test_data_without_room_behind_it_is_refused() -> None:
    shape: Shape = (9, 6, 40)
    member = compressed(volume(shape, "float16"), "float16", "pack")
    head = head_of(member, shape)
    data = np.frombuffer(member, np.uint8)[head_bytes(shape) :]
    out = np.empty(shape, np.uint16)
    with pytest.raises(ValueError, match=f"and takes {len(data) + SLACK_BYTES}"):
        decompress(head, tiles_of(head, (0, 0, 0), shape), data, out)
