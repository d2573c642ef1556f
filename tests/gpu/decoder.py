"""Stage of ``check.py``: the decoder of `.ctz` against the CPU's, bit by bit, and how fast it is.

    python decoder.py RESULT.json

Each part is written as soon as it is known.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash

from benchmarks.harness.gpu_timing import by_events
from benchmarks.questions.gpu_static_ctz import BATCHES, phantom
from ctgpu.codec import Head, compress, compressed_limit_bytes, decompress, head_bytes
from ctgpu.codec.ctz import CODINGS, KINDS, LANES, SLACK_BYTES, Coding, Kind, Shape
from ctgpu.codec.decompress import slabs_at_once, tiles_of
from ctgpu.engines.ctz_on_device import (
    ROW_BYTES,
    TILE,
    Compressed,
    CtzDecoder,
    CtzKernel,
    Output,
    tables_of,
)
from ctgpu.engines.nvrtc import DECODE_CTZ, Kernels
from ctgpu.spec import Layout

#: Planes, rows and columns that leave a rest, and a box with a part of every kind of tile.
SHAPE: Shape = (27, 101, 75)
BOX: tuple[Shape, Shape] = ((5, 3, 20), (21, 90, 50))
#: Kinds of what is usually stored.
TIMED: tuple[Kind, ...] = ("float16", "grid")
#: Slabs of the volume whose decoding is timed: 240 planes of 480 × 480.
SLABS = 30
REPEATS = 20


def main() -> int:
    """Compare and time; returns 0 where every bit is that of the CPU's decoder."""
    found = check(Path(sys.argv[1]), SLABS, REPEATS)
    same = all(one["same_bits"] for one in found["volumes"].values())
    return 0 if same and not any(of["damaged"] for of in found["speed"].values()) else 1


def check(result: Path, slabs: int, repeats: int) -> dict[str, Any]:
    """Every kind, coding and layout compared, and the usual kinds timed.

    Parameters
    ----------
    result : Path
        Where what was found is written, after each part.
    slabs : int
        Of the volume that is timed.
    repeats : int
        How often.
    """
    found: dict[str, Any] = {"volumes": {}, "speed": {}}
    decoder = CtzDecoder(0)

    def keep(part: str, name: str, of: dict[str, Any]) -> None:
        found[part][name] = of
        result.write_text(json.dumps(found), encoding="utf-8")

    for kind, coding, layout in itertools.product(KINDS, CODINGS, get_args(Layout)):
        keep("volumes", f"{kind}, {coding}, {layout}", compare(decoder, kind, coding, layout))
    for kind, coding in itertools.product(TIMED, CODINGS):
        keep("speed", f"{kind}, {coding}", speed(kind, coding, slabs, repeats))
    return found


# ---- bits --------------------------------------------------------------------------------------


def volume(kind: Kind, layout: Layout) -> np.ndarray:
    """Steps with noise, and where the kind has such, tiny numbers and infinite ones."""
    rng = np.random.default_rng(KINDS.index(kind))
    axes = SHAPE if layout == "DHW" else (*SHAPE[1:], SHAPE[0])
    steps = rng.integers(-3, 4, axes).cumsum(axis=0)
    if kind == "uint8":
        return np.minimum(np.abs(steps), 255).astype(np.uint8)
    if kind == "int16":
        return steps.astype(np.int16).view(np.uint16)
    values = steps / 64
    if kind == "grid":
        return values.astype(np.float16).view(np.uint16)
    values[rng.random(axes) < 0.1] *= 1e-4
    values[:2, :2, :2] = np.inf  # which makes raw tiles
    if kind == "float16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def compare(decoder: CtzDecoder, kind: Kind, coding: Coding, layout: Layout) -> dict[str, Any]:
    """A volume and a box of it, by both decoders."""
    stored = volume(kind, layout)
    out = np.empty(compressed_limit_bytes(SHAPE, stored.itemsize), np.uint8)
    member_bytes = compress(
        stored,
        kind=kind,
        grid={"uint8": 0, "int16": 0, "grid": 6}.get(kind),
        layout=layout,
        coding=coding,
        xxh3_128=xxhash.xxh3_128_hexdigest(stored.tobytes()),
        out=out,
    )
    begin = head_bytes(SHAPE)
    head = Head.parse(out[:begin].data, shape_dhw=SHAPE, member_bytes=member_bytes)
    differ = 0
    for start, box in (((0, 0, 0), SHAPE), BOX):
        theirs = on_cpu(head, out[begin:member_bytes], start, box)
        ours = on_gpu(decoder, head, out[begin:member_bytes], start, box)
        differ += int(np.count_nonzero(ours != theirs))
    return {
        "same_bits": differ == 0,
        "voxels_that_differ": differ,
        "raw_tiles": int(head.table["raw"].sum()),
        "tiles": len(head.table),
    }


def read(head: Head, tiles: np.ndarray, runs: list[range]) -> np.ndarray:
    """The bytes of some tiles, and room behind them."""
    starts = head.starts() - head.starts()[0]
    parts = [tiles[starts[run.start] : starts[run.stop]] for run in runs]
    return np.concatenate([*parts, np.zeros(SLACK_BYTES, np.uint8)])


def on_cpu(head: Head, tiles: np.ndarray, start: Shape, box: Shape) -> np.ndarray:
    """A box by the CPU's decoder, axes D, H, W."""
    out = np.full(box, 0xA5, np.uint8 if head.voxel_bytes == 1 else np.uint16)
    runs = tiles_of(head, start, box)
    for n in range(0, len(runs), slabs_at_once(out)):
        some = runs[n : n + slabs_at_once(out)]
        decompress(head, some, read(head, tiles, some), out, start)
    return out


def on_gpu(
    decoder: CtzDecoder, head: Head, tiles: np.ndarray, start: Shape, box: Shape
) -> np.ndarray:
    """A box by the GPU's."""
    cupy = importlib.import_module("cupy")
    runs = tiles_of(head, start, box)
    data = read(head, tiles, runs)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        out = cupy.empty((1, *box), np.uint8 if head.voxel_bytes == 1 else np.uint16)
    decoder.queue([Compressed("a volume", head, runs, 0, start)], data, out, stream.ptr).check()
    return np.asarray(cupy.asnumpy(out))[0]


# ---- speed -------------------------------------------------------------------------------------


def speed(kind: Kind, coding: Coding, slabs: int, repeats: int) -> dict[str, Any]:
    """The kernel alone, over phantoms that lie on the device, one of them and several at a time."""
    slab, slab_tiles = phantom(kind, coding)
    depth, height, width = slab.shape_dhw
    shape = (depth * slabs, height, width)
    head = replace(slab, shape_dhw=shape, table=np.tile(slab.table, slabs))
    tiles = np.tile(slab_tiles, slabs)
    found: dict[str, Any] = {"shape_dhw": shape, "compressed_bytes": len(tiles), "damaged": False}
    for batch in BATCHES:
        launch, faults = on_device(head, tiles, batch)
        (of,) = by_events({"decoder": launch}, repeats).values()
        out_bytes = batch * int(np.prod(shape)) * head.voxel_bytes
        of["voxel_gb_per_s"] = out_bytes / of["time"]["median"] / 1e9
        found[f"batch of {batch}"] = of
        found["damaged"] |= bool(faults().any())
    return found


def on_device(
    head: Head, tiles: np.ndarray, batch: int
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """What queues one launch over a batch of equal volumes; and what reads the faults of it."""
    cupy = importlib.import_module("cupy")
    numbers = range(len(head.table))
    samples = [Compressed("phantom", head, [numbers], n * len(tiles)) for n in range(batch)]
    data = cupy.asarray(np.concatenate([*[tiles] * batch, np.zeros(SLACK_BYTES, np.uint8)]))
    planes = cupy.empty(batch * len(numbers) * head.shape_dhw[1] * ROW_BYTES, np.uint8)
    out = cupy.empty((batch, *head.shape_dhw), np.uint16)
    tables = tables_of(samples, Output.of(out), data.data.ptr, planes.data.ptr)
    volumes, described = (
        cupy.asarray(np.frombuffer(table.tobytes(), np.uint8))
        for table in (tables.volumes, tables.tiles)
    )
    faults = cupy.asarray(np.full(len(tables.tiles), 0xFF, np.uint8))
    ((key, first, count),) = tables.launches
    kernel = Kernels(cupy, DECODE_CTZ).get(0, CtzKernel(key.kind, key.coding))
    addresses = (volumes.data.ptr, described.data.ptr + first * TILE.itemsize, faults.data.ptr)
    held = (data, planes, out, volumes, described)

    def launch(held: Any = held) -> None:  # which keeps the memory
        kernel((count,), (LANES,), tuple(map(np.uint64, addresses)))

    return launch, lambda: np.asarray(cupy.asnumpy(faults))


if __name__ == "__main__":
    sys.exit(main())
