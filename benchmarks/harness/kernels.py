"""What a compiled CUDA kernel holds, and what bounds it on a GPU that nobody has asked yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.measuring import Facts, counted

# Of tests/, which the script has made known.
from support.kernel_counts import ToolError, disassemble
from support.nvrtc import Compiled, CompileError, Nvrtc

ARCHITECTURE = "sm_90"


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
SCHEDULERS, WARP, MOST_WARPS = 4, 32, 64
_REGISTERS, _REGISTER_UNIT, _SHARED_BYTES, _MOST_BLOCKS = 65536, 256, 228 << 10, 32
_SHARED_BYTES_OF_SYSTEM = 1024  # of each block

# Opcodes of nvdisasm, by what they do to memory.
_MEMORY = {"global loads": ("LDG", "LD"), "shared loads": ("LDS",), "shared stores": ("STS",)}
_PTXAS = re.compile(
    r"\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers.*?(\d+) bytes smem",
    re.DOTALL,
)


def compiled_kernel(nvrtc: Nvrtc, name: str, source: str, options: list[str]) -> Compiled:
    """A kernel, with what ptxas says of it.

    Raises
    ------
    ToolError
        If it does not compile; `name` is what it is called there.
    """
    try:
        return nvrtc.build(source, (*options, "--ptxas-options=-v"))
    except CompileError as error:
        raise ToolError(f"{name} does not compile: {error}") from error


def counts_of(disassembler: Path, name: str, compiled: Compiled) -> Facts:
    """Registers, spills, shared memory and instructions.

    Raises
    ------
    ToolError
        If ptxas or nvdisasm say nothing of it.
    """
    said = _PTXAS.search(compiled.log)
    if said is None:
        raise ToolError(f"ptxas says nothing of {name}: {compiled.log!r}")
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


def ptx_instructions(ptx: str, kernel: str) -> int:
    """How many instructions stand in a kernel's PTX."""
    _, _, body = ptx.partition(f".entry {kernel}")[2].partition("{")
    return len(re.findall(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.]*\s.*;\s*$", body, re.M))


def blocks_of_a_multiprocessor(registers: int, shared_bytes: int, threads: int) -> int:
    """How many blocks a multiprocessor holds at a time."""
    warps = threads // WARP
    of_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    return min(
        _REGISTERS // (of_warp * warps),
        _SHARED_BYTES // (shared_bytes + _SHARED_BYTES_OF_SYSTEM),
        MOST_WARPS // warps,
        _MOST_BLOCKS,
    )
