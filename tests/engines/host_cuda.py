"""A stand-in for CuPy that has host memory in the place of the device's.

It runs the kernel itself, compiled for the host, so that every address, size and pitch that the
engine computes is used as a GPU would use it; and it keeps account of what was asked of the device.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_host import assert_same_bits, emulation, expected, job, launch, spec

from ctgpu.engines import Job, cupy_runtime
from ctgpu.engines.batch import VOXEL_TYPES, KernelKey
from ctgpu.engines.packing import BATCH, Launch
from ctgpu.testing.voxels import MEMORY_ORDERS, random_voxels


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class DeviceArray(np.ndarray):
    """What stands for ``cupy.ndarray``."""

    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))  # type: ignore[assignment]
    device = property(lambda self: types.SimpleNamespace(id=0))  # type: ignore[assignment]


class HostCuda:
    """A device's memory and runtime, over host memory.

    Attributes
    ----------
    free_bytes : int
        What an allocation may still take.
    lost : bool
        Whether every call fails, as after a device fell off the bus.
    pins : bool
        Whether host memory may be registered.
    registered : dict
        Sizes of what is, by address.
    contexts : set of int
        Devices that this process has a context on.
    waits : list of tuple
        Flags of each event that was waited for: whether to sleep, and whether to leave out timing.
    """

    def __init__(self) -> None:
        self.free_bytes = 1 << 40
        self.lost = False
        self.pins = True
        self.registered: dict[int, int] = {}
        self.launches: list[KernelKey] = []
        self.allocations: list[int] = []
        self.uploads: list[tuple[int, int]] = []
        self.contexts: set[int] = set()
        self.waits: list[tuple[bool, bool]] = []
        self.streams: list[int] = []
        self.module_error: Exception | None = None
        self.thread = threading.local()

    @property
    def device(self) -> int:
        """The device of this thread."""
        return getattr(self.thread, "device", 0)

    def set_device(self, ordinal: int) -> None:
        self.thread.device = ordinal
        self.use()

    def use(self) -> None:
        """What every call that works on a device does."""
        self.contexts.add(self.device)

    @property
    def largest(self) -> int:
        return max(self.allocations)

    def copy(self, to: int, address: int, size: int, kind: int, stream: int) -> None:
        if self.lost:
            raise CUDARuntimeError(719)
        self.use()
        if kind == 1:
            self.uploads.append((address, size))
        ctypes.memmove(to, address, size)

    def copy_2d(
        self, to: int, to_pitch: int, at: int, pitch: int, width: int, rows: int, *_: int
    ) -> None:
        assert width <= min(to_pitch, pitch)
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, at + row * pitch, width)

    def register(self, address: int, size: int, flags: int) -> None:
        if not self.pins:
            raise CUDARuntimeError(2)
        self.use()
        assert flags == 1  # for every device
        self.registered[address] = size

    def unregister(self, address: int) -> None:
        if self.lost:
            raise CUDARuntimeError(719)
        self.use()
        ctypes.string_at(address, self.registered.pop(address))  # still there

    def memory(self, size: int) -> Any:
        if size > self.free_bytes:
            raise CUDARuntimeError(2)
        self.use()
        self.allocations.append(size)
        return HostMemory(self, size)

    def module(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert "ctgpu_preprocess" in code
        self.use()
        if self.module_error is not None:
            raise self.module_error
        assert backend == "nvrtc"
        defines = dict(re.findall(r"-DCTGPU_(\w+)=(.+)", "\n".join(options)))
        voxel = next(kind for kind, name in VOXEL_TYPES.items() if name == defines["VOXEL"])
        flags = (defines["RESCALES"] == "1", defines["CLIPS_BEFORE"] == "1")
        axes = (int(defines["FAST"]), int(defines["OUT"]))
        stored: Any = defines["STORED"].removeprefix("ctgpu::Stored::")
        how = (int(defines["ROWS"]), defines["PAIRS"] == "1")
        key = KernelKey(voxel, defines["SWAP"] == "1", *axes, *flags, stored, *how)
        return types.SimpleNamespace(get_function=lambda name: self.kernel(key))

    def kernel(self, key: KernelKey) -> Callable[..., None]:
        def run(grid: tuple[int, int, int], block: tuple[int], args: tuple[np.ndarray]) -> None:
            assert block == (320,)
            (batch,) = args
            assert (batch.dtype, batch.shape) == (BATCH, (1,))  # passed by value
            launch(emulation(), Launch(key, grid, batch))
            self.launches.append(key)

        return run

    def stream(self, pointer: int = 0) -> Any:
        self.use()
        return HostStream(self, pointer)

    def event(self, *, block: bool, disable_timing: bool) -> Any:
        self.use()
        return types.SimpleNamespace(
            record=lambda stream: stream.ptr,
            done=True,
            synchronize=lambda: self.waits.append((block, disable_timing)),
        )

    def cupy(self) -> Any:
        runtime = types.SimpleNamespace(
            runtimeGetVersion=lambda: 13000,
            getDeviceCount=lambda: 2,
            getDevice=lambda: self.device,
            setDevice=self.set_device,
            memGetInfo=lambda: (self.free_bytes, 1 << 40),
            memcpyAsync=self.copy,
            memcpy2DAsync=self.copy_2d,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            hostRegister=self.register,
            hostUnregister=self.unregister,
            CUDARuntimeError=CUDARuntimeError,
        )
        other_error = type("OtherError", (Exception,), {})
        return types.SimpleNamespace(
            __version__="14.0.0",
            RawModule=self.module,
            ndarray=DeviceArray,
            empty=lambda shape, dtype: np.empty(shape, dtype).view(DeviceArray),
            cuda=types.SimpleNamespace(
                runtime=runtime,
                nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0), NVRTCError=other_error),
                driver=types.SimpleNamespace(CUDADriverError=other_error),
                compiler=types.SimpleNamespace(CompileException=other_error),
                memory=types.SimpleNamespace(OutOfMemoryError=other_error),
                Stream=Streams(self),
                Event=self.event,
                get_current_stream=self.stream,
                Memory=self.memory,
            ),
        )


class Streams:
    """``cupy.cuda.Stream``."""

    def __init__(self, host: HostCuda) -> None:
        self._host = host

    def __call__(self, *, non_blocking: bool) -> HostStream:
        assert non_blocking  # else it would wait for the default stream
        return self._host.stream()

    def from_external(self, lent: Any) -> HostStream:
        version, pointer = lent.__cuda_stream__()
        assert version == 0
        return self._host.stream(pointer)


class HostMemory:
    """Device memory; to give it back works on the device of whichever thread does."""

    def __init__(self, host: HostCuda, size: int) -> None:
        self._host, self.size = host, size
        self._held = np.full(size + 256, 0xAA, np.uint8)
        self.ptr = -(-self._held.ctypes.data // 256) * 256

    def __del__(self) -> None:
        self._host.use()


class HostStream:
    """A stream whose work is done at once; to wait for it by itself would keep a core busy."""

    def __init__(self, host: HostCuda, pointer: int) -> None:
        self.ptr = pointer
        self._host = host

    def __enter__(self) -> None:
        self._host.streams.append(self.ptr)

    def __exit__(self, *_: object) -> None:
        self._host.streams.pop()


def installed(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """Put one in the place of CuPy and of the driver; skips where there is no compiler."""
    emulation()
    host = HostCuda()
    monkeypatch.setattr(cupy_runtime, "driver_cuda_version", lambda: 13000)
    monkeypatch.setattr(cupy_runtime, "has_context", lambda ordinal: ordinal in host.contexts)
    monkeypatch.setitem(sys.modules, "cupy", host.cupy())
    return host


def some_jobs(count: int, layout: str = "HWD", **others: Any) -> list[Job]:
    orders = MEMORY_ORDERS * count
    return [
        job(
            random_voxels(n, (37 + n, 29, 41 - n), order=orders[n]),
            spec((48, 40, 56), layout, **others),
        )
        for n in range(count)
    ]


def check(jobs: list[Job]) -> None:
    for made in jobs:
        assert_same_bits(made.out, expected(made))
