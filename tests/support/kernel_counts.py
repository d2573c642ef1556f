"""What a compiled kernel holds, and what its warps execute: nvdisasm, and PTX run on the CPU."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from ctgpu.engines import Job
from ctgpu.engines.batch import THREADS, KernelKey, Piece, Span
from ctgpu.engines.packing import Placed, header_bytes, pack
from ctgpu.spec import Layout, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from support.nvrtc import Nvrtc, in_wheels, nvrtc_libraries
from support.ptx import Buffer, Counts, Kernel

_LAYOUTS: dict[int, Layout] = {2: "HWD", 1: "DHW"}  # by the axis along which they are contiguous


class ToolError(Exception):
    """A tool is missing or failed: one sentence."""


def newest_nvrtc() -> Nvrtc:
    """The newest NVRTC that a wheel brought.

    Raises
    ------
    ToolError
        If there is none.
    """
    found = list(nvrtc_libraries().values())
    if not found:
        raise ToolError("there is no NVRTC; pip install nvidia-cuda-nvrtc")
    return Nvrtc(found[-1])


def nvdisasm_path() -> Path:
    """The disassembler: a wheel's, or one on the PATH.

    Raises
    ------
    ToolError
        If there is none.
    """
    found, on_path = in_wheels("*/bin/nvdisasm"), shutil.which("nvdisasm")
    if not found and on_path is None:
        raise ToolError("there is no nvdisasm; pip install nvidia-cuda-nvdisasm")
    return found[-1] if found else Path(str(on_path))


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


def run_on_cpu(ptx: str, key: KernelKey) -> tuple[Counts, int]:
    """What the warps of a kernel execute within the usual volume.

    It runs over a part of that which has its whole height, as tiles differ in how many source rows
    they need.

    Returns
    -------
    tuple of Counts and int
        Of all blocks together, and how many these were.
    """
    # Sampled as 512×512×300 is for 480×480×240; a tile of the usual kernels is 32×16×16.
    shape_hwd = (480, 16, 16)
    ratios = (512 / 480, 512 / 480, 300 / 240)
    source_shape = [round(n * r) for n, r in zip(shape_hwd, ratios, strict=True)]
    small = Spec(target_spacing_mm=(1, 1, 1), shape_hwd=shape_hwd, layout=_LAYOUTS[key.out])
    slow_to_fast = [*(axis for axis in (2, 1, 0) if axis != key.fast), key.fast]
    shape = [source_shape[axis] for axis in slow_to_fast]
    # One voxel more in each line, where four rows are not to lie together.
    stored = np.zeros([*shape[:2], shape[2] + (key.rows == 1)], key.voxel)
    voxels = stored[..., : shape[2]].transpose(np.argsort(slow_to_fast))
    spacing_mm = tuple((n + 0.5) / s for n, s in zip(shape_hwd, source_shape, strict=True))
    plan = plan_volume(voxels.shape, spacing_mm, small)  # type: ignore[arg-type]
    out = np.empty(small.stored_shape, np.float16)
    piece = Piece.of(Job(voxels, Rescale(), plan, out), 0, shape_hwd[2])
    span = Span.of(voxels)
    header = np.empty(header_bytes([piece]), np.uint8)
    placed = Placed(piece, voxels, span.address + span.origin_bytes, out.ctypes.data)
    packed, (launch,) = pack([placed], header.ctypes.data)
    assert launch.key.rows == key.rows
    header[:] = packed
    counts = Kernel(ptx).launch(
        launch.grid, THREADS, [launch.batch], [Buffer(header), Buffer(stored), Buffer(out)]
    )
    return counts, math.prod(launch.grid)


def passes_of(counts: Counts, opcode: str) -> float:
    """Wavefronts of shared memory for each of a warp's accesses, such as those of ``"st.shared"``.

    One is free of bank conflicts, 32 the worst.
    """
    accesses, wavefronts = (
        sum(n for name, n in of.items() if name.startswith(opcode))
        for of in (counts.warps, counts.wavefronts)
    )
    return wavefronts / accesses
