"""The CUDA decoder of `.ctz`, compiled for the host, in the place of the one on a GPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import Bytes, allocate_pages
from ctgpu.codec.ctz import CODINGS, KINDS, SLACK_BYTES
from ctgpu.engines.ctz_on_device import (
    ROW_BYTES,
    TILE,
    Compressed,
    Decoding,
    Output,
    require_fit,
    tables_of,
)
from ctgpu.loading import targets
from support.compiling import compiled

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"


@functools.cache
def host_kernel() -> ctypes.CDLL:
    """``ctz_host.cpp``; the test is skipped where there is no compiler."""
    usual = ("-std=c++17", "-O2", "-Werror", "-Wno-unknown-pragmas")
    return ctypes.CDLL(str(compiled(KERNELS / "ctz_host.cpp", *usual)))


class HostDecoder:
    """What :class:`ctgpu.engines.ctz_on_device.CtzDecoder` is to a loader, over host memory."""

    def __init__(self, ordinal: int) -> None:
        host_kernel()

    def queue(self, samples: Sequence[Compressed], data: Bytes, out: Any, stream: int) -> Decoding:
        size = int(out.element_size())
        strides = tuple(size * stride for stride in out.stride())
        target = Output(out.data_ptr(), 0, tuple(out.shape), strides, size)
        require_fit(samples, target, len(data))
        rows = sum(one.numbers().size * one.head.shape_dhw[1] for one in samples)
        there = np.concatenate([data, np.full(SLACK_BYTES, 0xFF, np.uint8)])
        planes = np.full(max(rows, 1) * ROW_BYTES, 0x5A, np.uint8)
        tables = tables_of(samples, target, there.ctypes.data, planes.ctypes.data)
        faults = np.full(len(tables.tiles), 0xFF, np.uint8)
        for key, first, count in tables.launches:
            host_kernel().ctgpu_emulate_ctz(
                KINDS.index(key.kind),
                CODINGS.index(key.coding),
                ctypes.c_void_p(tables.volumes.ctypes.data),
                ctypes.c_void_p(tables.tiles.ctypes.data + first * TILE.itemsize),
                count,
                ctypes.c_void_p(faults.ctypes.data + first),
            )
        return Decoding(samples, tables.tiles, lambda: faults)


class _Stream:
    cuda_stream = 7

    def __init__(self, device: object = None) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Event:
    def __init__(self, *, blocking: bool) -> None:
        pass

    def record(self, stream: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


def in_place_of_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """Have torch's ``"cuda"`` be host memory, where the kernel decodes compressed batches."""
    torch = pytest.importorskip("torch")
    for name, stand_in in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "current_stream": lambda device: _Stream(),
        "cudart": lambda: None,
        "stream": lambda stream: stream,
        "Stream": _Stream,
        "Event": _Event,
    }.items():
        patch.setattr(torch.cuda, name, stand_in)
    to, empty = torch.Tensor.to, torch.empty

    def to_host(tensor: Any, device: Any, *, non_blocking: bool = False) -> Any:
        # What is on a GPU is another memory's.
        return to(tensor, "cpu").clone()

    def empty_on_host(*shape: Any, device: Any = None, **options: Any) -> Any:
        return empty(*shape, **options)

    patch.setattr(torch.Tensor, "to", to_host)
    patch.setattr(torch, "empty", empty_on_host)
    patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    patch.setattr(targets, "CtzDecoder", HostDecoder)
    # What is registered would outlive the patch.
    patch.setattr(targets, "allocate_pinned", lambda size_bytes, *_: allocate_pages(size_bytes))
