"""Short ways to compile and launch a kernel of a few lines."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from support.nvrtc import CUPY_OPTIONS, Nvrtc
from support.ptx import Buffer, Counts, Kernel

_HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


@functools.cache
def _nvrtc() -> Nvrtc:
    return Nvrtc.of_version("13")


@functools.cache
def compiled(body: str, outside: str = "") -> Kernel:
    """``kernel(int *out, const int *in, int n)`` of CUDA C++, as CuPy compiles it."""
    source = (
        f"{outside}\n"
        'extern "C" __global__ void kernel(int *__restrict__ out, const int *in, int n) {\n'
        "    const int t = threadIdx.x, i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"    {body}\n}}\n"
    )
    options = ("--std=c++17", "-arch=compute_90", "--diag-suppress=177,549,550", *CUPY_OPTIONS)
    return Kernel(_nvrtc().compile(source, options))


def run_cuda(
    body: str,
    *,
    threads: int = 64,
    blocks: int = 1,
    size: int = 64,
    outside: str = "",
    **options: Any,
) -> tuple[npt.NDArray[np.int32], Counts]:
    """What the kernel wrote to `out` and what it took; `in` counts up from 0 and is read-only."""
    out = Buffer.blank(size, np.int32, "out")
    given = Buffer(np.arange(size, dtype=np.int32), writable=False, name="in")
    arguments = [np.uint64(out.address), np.uint64(given.address), np.int32(size)]
    counts = compiled(body, outside).launch(blocks, threads, arguments, [out, given], **options)
    return out.array, counts


def assembled(body: str, registers: str = "", outside: str = "") -> Kernel:
    """``kernel(out, in)`` of PTX: %rd1 and %rd2 hold the addresses of this thread's 8 bytes."""
    return Kernel(
        f"""{_HEAD}{outside}
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1)
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<9>;
    .reg .f32 %f<9>;
    .reg .b64 %rd<9>;
    .reg .f64 %fd<9>;
    {registers}
    ld.param.u64 %rd1, [kernel_param_0];
    ld.param.u64 %rd2, [kernel_param_1];
    mov.u32 %r8, %tid.x;
    mad.wide.u32 %rd1, %r8, 8, %rd1;
    mad.wide.u32 %rd2, %r8, 32, %rd2;
    {body}
    ret;
}}
"""
    )


def run_ptx(
    kernel: Kernel, given: npt.NDArray[np.uint64], threads: int, out_type: Any = np.uint64
) -> npt.NDArray[Any]:
    """What every thread left in its 8 bytes; `given` has four operands of 8 bytes for each."""
    out = Buffer(np.zeros(threads, np.uint64), name="out")
    source = Buffer(np.ascontiguousarray(given), writable=False, name="in")
    kernel.launch(1, threads, [np.uint64(out.address), np.uint64(source.address)], [out, source])
    size = np.dtype(out_type).itemsize
    return out.array.view(out_type)[:: 8 // size]
