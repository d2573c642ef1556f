"""Decoders of every kind of processor, held against each other and the page's writer."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctgpu import _native
from ctgpu.codec import CtzError, decompress
from ctgpu.codec.ctz import (
    CODINGS,
    KINDS,
    LANES,
    PLANES,
    SLACK_BYTES,
    Coding,
    Head,
    Kind,
    Shape,
    head_bytes,
)
from support import plain_ctz

VARIANTS = _native.ctz_variants()
#: Whole tiles side by side; the last one narrow and low; one lane; rows that end no word of codes.
SHAPES: list[Shape] = [(9, 31, 96), (11, 16, 45), (3, 17, 33), (1, 1, 1), (8, 30, 32)]


def phantom(kind: Kind, shape_dhw: Shape) -> npt.NDArray[Any]:
    """Padding, a smooth body with noise, values near zero, and some far from their neighbours."""
    rng = np.random.default_rng(0)
    d, h, w = np.indices(shape_dhw, np.float64)
    values = np.sin(d / 5 + h / 7 + w / 11) * 0.6 + rng.normal(0, 0.01, shape_dhw)
    values[:, : shape_dhw[1] // 4] = -1
    values[:, :, : shape_dhw[2] // 3] *= 0.01
    far = rng.random(shape_dhw) < 0.002
    values[far] = rng.uniform(-1, 1, far.sum())
    values[rng.random(shape_dhw) < 0.05] = 0
    values = values.clip(-1, 1)
    if kind == "uint8":
        return np.rint(values * 100 + 100).astype(np.uint8)
    if kind == "int16":
        return np.where(far, values * 32767, values * 1000).astype(np.int16)
    if kind == "grid":
        return (np.rint(values * 1024) / 1024 + 0).astype(np.float16)
    if kind == "bfloat16":
        bits: npt.NDArray[Any] = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return np.where(bits == 0x8000, 0, bits).astype(np.uint16)
    return (values + 0).astype(np.float16)


def member(
    voxels: npt.NDArray[Any], kind: Kind, coding: Coding, grid: int | None = None
) -> tuple[Head, npt.NDArray[np.uint8]]:
    """Head and tiles of a volume, as the page's writer has them."""
    if grid is None:
        grid = {"grid": 10, "float16": 11, "bfloat16": 11}.get(kind, 0)
    shape_dhw: Shape = voxels.shape  # type: ignore[assignment]
    begin = head_bytes(shape_dhw)
    parameters: Any = {"grid": grid, "weights": (5769, -7926, -32767), "first": -3}
    written = plain_ctz.encode(voxels, kind, coding, **parameters)
    sizes = np.frombuffer(written[64:begin], "<u4").reshape(-1, 6)[:, 0]
    starts = [(d, w) for d in range(0, shape_dhw[0], PLANES) for w in range(0, shape_dhw[2], LANES)]
    raw = frozenset(
        number
        for number, (d, w) in enumerate(starts)
        if sizes[number] > voxels[d : d + PLANES, :, w : w + LANES].nbytes
    )
    written = plain_ctz.encode(voxels, kind, coding, **parameters, raw_tiles=raw)
    head = Head.parse(written[:begin], shape_dhw=shape_dhw, member_bytes=len(written))
    return head, np.frombuffer(written[begin:] + b"\xff" * SLACK_BYTES, np.uint8)


@functools.cache
def written(
    kind: Kind, coding: Coding, shape_dhw: Shape
) -> tuple[npt.NDArray[Any], Head, npt.NDArray[np.uint8]]:
    """A phantom, and the head and the tiles of it."""
    voxels = phantom(kind, shape_dhw)
    return (voxels, *member(voxels, kind, coding))


def target(shape_dhw: Shape, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Memory for a volume whose rows begin cache lines, and the 32 voxels around each of them."""
    depth, height, width = shape_dhw
    row = -(-width // 32) * 32 + 64
    spare = np.full(depth * height * row + 64, 0x5A, dtype)
    start = -spare.ctypes.data % 64 // spare.itemsize
    whole = spare[start : start + depth * height * row].reshape(depth, height, row)
    return whole, whole[:, :, 32 : 32 + width]


def decoded(
    head: Head, data: npt.NDArray[np.uint8], variant: str, dtype: npt.DTypeLike
) -> npt.NDArray[Any] | None:
    """The volume, or None if it is found to be damaged."""
    whole, out = target(head.shape_dhw, dtype)
    try:
        decompress(head, [range(len(head.table))], data, out, verify=False, variant=variant)
    except CtzError:
        out = out[:0]
    outside = np.ones(whole.shape, bool)
    outside[:, :, 32 : 32 + head.shape_dhw[2]] = False
    assert (whole[outside] == np.array(0x5A, dtype)).all()
    return out if len(out) else None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_page_writes_is_read_by_every_processor(
    kind: Kind, coding: Coding, variant: str
) -> None:
    for shape_dhw in SHAPES:
        voxels, head, data = written(kind, coding, shape_dhw)
        out = decoded(head, data, variant, voxels.dtype)
        assert out is not None
        np.testing.assert_array_equal(out.view(f"u{out.itemsize}"), voxels.view(f"u{out.itemsize}"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("kind", "grids"), [("grid", (3, 9)), ("float16", (-1, 5, 9)), ("bfloat16", (-7, -2, 0, 6))]
)
def test_every_grid_is_read(kind: Kind, grids: tuple[int, ...], variant: str) -> None:
    for grid in grids:
        voxels = phantom("float16", (8, 14, 64)).astype(np.float32) * np.float32(2) ** (11 - grid)
        if kind == "grid":
            voxels = (np.rint(voxels / 2 * 2.0**grid) / 2.0**grid + 0).astype(np.float16)
        elif kind == "float16":
            voxels = voxels.astype(np.float16)
        else:
            voxels = (voxels.view(np.uint32) >> 16).astype(np.uint16)
        head, data = member(voxels, kind, "rice", grid)
        out = decoded(head, data, variant, voxels.dtype)
        assert out is not None
        np.testing.assert_array_equal(out.view("u2"), voxels.view("u2"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("kind", "grid", "tiny", "odd"),
    [("float16", -1, 0x4000, (0x4400, 0x4600)), ("bfloat16", 0, 0x3F80, (0x3F80, 0x4000))],
)
def test_as_many_significand_bits_as_vectors_take(
    kind: Kind, grid: int, tiny: int, odd: tuple[int, int], coding: Coding, variant: str
) -> None:
    # Tiny numbers of 14 bits all over, and some of an odd count, after which others begin anywhere.
    shape_dhw: Shape = (8, 40, 45)
    rng = np.random.default_rng(5)
    voxels = rng.integers(1, tiny, shape_dhw).astype(np.uint16)
    voxels[:, :, ::11] = rng.integers(*odd, voxels[:, :, ::11].shape)
    voxels[:, 20:22] = 0
    head, data = member(
        voxels.view(np.float16) if kind == "float16" else voxels, kind, coding, grid
    )
    assert not head.table["raw"].any()
    out = decoded(head, data, variant, np.uint16)
    assert out is not None
    np.testing.assert_array_equal(out, voxels)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "scalar"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_processor_finds_the_same_damage(kind: Kind, coding: Coding, variant: str) -> None:
    verdicts = set()
    for seed, shape_dhw in enumerate(SHAPES[:3]):
        voxels, head, sound = written(kind, coding, shape_dhw)
        rng = np.random.default_rng(seed)
        length = len(sound) - SLACK_BYTES
        for _ in range(60):
            data = sound.copy()
            start, changed = rng.integers(length), rng.choice([1, 1, 2, 64])
            data[start : start + changed] ^= rng.integers(256, size=changed, dtype=np.uint8)[
                : length + SLACK_BYTES - start
            ]
            want, out = (decoded(head, data, name, voxels.dtype) for name in ("scalar", variant))
            assert (out is None) == (want is None)
            verdicts.add(want is None)
            # A damaged number may have more bits than a significand, and stands for no float then.
            if out is not None and want is not None and kind in ("uint8", "int16"):
                np.testing.assert_array_equal(out, want)
    assert verdicts == {True, False}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("coding", CODINGS)
def test_nothing_is_made_of_noise(coding: Coding, variant: str) -> None:
    voxels, head, sound = written("float16", coding, SHAPES[0])
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(256, size=len(sound), dtype=np.uint8)
        assert decoded(head, noise, variant, voxels.dtype) is None
