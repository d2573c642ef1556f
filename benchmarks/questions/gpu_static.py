"""What the compiled kernels hold: ``python benchmarks/run_gpu.py --static``, without a GPU.

NVRTC compiles every variant with the options that CuPy gives it, ptxas says what each takes of a
multiprocessor, and nvdisasm (``pip install nvidia-cuda-nvdisasm``) lists its instructions.  From
these and from instructions counted while the PTX runs on the CPU (``tests/support/ptx.py``) follows
a roofline: an estimate, until a device has spoken.

The result holds hashes of what it was counted from (:func:`counted_from`), by which a test finds
that a kernel has changed since.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.harness.asking import Asked
from benchmarks.harness.kernels import (
    ARCHITECTURE,
    DEVICES,
    MOST_WARPS,
    SCHEDULERS,
    WARP,
    blocks_of_a_multiprocessor,
    compiled_kernel,
    counts_of,
    ptx_instructions,
)
from benchmarks.harness.measuring import Facts, counted
from benchmarks.questions import gpu_static_ctz
from ctgpu.engines.batch import THREADS, VOXEL_TYPES, KernelKey
from ctgpu.engines.nvrtc import (
    KERNEL_FILES,
    KERNEL_NAME,
    kernel_folder,
    kernel_options,
    kernel_source,
)
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec
from ctgpu.volume.stored import Stored

# Of tests/, which the script has made known.
from support.kernel_counts import (
    ToolError,
    newest_nvrtc,
    nvdisasm_path,
    passes_of,
    run_on_cpu,
)
from support.nvrtc import CUPY_OPTIONS, Compiled, Nvrtc

USUAL = KernelKey(
    "i2", swap=False, fast=0, out=2, rescales=False, clips_before=True, rows=4, pairs=True
)
USUAL_DHW = replace(USUAL, out=1)


def main(asked: Asked) -> int:
    """Count, print and publish; returns the exit status."""
    keys = [USUAL, USUAL_DHW] if asked.quick else variants()
    try:
        nvrtc, disassembler = newest_nvrtc(), nvdisasm_path()
        with ThreadPoolExecutor(usable_cores()) as threads:
            counts = list(threads.map(lambda key: count(nvrtc, disassembler, key), keys))
        tables = {name_of(key): numbers for key, numbers in zip(keys, counts, strict=True)}
        model = {
            spec.layout: roofline(nvrtc, key, tables[name_of(key)], spec)
            for key, spec in ((USUAL, Spec()), (USUAL_DHW, Spec(layout="DHW")))
        }
        decoder = gpu_static_ctz.facts(nvrtc, disassembler, quick=asked.quick)
    except ToolError as error:
        print(f"the kernels cannot be counted: {error}", file=sys.stderr)
        return 3
    for layout, of in model.items():
        for device, bound in of["bounds"].items():
            print(
                f"{layout} of 512×512×300 int16 on {device}, an estimate: "
                f"{bound['issue_us']:.0f} µs to issue, {bound['memory_us']:.0f} µs to move bytes"
            )
    for line in gpu_static_ctz.lines(decoder):
        print(line)
    return asked.publish(
        {
            "data": "the kernels of this commit, compiled and not run",
            "counted_from": counted_from(),
            "architecture": ARCHITECTURE,
            "nvrtc": "{}.{}".format(*nvrtc.version()),
            "variants": tables,
            "roofline": model,
            "decoder": decoder,
        }
    )


def variants() -> list[KernelKey]:
    """Every kernel to float16, and the usual ones to whatever else is stored.

    Those for any strides come first, then those that read four rows at once.
    """
    fields = VOXEL_TYPES, (False, True), (0, 1, 2), (2, 1), (False, True), (True, False)
    keys = itertools.starmap(KernelKey, itertools.product(*fields))
    # A byte has no other byte order.
    to_float16 = [key for key in keys if not (key.swap and key.voxel[1:] == "1")]
    others = [
        replace(usual, stored=stored)
        for stored, usual in itertools.product(get_args(Stored)[1:], (USUAL, USUAL_DHW))
    ]
    general = to_float16 + [replace(key, rows=1, pairs=False) for key in others]
    four_rows = [replace(key, rows=4) for key in to_float16 if key.fast == 0]
    in_pairs = [
        replace(usual, rescales=rescales)
        for rescales, usual in itertools.product((False, True), (USUAL, USUAL_DHW))
    ]
    return general + four_rows + in_pairs + others


def name_of(key: KernelKey) -> str:
    """A variant in words, such as ``"i2, H to D, clips before"``."""
    return ", ".join(
        [
            key.voxel + (" swapped" if key.swap else ""),
            f"{'HWD'[key.fast]} to {'HWD'[key.out]}",
            *(["rescales"] if key.rescales else []),
            f"clips {'before' if key.clips_before else 'after'}",
            *(["four rows"] if key.rows == 4 else []),
            *(["in pairs"] if key.pairs else []),
            *([f"to {key.stored}"] if key.stored != "float16" else []),
        ]
    )


def options_of(key: KernelKey) -> list[str]:
    """What NVRTC is given for one variant: what CuPy gives it, for :data:`ARCHITECTURE`."""
    return [f"-arch={ARCHITECTURE}", *kernel_options(key), *CUPY_OPTIONS]


def counted_from() -> dict[str, str]:
    """SHA-256 of all that the counts follow from, compiler and disassembler apart.

    That is every file of the kernels' sources, by its path in ``kernels/``, and ``"variants"``:
    their names, with the options that each is compiled with.
    """
    sources = {name: (kernel_folder() / name).read_bytes() for name in KERNEL_FILES}
    # Neither where the sources lie nor their hash, which is above.
    options = [
        [name_of(key), *(o for o in options_of(key) if not o.startswith(("-I", "-DCTGPU_SOURCES")))]
        for key in variants()
    ]
    hashed = sources | {"variants": repr(options).encode()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in hashed.items()}


def compiled_of(nvrtc: Nvrtc, key: KernelKey) -> Compiled:
    """One variant, as CuPy has it compiled, with what ptxas says of it."""
    return compiled_kernel(nvrtc, name_of(key), kernel_source(), options_of(key))


def count(nvrtc: Nvrtc, disassembler: Path, key: KernelKey) -> Facts:
    """Registers, spills, shared memory and instructions of one variant."""
    return counts_of(disassembler, name_of(key), compiled_of(nvrtc, key))


# ---- the roofline ------------------------------------------------------------------------------


def bounds_of(blocks: int, instructions: int, moved_bytes: int) -> dict[str, dict[str, float]]:
    """By device, the time to issue so many instructions in each block, and to move the bytes."""
    bounds = {}
    for name, device in DEVICES.items():
        issued_each_us = device.multiprocessors * SCHEDULERS * device.clock_ghz * 1e3
        issue_us = blocks * instructions / issued_each_us
        memory_us = moved_bytes / device.copy_gb_per_s / 1e3
        bounds[name] = {"issue_us": issue_us, "memory_us": memory_us}
    return bounds


def roofline(nvrtc: Nvrtc, key: KernelKey, numbers: Mapping[str, Any], spec: Spec) -> Facts:
    """What bounds the usual volume: instructions to issue, or bytes to move.

    Machine code has about as many instructions as PTX, with the ratio of the two as they stand in
    the kernel; each scheduler issues one a clock at best.
    """
    compiled = compiled_of(nvrtc, key)
    in_ptx = ptx_instructions(compiled.ptx, KERNEL_NAME)
    counts, counted_blocks = run_on_cpu(compiled.ptx, key)
    issued = counts.warps.total() / counted_blocks
    machine_code = round(issued * numbers["instructions"]["runs"][0] / in_ptx)
    source_shape = (512, 512, 300)
    tiles = zip(spec.shape_hwd, (32, *key.tile_wd), strict=True)
    blocks = math.prod(-(-n // tile) for n, tile in tiles)
    moved = 2 * math.prod(source_shape) + spec.size_bytes
    resident = blocks_of_a_multiprocessor(
        numbers["registers"]["runs"][0], numbers["shared memory"]["runs"][0], THREADS
    )
    return {
        "estimate": True,
        "source_shape": source_shape,
        "out_shape": spec.stored_shape,
        "bytes_moved": moved,
        "blocks": blocks,
        "ptx_instructions_of_a_block": counted(round(issued), "instructions"),
        "instructions_of_a_block": machine_code,
        "wavefronts_of_a_shared_load": round(passes_of(counts, "ld.shared"), 3),
        "wavefronts_of_a_shared_store": round(passes_of(counts, "st.shared"), 3),
        "blocks_of_a_multiprocessor": resident,
        "occupancy": resident * THREADS // WARP / MOST_WARPS,
        "bounds": bounds_of(blocks, machine_code, moved),
    }
