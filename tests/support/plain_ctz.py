"""`.ctz` in plain NumPy: the reader of docs/ctz.md, and a writer as slow and as simple.

Both follow the page and share nothing with the codec.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from support.pages import python_blocks

Kind = Literal["uint8", "int16", "grid", "float16", "bfloat16"]
Coding = Literal["pack", "rice"]

_KINDS: tuple[Kind, ...] = ("uint8", "int16", "grid", "float16", "bfloat16")
_PAGE = Path(__file__).parents[2] / "docs" / "ctz.md"
_FLOATS = {"float16": (10, 25), "bfloat16": (7, 134)}


@functools.cache
def reader_source() -> str:
    """The code on the page."""
    (source,) = python_blocks(_PAGE.read_text())
    return source


def decode(member: bytes) -> npt.NDArray[Any]:
    """What the page's reader makes of a member, in the order D, H, W; bfloat16 as its bits."""
    names: dict[str, Callable[[bytes], npt.NDArray[Any]]] = {}
    exec(reader_source(), names)
    return names["decode"](member)


def encode(
    volume_dhw: npt.NDArray[Any],
    kind: Kind,
    coding: Coding,
    *,
    grid: int = 0,
    weights: tuple[int, int, int] = (0, 0, 0),
    first: int = 0,
    layout: Literal["DHW", "HWD"] = "DHW",
    raw_tiles: frozenset[int] = frozenset(),
) -> bytes:
    """A member that holds the volume.

    Parameters
    ----------
    volume_dhw : numpy.ndarray
        Axes D, H, W; uint8, int16, uint16, float16, or bfloat16 as uint16.
    kind, coding, grid, weights, first, layout
        As the header has them.
    raw_tiles : set of int
        Numbers of the tiles that are stored as they are.
    """
    depth, _, width = volume_dhw.shape
    tiles, table = [], []
    starts = [(d, w) for d in range(0, depth, 8) for w in range(0, width, 32)]
    for number, (d, w) in enumerate(starts):
        tile = np.ascontiguousarray(volume_dhw[d : d + 8, :, w : w + 32])
        raw = number in raw_tiles
        parts = [tile.tobytes(), b"", b"", b""]
        if not raw:
            parts = _tile(tile, kind, coding, grid, weights, first)
        tiles.append(b"".join(parts))
        numbers = np.array([len(tiles[-1]), 0 if raw else len(parts[1]), len(parts[2]), raw], "<u4")
        table.append(numbers.tobytes() + xxhash.xxh3_64_intdigest(tiles[-1]).to_bytes(8, "little"))
    plain = volume_dhw if layout == "DHW" else volume_dhw.transpose(1, 2, 0)
    head = (
        b"CTZ\1"
        + bytes([_KINDS.index(kind), ("pack", "rice").index(coding), grid & 255])
        + bytes([("DHW", "HWD").index(layout)])
        + np.array(volume_dhw.shape, "<u4").tobytes()
        + np.array([*weights, first, 0, 0], "<i2").tobytes()
        + xxhash.xxh3_128_digest(np.ascontiguousarray(plain).tobytes())
        + bytes(8)
    )
    digest = xxhash.xxh3_64_intdigest(head + b"".join(table)).to_bytes(8, "little")
    return head + digest + b"".join(table) + b"".join(tiles)


def numbers(
    voxels: npt.NDArray[Any], kind: Kind, grid: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """k of each voxel, its open bits, and how many these are."""
    nothing = np.zeros(voxels.shape, np.int64)
    if kind == "grid":
        return np.rint(voxels.astype(np.float64) * 2.0**grid).astype(np.int64), nothing, nothing
    if kind not in _FLOATS:
        return voxels.astype(np.int16).astype(np.int64), nothing, nothing
    mantissa, bias = _FLOATS[kind]
    top = bias - grid
    bits = voxels.view(np.uint16).astype(np.int64)
    plain, exponent = bits & 0x7FFF, bits >> mantissa & (0x7FFF >> mantissa)
    whole = plain & (1 << mantissa) - 1 | 1 << mantissa
    tiny = exponent < top - mantissa
    count = np.where(tiny, ((top - mantissa << mantissa) - 1).bit_length(), top - exponent)
    count = np.where(bits == 0, 0, np.maximum(count, 0))
    m = np.where(
        exponent > top, whole << np.maximum(exponent - top, 0), whole >> np.minimum(count, 30)
    )
    m = np.where(tiny, 0, m)
    low = np.where(tiny, plain, whole & (1 << count) - 1)
    k = np.where(bits == 0, 0, np.where(bits >> 15, -(m + 1), m + 1))
    assert abs(k).max(initial=0) < 1 << 15
    return k, low, count


def _tile(
    tile: npt.NDArray[Any],
    kind: Kind,
    coding: Coding,
    grid: int,
    weights: tuple[int, int, int],
    first: int,
) -> list[bytes]:
    planes, height, lanes = tile.shape
    k, low, count = numbers(tile, kind, grid)
    codes, packed, ones, open_bits = [], [], [], []
    for p, r in np.ndindex(planes, height):
        residual = _i16(k[p, r] - _prediction(k, p, r, weights, first))
        z = np.where(residual < 0, -2 * residual - 1, 2 * residual)
        code, width, quotients = _coded(z, coding)
        codes.append(code)
        packed.append(_pack(_bits(z & (1 << width) - 1, np.full(lanes, width))))
        ones += [bit for q in quotients for bit in [0] * int(q) + [1]]
        open_bits += _bits(low[p, r], count[p, r])
    nibbles = np.array([*codes, 0], np.uint8)[: planes * height + planes * height % 2]
    return [
        (nibbles[::2] | nibbles[1::2] << 4).tobytes(),
        b"".join(packed),
        _pack(ones),
        _pack(open_bits),
    ]


def _i16(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return values.astype(np.int16).astype(np.int64)


def _prediction(
    k: npt.NDArray[np.int64], p: int, r: int, weights: tuple[int, int, int], first: int
) -> Any:
    if p == 0:
        return k[p, r - 1] if r else np.int64(first)
    if r == 0:
        return k[p - 1, r]
    a, b, c, e = k[p, r - 1], k[p - 1, r], k[p - 1, r - 1], k[p, max(r - 2, 0)]
    terms = zip((a - c, b - c, e - c), weights, strict=True)
    return a + b - c + sum((_i16(x) * weight + (1 << 14)) >> 15 for x, weight in terms)


def _coded(z: npt.NDArray[np.int64], coding: Coding) -> tuple[int, int, list[int]]:
    """Code, width and quotients of a group."""
    bits = int(z.max()).bit_length()
    if coding == "pack":
        return (bits, bits, []) if bits < 15 else (15, 16, [])
    if bits == 0:
        return 15, 0, []
    costs = {
        w: len(z) * (w + 1) + int((z >> w).sum())
        for w in range(14)
        if len(z) + int((z >> w).sum()) <= 57
    }
    if not costs or min(costs.values()) > 16 * len(z):
        return 14, 16, []
    width = min(costs, key=lambda w: (costs[w], w))
    return width, width, (z >> width).tolist()


def _bits(values: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> list[int]:
    pairs = zip(values.tolist(), widths.tolist(), strict=True)
    return [value >> bit & 1 for value, width in pairs for bit in range(width)]


def _pack(bits: list[int]) -> bytes:
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
