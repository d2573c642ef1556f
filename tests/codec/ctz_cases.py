"""Volumes of every kind, as members and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.codec import Coding, Head, compress, compressed_limit_bytes, decompress, head_bytes
from ctgpu.codec.ctz import SLACK_BYTES, Kind, Shape
from ctgpu.codec.decompress import tiles_of
from ctgpu.spec import Layout

#: One voxel; parts of tiles in every axis; whole tiles; fewer rows, columns or planes than any.
SHAPES: tuple[Shape, ...] = (
    (1, 1, 1),
    (9, 5, 33),
    (8, 7, 32),
    (17, 4, 70),
    (3, 20, 31),
    (35, 9, 97),
)
GRIDS: dict[Kind, int] = {"uint8": 0, "int16": 0, "grid": 10}

Voxels = npt.NDArray[Any]


def volume(shape_dhw: Shape, kind: Kind, seed: int = 1) -> Voxels:
    """A smooth, noisy volume with flat parts, as unsigned numbers of the kind's size."""
    d, h, w = np.ogrid[tuple(map(slice, shape_dhw))]
    noise = np.random.default_rng(seed).normal(0, 0.05, shape_dhw)
    x = np.clip((np.sin(d / 5) + np.cos(h / 9 + w / 7)) / 2 + noise, -1, 1)
    x[x < -0.4] = -1
    if kind == "uint8":
        labels: Voxels = (x > 0) * np.uint8(3) + (x > 0.6)
        return labels.astype(np.uint8)
    if kind == "int16":
        return (x * 1000).astype(np.int16).view(np.uint16)
    if kind == "grid":
        return (np.rint(x * 1024) / 1024 + 0).astype(np.float16).view(np.uint16)
    if kind == "float16":
        return x.astype(np.float16).view(np.uint16)
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def compressed(
    voxels_dhw: Voxels,
    kind: Kind,
    coding: Coding,
    *,
    layout: Layout = "DHW",
    grid: int | None = None,
    variant: str = "",
) -> bytes:
    """As a member; that nothing was written behind its limit is made sure of."""
    turned = voxels_dhw if layout == "DHW" else voxels_dhw.transpose(1, 2, 0)
    stored = np.ascontiguousarray(turned)
    limit = compressed_limit_bytes(voxels_dhw.shape, voxels_dhw.itemsize)  # type: ignore[arg-type]
    room = np.full(limit + 64, 7, np.uint8)
    size = compress(
        stored,
        kind=kind,
        grid=GRIDS.get(kind, grid),
        layout=layout,
        coding=coding,
        xxh3_128=xxhash.xxh3_128_hexdigest(stored.tobytes()),
        out=room[:limit],
        variant=variant,
    )
    assert (room[limit:] == 7).all()
    return room[:size].tobytes()


def head_of(member: bytes, shape_dhw: Shape) -> Head:
    """Its head, parsed."""
    end = head_bytes(shape_dhw)
    return Head.parse(member[:end], shape_dhw=shape_dhw, member_bytes=len(member))


def box_of(
    member: bytes,
    shape_dhw: Shape,
    start_dhw: Shape = (0, 0, 0),
    box_dhw: Shape | None = None,
    *,
    axes: str = "DHW",
    variant: str = "",
    verify: bool = True,
) -> Voxels:
    """A box of it, decoded into memory with its axes in another order; only tiles that it meets."""
    head = head_of(member, shape_dhw)
    box = box_dhw or shape_dhw
    runs = tiles_of(head, start_dhw, box)
    starts, data = head.starts(), np.frombuffer(member, np.uint8)
    parts = [data[starts[run.start] : starts[run.stop]] for run in runs]
    slack = np.full(SLACK_BYTES, 255, np.uint8)
    dtype = np.uint8 if head.voxel_bytes == 1 else np.uint16
    memory = np.full([box["DHW".index(axis)] for axis in axes], 9, dtype)
    out = memory.transpose([axes.index(axis) for axis in "DHW"])
    decompress(
        *(head, runs, np.concatenate([*parts, slack]), out, start_dhw),
        verify=verify,
        variant=variant,
    )
    return out
