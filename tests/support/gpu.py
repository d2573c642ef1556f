"""GPUs made of this machine's memory, with the kernels of ``ptx.py``: what a CUDA runtime does.

Work that is queued on a stream runs when somebody waits for it, and not before.  So what on a real
GPU is wrong only now and then, reading a result or reusing pinned memory too early, is wrong here
every time.  Memory that was allocated holds nothing known: what a copy to the host finds unwritten
there is an :class:`UnwrittenError`.
"""

from __future__ import annotations

import bisect
import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from support.ptx import Buffer, Kernel

# cudaError_t
INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE = 1, 2, 101
INVALID_HANDLE, NOT_READY = 400, 600
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind
_ALIGNMENT = 512  # of what cudaMalloc gives


class UnwrittenError(Exception):
    """A copy to the host of device memory that nobody wrote."""


class CudaError(RuntimeError):
    """``cudaError_t`` as an exception; `status` is its number."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"cudaError {status}: {what}")
        self.status = status


class Memory:
    """Device memory, until it is freed."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self.device, self.size = device, size_bytes
        held = np.empty(size_bytes + _ALIGNMENT, np.uint8)
        skip = -held.ctypes.data % _ALIGNMENT
        self.bytes: npt.NDArray[np.uint8] = held[skip : skip + size_bytes]
        self.undefined = np.full(size_bytes, 0xFF, np.uint8)

    @property
    def address(self) -> int:
        """Of its first byte."""
        return int(self.bytes.ctypes.data)

    def part(self, address: int, size_bytes: int) -> slice:
        """The bytes from an address on."""
        return slice(address - self.address, address - self.address + size_bytes)


class Stream:
    """Work of one device, done in order by the threads that wait for it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._queued: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()

    def queue(self, work: Callable[[], None]) -> None:
        """Do this after what is queued already."""
        self._queued.append(work)

    def synchronize(self, last: Callable[[], None] | None = None) -> None:
        """Do what is queued; up to and with `last`, where it is given."""
        with self._lock:
            while self._queued:
                work = self._queued.popleft()
                work()
                if work is last:
                    return


class Device:
    """One GPU: memory of a certain size, and its streams."""

    def __init__(self, ordinal: int, total_bytes: int) -> None:
        self.ordinal, self.total_bytes = ordinal, total_bytes
        self.default_stream = Stream(self)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet([self.default_stream])
        self._memory: dict[int, Memory] = {}
        self._addresses: list[int] = []
        self._lock = threading.RLock()

    @property
    def free_bytes(self) -> int:
        """What may still be allocated."""
        with self._lock:
            return self.total_bytes - sum(memory.size for memory in self._memory.values())

    def new_stream(self) -> Stream:
        """A stream that waits for no other."""
        stream = Stream(self)
        self._streams.add(stream)
        return stream

    def allocate(self, size_bytes: int) -> Memory:
        """``cudaMalloc``."""
        with self._lock:
            if size_bytes > self.free_bytes:
                raise CudaError(OUT_OF_MEMORY, f"out of memory for {size_bytes} bytes")
            memory = Memory(self, size_bytes)
            self._memory[memory.address] = memory
            bisect.insort(self._addresses, memory.address)
            return memory

    def free(self, address: int) -> None:
        """Give memory back at once; what is queued must not need it any more."""
        with self._lock:
            del self._memory[address]
            self._addresses.remove(address)

    def synchronize(self) -> None:
        """Do everything that is queued on any stream."""
        for stream in list(self._streams):
            stream.synchronize()

    def find(self, address: int, size_bytes: int) -> Memory:
        """The memory that holds all of these bytes."""
        with self._lock:
            n = bisect.bisect_right(self._addresses, address) - 1
            memory = self._memory[self._addresses[n]] if n >= 0 else None
        if memory is None or address + size_bytes > memory.address + memory.size:
            raise CudaError(
                INVALID_VALUE,
                f"{size_bytes} bytes at {address:#x} are no memory of cuda:{self.ordinal}",
            )
        return memory

    def launch(
        self,
        kernel: Kernel,
        blocks: Sequence[int],
        threads: Sequence[int],
        arguments: Sequence[Any],
    ) -> None:
        """Run a kernel now, with all memory of the device in its reach."""
        with self._lock:
            held = list(self._memory.values())
        buffers = [
            Buffer(memory.bytes, undefined=memory.undefined, name=f"allocation {n}")
            for n, memory in enumerate(held)
        ]
        kernel.launch(blocks, threads, arguments, buffers)


class Gpus:
    """The devices of a machine, and the host memory that is pinned for them."""

    def __init__(self, count: int = 2, total_bytes: int = 1 << 30) -> None:
        self.devices = [Device(n, total_bytes) for n in range(count)]
        self._pinned: dict[int, int] = {}
        self._lock = threading.Lock()

    def device(self, ordinal: int) -> Device:
        """One device."""
        if not 0 <= ordinal < len(self.devices):
            raise CudaError(INVALID_DEVICE, f"there is no device {ordinal}")
        return self.devices[ordinal]

    def pin(self, address: int, size_bytes: int, flags: int) -> None:
        """``cudaHostRegister``."""
        with self._lock:
            if self._overlapping(address, size_bytes):
                raise CudaError(712, "part of this host memory is pinned already")
            ctypes.string_at(address, size_bytes)
            self._pinned[address] = size_bytes

    def unpin(self, address: int) -> None:
        """``cudaHostUnregister``."""
        with self._lock:
            if address not in self._pinned:
                raise CudaError(713, "this host memory is not pinned")
            ctypes.string_at(address, self._pinned.pop(address))  # it is still there

    def is_pinned(self, address: int, size_bytes: int) -> bool:
        """Whether all of this host memory is."""
        with self._lock:
            return any(
                begin <= address and address + size_bytes <= begin + size
                for begin, size in self._pinned.items()
            )

    def _overlapping(self, address: int, size_bytes: int) -> bool:
        return any(
            address < begin + size and begin < address + size_bytes
            for begin, size in self._pinned.items()
        )

    def copy(
        self,
        to: int,
        source: int,
        row_bytes: int,
        kind: int,
        stream: Stream,
        *,
        rows: int = 1,
        to_pitch: int = 0,
        source_pitch: int = 0,
    ) -> None:
        """``cudaMemcpy2DAsync``; of one row it is ``cudaMemcpyAsync``.

        A copy from pageable memory has read it when this returns, one to pageable memory is done.
        """
        if rows > 1 and row_bytes > min(to_pitch, source_pitch):
            raise CudaError(INVALID_VALUE, f"rows of {row_bytes} bytes are wider than their pitch")
        if kind not in (HOST_TO_DEVICE, DEVICE_TO_HOST):
            raise CudaError(INVALID_VALUE, f"copies of rows of kind {kind} are not emulated")
        is_upload = kind == HOST_TO_DEVICE
        host, device = (source, to) if is_upload else (to, source)
        host_pitch, pitch = (source_pitch, to_pitch) if is_upload else (to_pitch, source_pitch)
        extent = (rows - 1) * pitch + row_bytes
        stream.device.find(device, extent)
        pinned = self.is_pinned(host, (rows - 1) * host_pitch + row_bytes)
        early = None
        if is_upload and not pinned:
            early = [ctypes.string_at(host + n * host_pitch, row_bytes) for n in range(rows)]

        def work() -> None:
            memory = stream.device.find(device, extent)
            for n in range(rows):
                part = memory.part(device + n * pitch, row_bytes)
                address = host + n * host_pitch
                if is_upload:
                    row = early[n] if early else address
                    ctypes.memmove(memory.bytes[part].ctypes.data, row, row_bytes)
                    memory.undefined[part] = 0
                    continue
                if memory.undefined[part].any():
                    unwritten = np.flatnonzero(memory.undefined[part])
                    raise UnwrittenError(
                        f"a copy of {rows} × {row_bytes} bytes from cuda:{stream.device.ordinal} "
                        f"finds {len(unwritten)} bytes of row {n} that nobody wrote, the first at "
                        f"{unwritten[0]}"
                    )
                ctypes.memmove(address, memory.bytes[part].ctypes.data, row_bytes)

        stream.queue(work)
        if not is_upload and not pinned:
            stream.synchronize(work)

    def copy_within(self, to: int, source: int, size_bytes: int, stream: Stream) -> None:
        """``cudaMemcpyAsync`` within a device; what nobody wrote stays unknown where it goes."""
        device = stream.device
        for address in (to, source):
            device.find(address, size_bytes)

        def work() -> None:
            given, taken = device.find(source, size_bytes), device.find(to, size_bytes)
            here, there = given.part(source, size_bytes), taken.part(to, size_bytes)
            taken.bytes[there] = given.bytes[here]
            taken.undefined[there] = given.undefined[here]

        stream.queue(work)

    def fill(self, to: int, value: int, size_bytes: int, stream: Stream) -> None:
        """``cudaMemsetAsync``."""
        stream.device.find(to, size_bytes)

        def work() -> None:
            memory = stream.device.find(to, size_bytes)
            part = memory.part(to, size_bytes)
            memory.bytes[part] = value
            memory.undefined[part] = 0

        stream.queue(work)
