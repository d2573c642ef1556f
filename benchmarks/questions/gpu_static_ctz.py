"""What the compiled decoders of `.ctz` hold: the part of ``--static`` that is about them.

A decoder makes of one warp one tile, so that a volume is fewer warps than a GPU has schedulers for:
its roofline is of warps that wait for themselves, which a second volume beside the first costs
nothing.  Instructions are counted while the PTX decodes tiles of a phantom on the CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.kernels import (
    ARCHITECTURE,
    DEVICES,
    MOST_WARPS,
    SCHEDULERS,
    blocks_of_a_multiprocessor,
    compiled_kernel,
    counts_of,
    ptx_instructions,
)
from benchmarks.harness.measuring import Facts, counted
from ctgpu.codec import Head, compress, compressed_limit_bytes, head_bytes
from ctgpu.codec.ctz import CODINGS, KINDS, LANES, PLANES, SLACK_BYTES, Coding, Kind, Shape
from ctgpu.engines.ctz_on_device import ROW_BYTES, Compressed, CtzKernel, Output, tables_of
from ctgpu.engines.nvrtc import DECODE_CTZ, kernel_folder, kernel_options, kernel_source

# Of tests/, which the script has made known.
from support.nvrtc import CUPY_OPTIONS, Compiled, Nvrtc
from support.ptx import Buffer, Counts, Kernel

#: Kinds of what is usually stored: float16 as it comes, and in steps.
ROOFLINES = tuple(CtzKernel(kind, coding) for kind in ("float16", "grid") for coding in CODINGS)
VOLUME_DHW: Shape = (240, 480, 480)
BATCHES = (1, 4)
# From an instruction to another that needs what it made, for most of them: CUDA C++ Programming
# Guide, "Multiprocessor Level", of compute capability 7 and later.
_CLOCKS_OF_A_RESULT = 4
# Numbers of a tile on a grid: 2^-10, as float16_grid10 has them.
_GRID = 10


def variants() -> list[CtzKernel]:
    """Every decoder."""
    return [CtzKernel(kind, coding) for kind in KINDS for coding in CODINGS]


def name_of(key: CtzKernel) -> str:
    """A decoder in words, such as ``"float16, rice"``."""
    return f"{key.kind}, {key.coding}"


def options_of(key: CtzKernel) -> list[str]:
    """What NVRTC is given for one decoder: what CuPy gives it."""
    return [f"-arch={ARCHITECTURE}", *kernel_options(key, DECODE_CTZ), *CUPY_OPTIONS]


def counted_from() -> dict[str, str]:
    """SHA-256 of all that the counts follow from, as :func:`.gpu_static.counted_from`."""
    hashed = {name: (kernel_folder() / name).read_bytes() for name in DECODE_CTZ.files}
    options = [
        [name_of(key), *(o for o in options_of(key) if not o.startswith(("-I", "-DCTGPU_SOURCES")))]
        for key in variants()
    ]
    hashed |= {"variants": repr(options).encode()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in hashed.items()}


def compiled_of(nvrtc: Nvrtc, key: CtzKernel) -> Compiled:
    """One decoder, as CuPy has it compiled, with what ptxas says of it."""
    return compiled_kernel(nvrtc, name_of(key), kernel_source(DECODE_CTZ), options_of(key))


def count(nvrtc: Nvrtc, disassembler: Path, key: CtzKernel) -> Facts:
    """Registers, spills, shared memory and instructions of one decoder."""
    return counts_of(disassembler, name_of(key), compiled_of(nvrtc, key))


def facts(nvrtc: Nvrtc, disassembler: Path, *, quick: bool = False) -> Facts:
    """All that ``--static`` says of the decoders; `quick` of the usual one alone.

    Raises
    ------
    ToolError
        If one does not compile, or cannot be counted.
    """
    keys = [CtzKernel("float16", "rice")] if quick else variants()
    tables = {name_of(key): count(nvrtc, disassembler, key) for key in keys}
    return {
        "counted_from": counted_from(),
        "variants": tables,
        "roofline": {
            name_of(key): roofline(nvrtc, key, tables[name_of(key)])
            for key in ROOFLINES
            if key in keys
        },
    }


def lines(decoder: Mapping[str, Any]) -> list[str]:
    """What ``--static`` prints of :func:`facts`."""
    return [
        f"decoder of {name}, a batch of {batch} on {device}, an estimate: {of['wait_us']:.0f} µs "
        f"({of['issue_us']:.0f} µs if no warp waited for itself), {of['memory_us']:.0f} µs to move "
        "bytes"
        for name, model in decoder["roofline"].items()
        for device, bounds in model["bounds"].items()
        for batch, of in bounds.items()
    ]


# ---- the roofline ------------------------------------------------------------------------------


def roofline(nvrtc: Nvrtc, key: CtzKernel, numbers: Mapping[str, Any]) -> Facts:
    """What bounds batches of the usual volume: instructions, or bytes to move.

    As for the other kernel, machine code has about as many instructions as PTX, with the ratio of
    the two as they stand in the kernel.
    """
    compiled = compiled_of(nvrtc, key)
    head, tiles = phantom(key.kind, key.coding)
    counts = decoded_on_cpu(compiled.ptx, head, tiles)
    issued = counts.warps.total() / len(head.table)
    in_ptx = ptx_instructions(compiled.ptx, DECODE_CTZ.kernel)
    instructions = round(issued * numbers["instructions"]["runs"][0] / in_ptx)
    depth, height, width = VOLUME_DHW
    of_volume = -(-depth // PLANES) * -(-width // LANES)
    slab_bytes = math.prod(head.shape_dhw) * head.voxel_bytes
    ratio = slab_bytes / len(tiles)
    out_bytes = math.prod(VOLUME_DHW) * head.voxel_bytes
    resident = blocks_of_a_multiprocessor(
        numbers["registers"]["runs"][0], numbers["shared memory"]["runs"][0], LANES
    )
    return {
        "estimate": True,
        "shape_dhw": VOLUME_DHW,
        "ratio_of_the_phantom": round(ratio, 3),
        "bytes_moved": out_bytes + round(out_bytes / ratio),
        # Written and read again, in all but one plane of each tile; the second level cache has it.
        "bytes_of_planes_before": 2 * of_volume * height * ROW_BYTES * (PLANES - 1),
        "tiles": of_volume,
        "ptx_instructions_of_a_tile": counted(round(issued), "instructions"),
        "instructions_of_a_tile": instructions,
        "blocks_of_a_multiprocessor": resident,
        "occupancy": resident / MOST_WARPS,
        "bounds": bounds_of(of_volume, instructions, out_bytes + round(out_bytes / ratio)),
    }


def bounds_of(tiles: int, instructions: int, moved_bytes: int) -> dict[str, dict[str, Facts]]:
    """By device and batch, the time in which it is decoded.

    ``issue_us``: where every scheduler issues one instruction a clock; ``wait_us``: where every
    instruction of a warp waits for the one before it; ``memory_us``: to move the bytes.
    """
    bounds: dict[str, dict[str, Facts]] = {}
    for name, device in DEVICES.items():
        bounds[name] = {}
        for batch in BATCHES:
            # A warp stays with its scheduler; the last one to be done has one more than others.
            warps = -(-batch * tiles // (device.multiprocessors * SCHEDULERS))
            clock_us = instructions / device.clock_ghz / 1e3
            bounds[name][str(batch)] = {
                "issue_us": warps * clock_us,
                "wait_us": max(warps, _CLOCKS_OF_A_RESULT) * clock_us,
                "memory_us": batch * moved_bytes / device.copy_gb_per_s / 1e3,
            }
    return bounds


def phantom(kind: Kind, coding: Coding) -> tuple[Head, npt.NDArray[np.uint8]]:
    """One slab of tiles across a chest with noise, of integers alone: the same on every processor.

    Returns
    -------
    tuple of Head and numpy.ndarray
        And the bytes of all tiles, one after the other.
    """
    shape: Shape = (PLANES, *VOLUME_DHW[1:])
    height, width = shape[1:]
    h = np.abs(2 * np.arange(height) - height + 1)[:, None]
    w = np.abs(2 * np.arange(width) - width + 1)[None, :]

    def ellipse(of_height: int, of_width: int, aside: int = 0) -> npt.NDArray[np.bool_]:
        square = (100 * h // of_height) ** 2 + (100 * np.abs(w - aside) // of_width) ** 2
        return np.asarray(square < height**2)

    hu = np.where(ellipse(70, 90), 40, -1000)
    hu[ellipse(45, 30, width * 42 // 100)] = -850
    hu[ellipse(12, 10)] = 700
    noise = np.random.default_rng(1).integers(-13, 14, (4, *shape)).sum(axis=0)
    numbers = (hu + noise).clip(-1000, 1000)
    if kind == "grid":
        voxels = ((numbers * 2**_GRID + 500) // 1000 / 2**_GRID).astype(np.float16)
    else:
        voxels = (numbers / 1000).astype(np.float16)
    out = np.empty(compressed_limit_bytes(shape, voxels.itemsize), np.uint8)
    member_bytes = compress(
        voxels,
        kind=kind,
        grid=_GRID if kind == "grid" else None,
        layout="DHW",
        coding=coding,
        xxh3_128="0" * 32,
        out=out,
    )
    begin = head_bytes(shape)
    head = Head.parse(out[:begin].data, shape_dhw=shape, member_bytes=member_bytes)
    return head, out[begin:member_bytes]


def decoded_on_cpu(ptx: str, head: Head, tiles: npt.NDArray[np.uint8]) -> Counts:
    """What the warps of a decoder execute for all tiles of a volume.

    Parameters
    ----------
    ptx : str
        The decoder of its kind and coding.
    head : Head
        Of a volume of two bytes a voxel.
    tiles : numpy.ndarray
        uint8, as :func:`phantom` gives them.
    """
    data = np.concatenate([tiles, np.zeros(SLACK_BYTES, np.uint8)])
    planes = np.zeros(len(head.table) * head.shape_dhw[1] * ROW_BYTES, np.uint8)
    out = np.zeros((1, *head.shape_dhw), np.uint16)
    sample = Compressed("phantom", head, [range(len(head.table))], 0)
    where = Output(out.ctypes.data, 0, out.shape, out.strides, out.itemsize)
    tables = tables_of([sample], where, data.ctypes.data, planes.ctypes.data)
    faults = np.ones(len(tables.tiles), np.uint8)
    memory = (tables.volumes, tables.tiles, faults)
    counts = Kernel(ptx, DECODE_CTZ.kernel).launch(
        len(tables.tiles),
        LANES,
        [np.uint64(array.ctypes.data) for array in memory],
        [Buffer(array) for array in (*memory, data, planes, out)],
    )
    assert not faults.any()
    return counts
