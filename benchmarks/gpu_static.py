"""What the compiled kernels hold: ``python benchmarks/run_gpu.py --static``, without a GPU.

NVRTC compiles every variant with the options that CuPy gives it, ptxas says what each takes of a
multiprocessor, and nvdisasm (``pip install nvidia-cuda-nvdisasm``) lists its instructions.  From
these and from instructions counted while the PTX runs on the CPU (``tests/support/ptx.py``) follows
a roofline: an estimate, until a device has spoken.

The result holds hashes of what it was counted from (:func:`counted_from`), by which a test finds
that a kernel has changed since.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from common import REPOSITORY, counted, print_table
from ctgpu.engines import Job
from ctgpu.engines.batch import (
    THREADS,
    VOXEL_TYPES,
    KernelKey,
    Piece,
    Placed,
    Span,
    header_bytes,
    pack,
)
from ctgpu.engines.nvrtc import (
    KERNEL_FILES,
    KERNEL_NAME,
    kernel_folder,
    kernel_options,
    kernel_source,
)
from ctgpu.machine import usable_cores
from ctgpu.spec import Dtype, Layout, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from publishing import publish

if TYPE_CHECKING:
    from support.ptx import Counts

ARCHITECTURE = "sm_90"
#: What CuPy adds by itself.
CUPY_OPTIONS = ("-ftz=true",)
_LAYOUTS: dict[int, Layout] = {2: "HWD", 1: "DHW"}  # by the axis along which they are contiguous
USUAL = KernelKey("i2", swap=False, fast=0, out=2, rescales=False, clips_before=True)
USUAL_DHW = KernelKey("i2", swap=False, fast=0, out=1, rescales=False, clips_before=True)


@dataclass(frozen=True)
class Device:
    """What bounds a kernel on a GPU.

    Attributes
    ----------
    multiprocessors : int
    clock_ghz : float
        The highest; under load it may be less.
    copy_gb_per_s : float
        Read and written together by a copy within the device: assumed, not measured.
    """

    multiprocessors: int
    clock_ghz: float
    copy_gb_per_s: float


# Of the SXM boards.  Multiprocessors: NVIDIA's data sheets; clock: the one at which the 128 float32
# lanes of each do the 67 TFLOPS given there.  Copies: an assumption, nine tenths of the 3.35 and
# 4.8 TB/s given there; ``make gpu-check`` measures it.
DEVICES = {"H100": Device(132, 1.98, 3000.0), "H200": Device(132, 1.98, 4300.0)}
# Of a multiprocessor of compute capability 9.0: CUDA C++ Programming Guide, "Compute Capabilities".
_SCHEDULERS, _WARP = 4, 32
_REGISTERS, _REGISTER_UNIT, _SHARED_BYTES, _MOST_WARPS = 65536, 256, 228 << 10, 64
_SHARED_BYTES_OF_SYSTEM = 1024  # of each block

# Opcodes of nvdisasm, by what they do to memory.
_MEMORY = {
    "global loads": ("LDG", "LD"),
    "shared loads": ("LDS",),
    "shared stores": ("STS",),
}


class ToolError(Exception):
    """A tool is missing or failed: one sentence."""


def main(options: argparse.Namespace) -> int:
    """Count, print and publish; returns the exit status."""
    keys = [USUAL, USUAL_DHW] if options.quick else variants()
    try:
        compiler, disassembler = Compiler(nvrtc_path()), nvdisasm_path()
        with ThreadPoolExecutor(usable_cores()) as threads:
            counts = list(threads.map(lambda key: count(compiler, disassembler, key), keys))
        tables = {name_of(key): numbers for key, numbers in zip(keys, counts, strict=True)}
        model = {
            spec.layout: roofline(compiler, key, tables[name_of(key)], spec)
            for key, spec in ((USUAL, Spec()), (USUAL_DHW, Spec(layout="DHW")))
        }
    except ToolError as error:
        print(f"the kernels cannot be counted: {error}", file=sys.stderr)
        return 3
    show(tables, model)
    result = {
        "data": "the kernels of this commit, compiled and not run",
        "counted_from": counted_from(),
        "architecture": ARCHITECTURE,
        "nvrtc": compiler.version,
        "variants": tables,
        "roofline": model,
    }
    publish(options, "gpu_static", result)
    return 0


def variants() -> list[KernelKey]:
    """Every kernel to float16, and the usual ones to each other type."""
    to_float16 = [
        KernelKey(voxel, swap, fast, out, rescales, clips_before)
        for voxel, swap, fast, out, rescales, clips_before in itertools.product(
            VOXEL_TYPES, (False, True), (0, 1, 2), (2, 1), (False, True), (True, False)
        )
        if not (swap and voxel[1:] == "1")  # a byte has no other byte order
    ]
    others = itertools.product(get_args(Dtype)[1:], (USUAL, USUAL_DHW))
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


def counted_from() -> dict[str, str]:
    """SHA-256 of all that the counts follow from, compiler and disassembler apart.

    Returns
    -------
    dict of str to str
        Every file of the kernels' sources, by its path in ``kernels/``, and ``"variants"``: their
        names, with the options that each is compiled with.
    """
    hashes = {
        name: hashlib.sha256((kernel_folder() / name).read_bytes()).hexdigest()
        for name in KERNEL_FILES
    }
    # Neither where the sources lie nor their hash, which is above.
    options = [
        [name_of(key), *(o for o in options_of(key) if not o.startswith(("-I", "-DCTGPU_SOURCES")))]
        for key in variants()
    ]
    return hashes | {"variants": hashlib.sha256(repr(options).encode()).hexdigest()}


# ---- compiling and disassembling ---------------------------------------------------------------


def _in_wheels(pattern: str) -> list[Path]:
    """Files of NVIDIA's wheels, those of the newest CUDA last."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return sorted(path for root in roots for path in root.glob(pattern))


def nvrtc_path() -> Path:
    """The newest NVRTC that a wheel brought.

    Raises
    ------
    ToolError
        If there is none.
    """
    found = _in_wheels("*/lib/libnvrtc.so.*")
    if not found:
        raise ToolError("there is no NVRTC; pip install nvidia-cuda-nvrtc")
    return max(found, key=lambda path: int(path.name.rpartition(".")[2]))


def nvdisasm_path() -> Path:
    """The disassembler: a wheel's, or one on the PATH.

    Raises
    ------
    ToolError
        If there is none.
    """
    found, on_path = _in_wheels("*/bin/nvdisasm"), shutil.which("nvdisasm")
    if not found and on_path is None:
        raise ToolError("there is no nvdisasm; pip install nvidia-cuda-nvdisasm")
    return found[-1] if found else Path(str(on_path))


def options_of(key: KernelKey) -> list[str]:
    """What NVRTC is given for one variant: what CuPy gives it, for :data:`ARCHITECTURE`."""
    return [f"-arch={ARCHITECTURE}", *kernel_options(key), *CUPY_OPTIONS]


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: machine code, PTX, and what ptxas said of them."""

    cubin: bytes
    ptx: str
    log: str


class Compiler:
    """NVRTC; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, key: KernelKey) -> Compiled:
        """One variant, as CuPy has it compiled.

        Raises
        ------
        ToolError
            If it does not compile.
        """
        library, program = self._library, ctypes.c_void_p()
        library.nvrtcCreateProgram(
            ctypes.byref(program), kernel_source().encode(), b"preprocess.cu", 0, None, None
        )
        texts = [option.encode() for option in (*options_of(key), "--ptxas-options=-v")]
        try:
            failed = library.nvrtcCompileProgram(
                program, len(texts), (ctypes.c_char_p * len(texts))(*texts)
            )
            log = self._output(program, "ProgramLog").decode().rstrip("\0")
            if failed:
                raise ToolError(f"{name_of(key)} does not compile: {log}")
            ptx = self._output(program, "PTX").decode().rstrip("\0")
            return Compiled(self._output(program, "CUBIN"), ptx, log)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, text)
        return text.raw


def disassemble(disassembler: Path, cubin: bytes) -> Counter[str]:
    """How often each opcode stands in the machine code; padding and its loop are left out.

    Raises
    ------
    ToolError
        If nvdisasm fails, or lists nothing.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        ran = subprocess.run(
            [disassembler, "-c", file.name], capture_output=True, text=True, check=False
        )
    lines = re.findall(
        r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", ran.stdout, re.MULTILINE
    )
    if ran.returncode or not lines:
        raise ToolError(f"{disassembler.name} fails: {ran.stderr.strip() or 'it lists nothing'}")
    opcodes = Counter(lines)
    del opcodes["NOP"]
    opcodes["BRA"] -= 1  # the endless loop behind the last instruction
    return opcodes


_PTXAS = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers.*?(\d+) bytes smem",
    re.DOTALL,
)


def count(compiler: Compiler, disassembler: Path, key: KernelKey) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of one variant."""
    compiled = compiler.compile(key)
    said = _PTXAS.search(compiled.log)
    if said is None:
        raise ToolError(f"ptxas says nothing of {name_of(key)}: {compiled.log!r}")
    _, stores, loads, registers, shared = map(int, said.groups())
    opcodes = disassemble(disassembler, compiled.cubin)
    numbers = {
        "registers": counted(registers, "registers"),
        "spill stores": counted(stores, "bytes"),
        "spill loads": counted(loads, "bytes"),
        "shared memory": counted(shared, "bytes"),
        "instructions": counted(opcodes.total(), "instructions"),
    }
    for name, family in _MEMORY.items():
        numbers[name] = counted(sum(opcodes[opcode] for opcode in family), "instructions")
    return numbers


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


def run_on_cpu(ptx: str, key: KernelKey) -> tuple[Counts, int]:
    """What the warps of a kernel execute within the usual volume.

    It runs over a part of that which has its whole height, as tiles differ in how many source rows
    they need.

    Returns
    -------
    tuple of Counts and int
        Of all blocks together, and how many these were.
    """
    tests = str(REPOSITORY / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    from support.ptx import Buffer, Kernel

    # Sampled as 512×512×300 is for 480×480×240; a tile of the usual kernels is 32×16×16.
    shape_hwd = (480, 16, 16)
    ratios = (512 / 480, 512 / 480, 300 / 240)
    source_shape = [round(n * r) for n, r in zip(shape_hwd, ratios, strict=True)]
    small = Spec(target_spacing_mm=(1, 1, 1), shape_hwd=shape_hwd, layout=_LAYOUTS[key.out])
    slow_to_fast = [*(axis for axis in (2, 1, 0) if axis != key.fast), key.fast]
    stored = np.zeros([source_shape[axis] for axis in slow_to_fast], key.voxel)
    voxels = stored.transpose(np.argsort(slow_to_fast))
    spacing_mm = tuple((n + 0.5) / s for n, s in zip(shape_hwd, source_shape, strict=True))
    plan = plan_volume(voxels.shape, spacing_mm, small)  # type: ignore[arg-type]
    out = np.empty(small.stored_shape, np.float16)
    piece = Piece.of(Job(voxels, Rescale(), plan, out), 0, shape_hwd[2])
    span = Span.of(voxels)
    header = np.empty(header_bytes([piece]), np.uint8)
    placed = Placed(piece, voxels, span.address + span.origin_bytes, out.ctypes.data)
    packed, (launch,) = pack([placed], header.ctypes.data)
    header[:] = packed
    counts = Kernel(ptx).launch(
        launch.blocks,
        THREADS,
        [np.uint64(header.ctypes.data), np.int32(1)],
        [Buffer(header), Buffer(stored), Buffer(out)],
    )
    return counts, launch.blocks


def passes_of(counts: Counts, opcode: str) -> float:
    """Wavefronts of shared memory for each of a warp's accesses, such as those of ``"st.shared"``.

    One is free of bank conflicts, 32 the worst.
    """
    accesses, wavefronts = (
        sum(n for name, n in of.items() if name.startswith(opcode))
        for of in (counts.warps, counts.wavefronts)
    )
    return wavefronts / accesses


def bounds_of(blocks: int, instructions: int, moved_bytes: int) -> dict[str, dict[str, float]]:
    """By device, the time to issue so many instructions in each block, and to move the bytes."""
    bounds = {}
    for name, device in DEVICES.items():
        issued_each_us = device.multiprocessors * _SCHEDULERS * device.clock_ghz * 1e3
        bounds[name] = {
            "issue_us": blocks * instructions / issued_each_us,
            "memory_us": moved_bytes / device.copy_gb_per_s / 1e3,
        }
    return bounds


def roofline(
    compiler: Compiler, key: KernelKey, numbers: Mapping[str, Any], spec: Spec
) -> dict[str, Any]:
    """What bounds the usual volume: instructions to issue, or bytes to move.

    Machine code has about as many instructions as PTX, with the ratio of the two as they stand in
    the kernel; each scheduler issues one a clock at best.
    """
    compiled = compiler.compile(key)
    in_ptx = len(re.findall(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.]*\s.*;\s*$", _body(compiled.ptx), re.M))
    counts, counted_blocks = run_on_cpu(compiled.ptx, key)
    issued = counts.warps.total() / counted_blocks
    machine_code = round(issued * numbers["instructions"]["runs"][0] / in_ptx)
    source_shape = (512, 512, 300)
    tile_w, tile_d = key.tile_wd
    blocks = 1
    for n, tile in zip(spec.shape_hwd, (32, tile_w, tile_d), strict=True):
        blocks *= -(-n // tile)
    moved = 2 * int(np.prod(source_shape)) + spec.size_bytes
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


def _body(ptx: str) -> str:
    return ptx[ptx.index("{", ptx.index(f".entry {KERNEL_NAME}")) :]


def show(tables: Mapping[str, Mapping[str, Any]], model: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of the variants, and what bounds the usual one."""
    short = {
        "regs": "registers",
        "spill st": "spill stores",
        "spill ld": "spill loads",
        "shared": "shared memory",
        "instr": "instructions",
        "LDG": "global loads",
        "LDS": "shared loads",
        "STS": "shared stores",
    }
    print_table(
        f"kernels for {ARCHITECTURE}; spills and shared memory in bytes, the rest instructions",
        ("variant", *short),
        [
            (name, *(n[column]["runs"][0] for column in short.values()))
            for name, n in tables.items()
        ],
    )
    rows: list[Sequence[object]] = [
        (layout, name, f"{bound['issue_us']:.0f} µs", f"{bound['memory_us']:.0f} µs")
        for layout, of in model.items()
        for name, bound in of["bounds"].items()
    ]
    print_table(
        "at least, for 512×512×300 int16: an estimate",
        ("layout", "device", "to issue", "to move the bytes"),
        rows,
    )
    print_table(
        "wavefronts of shared memory",
        ("layout", "for each load", "for each store"),
        [
            (layout, of["wavefronts_of_a_shared_load"], of["wavefronts_of_a_shared_store"])
            for layout, of in model.items()
        ],
    )
