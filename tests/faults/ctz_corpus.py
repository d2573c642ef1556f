"""Members `.ctz` that are hostile, and what reads them as a shard's reader does.

A checksum keeps out accidents and no attacker: all but the shortest have those that they need.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from ctgpu.codec.ctz import (
    CODINGS,
    HEADER_BYTES,
    KINDS,
    LAYOUTS,
    SLACK_BYTES,
    Head,
    Shape,
    head_bytes,
)
from ctgpu.codec.decompress import decompress, slabs_at_once, tiles_of
from support import plain_ctz

#: Four tiles, the last of both kinds smaller.
SHAPE_DHW: Shape = (9, 5, 33)


def true_voxels(kind: plain_ctz.Kind) -> np.ndarray:
    """The volume that every valid member of a kind holds, shape `SHAPE_DHW`; bfloat16 as bits."""
    rng = np.random.default_rng(23)
    walk = np.cumsum(rng.integers(-9, 10, SHAPE_DHW), axis=2)
    if kind in ("uint8", "int16"):
        return np.abs(walk).astype(np.uint8) if kind == "uint8" else walk.astype(np.int16)
    walk[2, 3] = 0
    fine = walk / 64 if kind == "grid" else walk / 64 + rng.random(SHAPE_DHW) / 999
    if kind == "bfloat16":
        return (fine.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return fine.astype(np.float16)


def valid_members() -> dict[str, bytes]:
    """One of every kind, coding and layout; their narrow tiles are stored as they are."""
    return {
        f"{kind}-{coding}-{layout}": plain_ctz.encode(
            true_voxels(kind),
            kind,
            coding,
            grid=0 if kind in ("uint8", "int16") else 6,
            weights=(-20000, 9000, 2000),
            first=3,
            layout=layout,
            raw_tiles=frozenset({1, 3}),
        )
        for kind, coding, layout in itertools.product(KINDS, CODINGS, LAYOUTS)
    }


def mended(member: bytes, shape_dhw: Shape = SHAPE_DHW) -> bytes:
    """The member with the checksums that header, table and tiles would have, as far as it goes."""
    begin = head_bytes(shape_dhw)
    if len(member) < begin:
        return member
    made = bytearray(member)
    at = begin
    for entry in range(HEADER_BYTES, begin, 24):
        size = int.from_bytes(made[entry : entry + 4], "little")
        digest = xxhash.xxh3_64_intdigest(made[at : at + size])
        made[entry + 16 : entry + 24] = digest.to_bytes(8, "little")
        at += size
    digest = xxhash.xxh3_64_intdigest(made[:56] + made[HEADER_BYTES:begin])
    made[56:64] = digest.to_bytes(8, "little")
    return bytes(made)


def crafted() -> Iterator[tuple[str, bytes]]:
    """A name, and a member that contradicts its shape or itself in one place."""
    sound = valid_members()["float16-rice-DHW"]
    table = np.frombuffer(sound, "<u4", 24, HEADER_BYTES).reshape(4, 6).tolist()
    size, packed, quotients, *_ = table[0]

    def changed(at: int, form: str, *values: Any) -> bytes:
        made = bytearray(sound)
        struct.pack_into(form, made, at, *values)
        return mended(bytes(made))

    most = 0xFFFFFFFF
    yield "sizes-beyond-the-member", changed(HEADER_BYTES, "<I", most)
    yield "parts-beyond-32-bits", changed(HEADER_BYTES + 4, "<II", most, 2)
    yield "parts-beyond-their-tile", changed(HEADER_BYTES + 4, "<I", size - quotients + 1)
    yield "packed-bits-too-long", changed(HEADER_BYTES + 4, "<I", packed + 1)
    yield "quotients-too-long", changed(HEADER_BYTES + 8, "<I", quotients + 1)
    yield "quotients-missing", changed(HEADER_BYTES + 8, "<I", 0)
    yield "a-tile-borrows-a-byte", changed(HEADER_BYTES, "<I", size + 1)
    yield "a-coded-tile-called-raw", changed(HEADER_BYTES + 12, "<I", 1)
    yield "a-form-that-is-unknown", changed(HEADER_BYTES + 12, "<I", 2)
    yield "another-version", changed(3, "<B", 2)
    yield "a-kind-that-is-unknown", changed(4, "<B", 5)
    yield "a-coding-that-is-unknown", changed(5, "<B", 2)
    yield "a-grid-too-coarse", changed(6, "<b", -2)
    yield "a-grid-too-fine", changed(6, "<b", 15)
    yield "a-layout-that-is-unknown", changed(7, "<B", 2)
    yield "no-planes", changed(8, "<I", 0)
    yield "a-plane-more", changed(8, "<I", SHAPE_DHW[0] + 1)
    yield "as-large-as-can-be", changed(8, "<III", most, most, most)
    yield "a-weight-without-its-opposite", changed(22, "<h", -32768)
    yield "something-where-nothing-is", changed(28, "<I", 1)
    yield "something-behind-the-checksum", changed(48, "<Q", 1)
    yield "no-checksum", sound[:56] + bytes(8) + sound[HEADER_BYTES:]
    yield "no-ctz", b"GIF" + sound[3:]
    yield "bytes-behind-it", sound + b"\0"
    for length in (0, 1, HEADER_BYTES, head_bytes(SHAPE_DHW) - 1, len(sound) - 1):
        yield f"cut-to-{length}", sound[:length]


def decoded(
    member: bytes,
    shape_dhw: Shape = SHAPE_DHW,
    *,
    start_dhw: Shape = (0, 0, 0),
    box_dhw: Shape | None = None,
    hwd: bool = False,
    verify: bool = True,
    variant: str = "",
) -> np.ndarray:
    """A box of the member, which has to be of that shape; axes D, H, W, floats as their bits.

    Raises
    ------
    CtzError
        As :meth:`Head.parse` and :func:`decompress` do.
    """
    begin = head_bytes(shape_dhw)
    head = Head.parse(member[:begin], shape_dhw=shape_dhw, member_bytes=len(member))
    box = box_dhw or shape_dhw
    dtype = np.uint8 if head.voxel_bytes == 1 else np.uint16
    out = np.zeros(box, dtype)
    if hwd:
        out = np.zeros((*box[1:], box[0]), dtype).transpose(2, 0, 1)
    runs, starts = tiles_of(head, start_dhw, box), head.starts()
    for n in range(0, len(runs), slabs_at_once(out)):
        some = runs[n : n + slabs_at_once(out)]
        parts = [member[starts[run.start] : starts[run.stop]] for run in some]
        data = np.frombuffer(b"".join([*parts, bytes(SLACK_BYTES)]), np.uint8)
        decompress(head, some, data, out, start_dhw, verify=verify, variant=variant)
    return out
