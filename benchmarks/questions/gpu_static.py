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
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.harness.asking import Asked
from benchmarks.harness.measuring import Facts, counted
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
    disassemble,
    newest_nvrtc,
    nvdisasm_path,
    passes_of,
    run_on_cpu,
)
from support.nvrtc import CUPY_OPTIONS, Compiled, CompileError, Nvrtc

ARCHITECTURE = "sm_90"
USUAL = KernelKey("i2", swap=False, fast=0, out=2, rescales=False, clips_before=True)
USUAL_DHW = KernelKey("i2", swap=False, fast=0, out=1, rescales=False, clips_before=True)


@dataclass(frozen=True)
class Device:
    """What bounds a kernel on a GPU."""

    multiprocessors: int
    clock_ghz: float  # the highest; under load it may be less
    copy_gb_per_s: float  # read and written together: assumed, not measured


# Of the SXM boards.  Multiprocessors: NVIDIA's data sheets; clock: the one at which the 128 float32
# lanes of each do the 67 TFLOPS given there.  Copies: an assumption, nine tenths of the 3.35 and
# 4.8 TB/s given there; ``make gpu-check`` measures it.
DEVICES = {"H100": Device(132, 1.98, 3000.0), "H200": Device(132, 1.98, 4300.0)}
# Of a multiprocessor of compute capability 9.0: CUDA C++ Programming Guide, "Compute Capabilities".
_SCHEDULERS, _WARP = 4, 32
_REGISTERS, _REGISTER_UNIT, _SHARED_BYTES, _MOST_WARPS = 65536, 256, 228 << 10, 64
_SHARED_BYTES_OF_SYSTEM = 1024  # of each block

# Opcodes of nvdisasm, by what they do to memory.
_MEMORY = {"global loads": ("LDG", "LD"), "shared loads": ("LDS",), "shared stores": ("STS",)}


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
    except ToolError as error:
        print(f"the kernels cannot be counted: {error}", file=sys.stderr)
        return 3
    for layout, of in model.items():
        for device, bound in of["bounds"].items():
            print(
                f"{layout} of 512×512×300 int16 on {device}, an estimate: "
                f"{bound['issue_us']:.0f} µs to issue, {bound['memory_us']:.0f} µs to move bytes"
            )
    return asked.publish(
        {
            "data": "the kernels of this commit, compiled and not run",
            "counted_from": counted_from(),
            "architecture": ARCHITECTURE,
            "nvrtc": "{}.{}".format(*nvrtc.version()),
            "variants": tables,
            "roofline": model,
        }
    )


def variants() -> list[KernelKey]:
    """Every kernel to float16, and the usual ones to whatever else is stored."""
    fields = VOXEL_TYPES, (False, True), (0, 1, 2), (2, 1), (False, True), (True, False)
    keys = itertools.starmap(KernelKey, itertools.product(*fields))
    # A byte has no other byte order.
    to_float16 = [key for key in keys if not (key.swap and key.voxel[1:] == "1")]
    others = itertools.product(get_args(Stored)[1:], (USUAL, USUAL_DHW))
    return to_float16 + [replace(usual, stored=stored) for stored, usual in others]


def name_of(key: KernelKey) -> str:
    """A variant in words, such as ``"i2, H to D, clips before"``."""
    return ", ".join(
        [
            key.voxel + (" swapped" if key.swap else ""),
            f"{'HWD'[key.fast]} to {'HWD'[key.out]}",
            *(["rescales"] if key.rescales else []),
            f"clips {'before' if key.clips_before else 'after'}",
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
    try:
        return nvrtc.build(kernel_source(), (*options_of(key), "--ptxas-options=-v"))
    except CompileError as error:
        raise ToolError(f"{name_of(key)} does not compile: {error}") from error


_PTXAS = re.compile(
    r"\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers.*?(\d+) bytes smem",
    re.DOTALL,
)


def count(nvrtc: Nvrtc, disassembler: Path, key: KernelKey) -> Facts:
    """Registers, spills, shared memory and instructions of one variant."""
    compiled = compiled_of(nvrtc, key)
    said = _PTXAS.search(compiled.log)
    if said is None:
        raise ToolError(f"ptxas says nothing of {name_of(key)}: {compiled.log!r}")
    opcodes = disassemble(disassembler, compiled.cubin)
    stores, loads, registers, shared = map(int, said.groups())
    told = {"spill stores": stores, "spill loads": loads, "shared memory": shared}
    of_family = {name: sum(opcodes[code] for code in family) for name, family in _MEMORY.items()}
    instructions = {"instructions": opcodes.total()} | of_family
    return {
        "registers": counted(registers, "registers"),
        **{name: counted(size, "bytes") for name, size in told.items()},
        **{name: counted(total, "instructions") for name, total in instructions.items()},
    }


# ---- the roofline ------------------------------------------------------------------------------


def blocks_of_a_multiprocessor(registers: int, shared_bytes: int) -> int:
    """How many blocks a multiprocessor holds at a time."""
    warps = THREADS // _WARP
    of_warp = -(-registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    return min(
        _REGISTERS // (of_warp * warps),
        _SHARED_BYTES // (shared_bytes + _SHARED_BYTES_OF_SYSTEM),
        _MOST_WARPS // warps,
    )


def bounds_of(blocks: int, instructions: int, moved_bytes: int) -> dict[str, dict[str, float]]:
    """By device, the time to issue so many instructions in each block, and to move the bytes."""
    bounds = {}
    for name, device in DEVICES.items():
        issued_each_us = device.multiprocessors * _SCHEDULERS * device.clock_ghz * 1e3
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
    _, _, body = compiled.ptx.partition(f".entry {KERNEL_NAME}")[2].partition("{")
    in_ptx = len(re.findall(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.]*\s.*;\s*$", body, re.M))
    counts, counted_blocks = run_on_cpu(compiled.ptx, key)
    issued = counts.warps.total() / counted_blocks
    machine_code = round(issued * numbers["instructions"]["runs"][0] / in_ptx)
    source_shape = (512, 512, 300)
    tiles = zip(spec.shape_hwd, (32, *key.tile_wd), strict=True)
    blocks = math.prod(-(-n // tile) for n, tile in tiles)
    moved = 2 * math.prod(source_shape) + spec.size_bytes
    resident = blocks_of_a_multiprocessor(
        numbers["registers"]["runs"][0], numbers["shared memory"]["runs"][0]
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
        "occupancy": resident * THREADS // _WARP / _MOST_WARPS,
        "bounds": bounds_of(blocks, machine_code, moved),
    }
