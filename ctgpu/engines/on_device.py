"""Batches whose results stay on the GPU, on a stream of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctgpu.engines.base import Job
from ctgpu.engines.batch import Span, address_of, plan_batches, readable
from ctgpu.engines.cupy_runtime import upload
from ctgpu.engines.headers import Headers
from ctgpu.engines.nvrtc import Kernels
from ctgpu.engines.packing import Placed, header_bytes, pack
from ctgpu.errors import UsageError
from ctgpu.spec import Dtype
from ctgpu.volume.stored import numpy_dtype

_DLPACK_CUDA = 2


def device_of(cupy: Any, array: Any) -> int | None:
    """The device that a CUDA array of any framework lies on; None for the host."""
    if isinstance(array, cupy.ndarray):
        return int(array.device.id)
    where = getattr(array, "__dlpack_device__", None)
    kind, ordinal = (None, 0) if where is None else where()
    return int(ordinal) if kind == _DLPACK_CUDA else None


def adopt(cupy: Any, array: Any) -> Any:
    """An array as NumPy or CuPy has it; what another framework has on a GPU stays where it lies."""
    if device_of(cupy, array) is None or isinstance(array, cupy.ndarray):
        return array
    # Their lender has CuPy's current stream wait for what they still write.
    return cupy.from_dlpack(array)


def output_on_device(
    cupy: Any, out: Any, shape: tuple[int, ...], dtype: Dtype, ordinal: int
) -> Any:
    """The caller's array on a device as CuPy has it; bfloat16 as uint16.

    Raises
    ------
    UsageError
        If it is not what is wanted.
    """
    wanted = (
        f"wanted a CuPy array or a torch tensor on cuda:{ordinal}, C-contiguous, of {dtype} and "
        f"shape {shape}"
    )
    there = device_of(cupy, out)
    if there != ordinal:
        where = "on no GPU" if there is None else f"on cuda:{there}"
        raise UsageError(f"out is a {type(out).__name__} {where}; {wanted}")
    stored, found = numpy_dtype(dtype), str(out.dtype).removeprefix("torch.")
    if found == "bfloat16" == dtype:  # which CuPy does not know
        array = adopt(cupy, out.view(sys.modules["torch"].int16)).view(stored)
    else:
        array = adopt(cupy, out)
    if array.shape != shape or array.dtype != stored or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else ", not C-contiguous"
        raise UsageError(f"out is {found} {tuple(array.shape)}{order}; {wanted}")
    return array


def queue_jobs(
    cupy: Any,
    jobs: Sequence[Job],
    kernels: Kernels,
    headers: Headers,
    ordinal: int,
    stream: Any,
) -> list[Any]:
    """Queue uploads and launches that fill every job's `out`, an array on the device.

    Parameters
    ----------
    cupy : module
    jobs : sequence of Job
        Voxels on the host or on the device.
    kernels, headers
        The engine's.
    ordinal : int
        The device, which is the current one.
    stream : cupy.cuda.Stream
        The current stream.

    Returns
    -------
    list of numpy.ndarray
        What is read on the host; it has to be there until the stream is past that.
    """
    held: list[Any] = []
    # A piece is a whole volume, unless that has more voxels than the kernel can count.
    for batch in plan_batches(jobs, 1 << 62):
        placed, parts, uploaded = [], [], []
        for piece in batch:
            voxels = readable(piece.voxels) if piece.voxels.size else piece.voxels
            source_address = 0
            if isinstance(voxels, cupy.ndarray):
                source_address = address_of(voxels)
            elif voxels.size:
                held.append(voxels)
                span = Span.of(voxels)
                there = cupy.empty(span.size_bytes, np.uint8)
                uploaded.append(there)
                source_address = there.data.ptr + span.origin_bytes
                upload(cupy, there.data.ptr, span.address, span.size_bytes, stream.ptr)
            out: Any = piece.job.out
            if not piece.is_whole:
                out = cupy.empty(piece.out_shape, piece.out_dtype)
                parts.append((piece, out))
            placed.append(Placed(piece, voxels, source_address, out.data.ptr))
        device_header = cupy.empty(header_bytes(batch), np.uint8)
        header, launches = pack(placed, device_header.data.ptr)
        headers.upload(header, device_header.data.ptr, stream)
        kernels.launch(ordinal, launches)
        for piece, part in parts:
            slab = slice(piece.d_first, piece.d_first + piece.axes[2].n_out)
            is_hwd = piece.job.plan.spec.layout == "HWD"
            piece.job.out[(..., slab) if is_hwd else slab] = part
    return held
