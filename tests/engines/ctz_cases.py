"""Members of `.ctz` for the CUDA decoder, what they must become, and its kernel on the host."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctgpu.codec.ctz import CODINGS, KINDS, SLACK_BYTES, Coding, Head, Kind, Shape, head_bytes
from ctgpu.codec.decompress import tiles_of
from ctgpu.engines.ctz_on_device import (
    ROW_BYTES,
    TILE,
    Compressed,
    CtzKernel,
    Output,
    Tables,
    tables_of,
)
from support import plain_ctz
from support.compiling import compiled

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
WEIGHTS = (9000, 14000, -6000)
#: A grid, and numbers of the kind that are on it.
GRIDS: dict[Kind, int] = {"uint8": 0, "int16": 0, "grid": 10, "float16": 9, "bfloat16": 6}
#: Planes, rows and columns that leave a rest; and less than a block of rows, or one of anything.
SHAPES: tuple[Shape, ...] = ((11, 13, 37), (9, 3, 33), (2, 8, 1), (1, 1, 5), (17, 1, 32))


def volume(kind: Kind, shape_dhw: Shape, seed: int = 0) -> np.ndarray:
    """Smooth voxels with noise, zeros, tiny numbers and both signs; bfloat16 as its bits."""
    rng = np.random.default_rng(seed)
    d, h, w = np.ogrid[tuple(map(slice, shape_dhw))]
    smooth = np.sin(d / 5 + seed) + np.cos(h / 7) * np.sin(w / 9 + 0.3)
    values = 0.45 * smooth + rng.normal(0, 0.01, shape_dhw)
    values[rng.random(shape_dhw) < 0.1] = 0
    if kind == "uint8":
        return (np.abs(values) * 6).astype(np.uint8)
    if kind == "int16":
        return (values * 1200).astype(np.int16).view(np.uint16)
    if kind == "grid":
        return (np.rint(values * 1024) / 1024 + 0.0).astype(np.float16)
    values[rng.random(shape_dhw) < 0.1] *= 1e-4
    if kind == "float16":
        return values.astype(np.float16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def member_of(
    voxels: np.ndarray, kind: Kind, coding: Coding, raw_tiles: frozenset[int] = frozenset()
) -> bytes:
    """A `.ctz` by the plain writer; tiles that would get larger are stored as they are too."""
    first = int(plain_ctz.numbers(voxels[:1, :1], kind, GRIDS[kind])[0].flat[0])
    stated = {"grid": GRIDS[kind], "weights": WEIGHTS, "first": first}
    member = plain_ctz.encode(voxels, kind, coding, **stated, raw_tiles=raw_tiles)
    depth, height, width = voxels.shape
    tiles = np.frombuffer(member, np.uint32, (head_bytes(voxels.shape) - 64) // 4, 64)
    lanes = np.minimum(32, width - np.arange(0, width, 32))
    most = np.outer(np.minimum(8, depth - np.arange(0, depth, 8)), lanes * height).ravel()
    large = np.flatnonzero(tiles.reshape(-1, 6)[:, 0] > most * voxels.itemsize).tolist()
    if not large:
        return member
    return plain_ctz.encode(voxels, kind, coding, **stated, raw_tiles=raw_tiles | {*large})


def head_of(member: bytes, shape_dhw: Shape) -> Head:
    return Head.parse(
        member[: head_bytes(shape_dhw)], shape_dhw=shape_dhw, member_bytes=len(member)
    )


def beyond_floats(kind: Kind, grid: int, shape_dhw: Shape) -> bytes:
    """A `.ctz` with sound checksums of floats whose numbers have more bits than a float holds."""
    rng = np.random.default_rng(grid + 9)
    # Of 2^11 and more none has significand bits, nor has 0.
    numbers = 12000 + rng.integers(-400, 401, shape_dhw).cumsum(axis=1)
    numbers[:, :, 1::2] *= -1
    numbers.flat[:6] = 32767, -32767, -32768, 0, 4095, -4097
    member = member_of(numbers.astype(np.int16).view(np.uint16), "int16", "rice")
    head = head_of(member, shape_dhw)
    assert not head.table["raw"].all()
    renamed = replace(head, kind=kind, grid=grid).to_bytes()
    return renamed + member[len(renamed) :]


@dataclass
class Batch:
    """Samples, the memory that their bytes are in, and boxes to write."""

    samples: list[Compressed]
    data: np.ndarray
    out: np.ndarray
    wanted: np.ndarray

    def check(self) -> None:
        np.testing.assert_array_equal(self.out, self.wanted)


@functools.cache
def whole(kind: Kind, coding: Coding, shape_dhw: Shape = SHAPES[0], seed: int = 0) -> bytes:
    """One of the members that many tests share."""
    tiles = frozenset({1}) if seed == 1 else frozenset()
    return member_of(volume(kind, shape_dhw, seed), kind, coding, tiles)


def batch_of(
    members: Sequence[bytes],
    shape_dhw: Shape,
    starts_dhw: Sequence[Shape] = (),
    box_dhw: Shape | None = None,
) -> Batch:
    """Members of one shape, of each the same box from other places, with gaps between them."""
    box = box_dhw or shape_dhw
    starts = list(starts_dhw) or [(0, 0, 0)] * len(members)
    samples, parts, end = [], [], 0
    for n, (member, start) in enumerate(zip(members, starts, strict=True)):
        head = head_of(member, shape_dhw)
        runs, begins = tiles_of(head, start, box), head.starts()
        parts.append(b"\xff" * (3 - n % 3))
        samples.append(Compressed(f"sample {n}", head, runs, end + len(parts[-1]), start))
        parts += [member[begins[run.start] : begins[run.stop]] for run in runs]
        end = sum(map(len, parts))
    data = np.frombuffer(b"".join(parts), np.uint8).copy()
    wanted = np.stack(
        [
            bits(plain_ctz.decode(member))[tuple(map(slice, start, np.add(start, box)))]
            for member, start in zip(members, starts, strict=True)
        ]
    )
    return Batch(samples, data, np.full_like(wanted, 0xA5), wanted)


def bits(voxels: np.ndarray) -> np.ndarray:
    return voxels.view(f"u{voxels.itemsize}")


def output(out: np.ndarray) -> Output:
    """An array of the host's as the kernel writes to it."""
    return Output(out.ctypes.data, 0, out.shape, out.strides, out.itemsize)


# ---- The kernel on the host ---------------------------------------------------------------------


@functools.cache
def host_kernel() -> ctypes.CDLL:
    """``ctz_host.cpp``; the test is skipped where there is no compiler."""
    usual = ("-std=c++17", "-O2", "-Werror", "-Wno-unknown-pragmas")
    return ctypes.CDLL(str(compiled(KERNELS / "ctz_host.cpp", *usual)))


@dataclass
class Memory:
    """What stands for the device's memory."""

    data: np.ndarray
    planes: np.ndarray
    tables: Tables
    faults: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Compressed], data: np.ndarray, out: Output) -> Memory:
        rows = sum(len(one.numbers()) * one.head.shape_dhw[1] for one in samples)
        there = np.concatenate([data, np.full(SLACK_BYTES, 0xFF, np.uint8)])
        planes = np.full(max(rows, 1) * ROW_BYTES // 2, 0x5A5A, np.int16)
        tables = tables_of(samples, out, there.ctypes.data, planes.ctypes.data)
        return cls(there, planes, tables, np.full(len(tables.tiles), 0xFF, np.uint8))


def decode_on_host(samples: Sequence[Compressed], data: np.ndarray, out: np.ndarray) -> np.ndarray:
    """What the launches of a batch do; the faults of all tiles."""
    memory = Memory.of(samples, data, output(out))
    for key, first, count in memory.tables.launches:
        host_kernel().ctgpu_emulate_ctz(
            KINDS.index(key.kind),
            CODINGS.index(key.coding),
            ctypes.c_void_p(memory.tables.volumes.ctypes.data),
            ctypes.c_void_p(memory.tables.tiles.ctypes.data + first * TILE.itemsize),
            count,
            ctypes.c_void_p(memory.faults.ctypes.data + first),
        )
    return memory.faults


ALL_KERNELS = [CtzKernel(kind, coding) for kind in KINDS for coding in CODINGS]
