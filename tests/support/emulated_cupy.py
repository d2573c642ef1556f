"""The part of CuPy that ctgpu and its GPU tests use, over the emulated GPUs of ``gpu.py``.

What is not here is an AttributeError, as it should be: nothing pretends.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from support.gpu import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    INVALID_HANDLE,
    NOT_READY,
    CudaError,
    Device,
    Gpus,
    Memory,
    Stream,
    UnwrittenError,
)
from support.nvrtc import CUPY_OPTIONS, CompileError, Nvrtc
from support.ptx import Kernel

CUDA_VERSION = 13000
_COMPUTE_CAPABILITY = (9, 0)


class OutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class CompileException(Exception):
    """``cupy.cuda.compiler.CompileException``."""


class NVRTCError(RuntimeError):
    """``cupy.cuda.nvrtc.NVRTCError``; never raised here."""


class CUDADriverError(RuntimeError):
    """``cupy.cuda.driver.CUDADriverError``; never raised here."""


class _Current(threading.local):
    """Device and streams of the thread that asks."""

    def __init__(self) -> None:
        self.ordinal = 0
        self.streams: list[CupyStream] = []


class CupyStream:
    """``cupy.cuda.Stream``: current inside a ``with``."""

    def __init__(self, cupy: EmulatedCupy, stream: Stream) -> None:
        self._cupy, self.stream = cupy, stream
        self.ptr = cupy.handle_of(stream)

    def __enter__(self) -> CupyStream:
        self._cupy.current.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._cupy.current.streams.pop()

    def synchronize(self) -> None:
        self.stream.synchronize()


class Streams:
    """``cupy.cuda.Stream``, as far as it makes streams."""

    def __init__(
        self, make: Callable[..., CupyStream], from_external: Callable[[Any], CupyStream]
    ) -> None:
        self._make, self.from_external = make, from_external

    def __call__(self, *, non_blocking: bool) -> CupyStream:
        return self._make(non_blocking=non_blocking)


class _Mark:
    """What an event leaves in a stream's queue; `reached_s` tells when the stream came to it."""

    reached_s: float | None = None

    def __call__(self) -> None:
        self.reached_s = time.perf_counter()


class Event:
    """``cupy.cuda.Event``: what was queued on a stream when it was recorded."""

    def __init__(
        self, cupy: EmulatedCupy, block: bool = False, disable_timing: bool = False
    ) -> None:
        self._cupy, self.is_timed = cupy, not disable_timing
        self._device = cupy.device()
        self._recorded: tuple[Stream, _Mark] | None = None

    def record(self, stream: CupyStream | None = None) -> None:
        on = self._cupy.stream() if stream is None else stream.stream
        if on.device is not self._device:
            raise CudaError(INVALID_HANDLE, "an event is recorded on its own device's streams")
        self._recorded = on, _Mark()
        on.queue(self._recorded[1])

    @property
    def reached_s(self) -> float | None:
        """When the stream came to it; None before, and where it was never recorded."""
        return None if self._recorded is None else self._recorded[1].reached_s

    @property
    def done(self) -> bool:
        return self._recorded is None or self.reached_s is not None

    def synchronize(self) -> None:
        if self._recorded is not None and not self.done:
            stream, mark = self._recorded
            stream.synchronize(mark)

    def since(self, begin: Event) -> float:
        """``cupy.cuda.get_elapsed_time``, in milliseconds."""
        for event in (begin, self):
            if not event.is_timed or event._recorded is None:
                raise CudaError(INVALID_HANDLE, "an event without a time, or never recorded")
        if begin.reached_s is None or self.reached_s is None:
            raise CudaError(NOT_READY, "an event is not reached yet")
        return (self.reached_s - begin.reached_s) * 1e3


class DeviceMemory:
    """``cupy.cuda.Memory``: from cudaMalloc, given back by cudaFree, which waits for the device."""

    def __init__(self, cupy: EmulatedCupy, size: int) -> None:
        memory = cupy.allocate(size)
        self.ptr, self.size = memory.address, size
        weakref.finalize(self, _free_after_everything, memory.device, memory.address)


def _free_after_everything(device: Device, address: int) -> None:
    device.synchronize()
    device.free(address)


class PoolMemory:
    """What an array and its views hold of CuPy's memory pool.

    It goes back in the order of the stream: what is queued already may still use it.
    """

    def __init__(self, memory: Memory, stream: Stream) -> None:
        self.memory = memory
        give_back = functools.partial(memory.device.free, memory.address)
        weakref.finalize(self, stream.queue, give_back)


class DeviceArray:
    """``cupy.ndarray``."""

    def __init__(self, cupy: EmulatedCupy, held: PoolMemory, values: np.ndarray) -> None:
        self._cupy, self._held, self._values = cupy, held, values

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    strides = property(lambda self: self._values.strides)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    ndim = property(lambda self: self._values.ndim)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._values.ctypes.data)

    @property
    def device(self) -> Any:
        return types.SimpleNamespace(id=self._held.memory.device.ordinal)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._values.__array_interface__, "data": (self.data.ptr, False), "version": 3}

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed: use cupy.asnumpy")

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._cupy, self._held, self._values[key])

    def __setitem__(self, key: Any, other: DeviceArray) -> None:
        to = self[key]

        pairs = ((to._values, other._values), (to._undefined, other._undefined))

        def work() -> None:
            for target, source in pairs:
                target[...] = source

        self._cupy.stream().queue(work)

    def set(self, values: np.ndarray) -> None:
        if values.dtype != self.dtype:
            raise TypeError(f"{values.dtype} array cannot be set to {self.dtype} array")
        if values.shape != self.shape:
            raise ValueError(f"Shape mismatch: {values.shape} is set to {self.shape}")
        if not self._values.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._cupy.upload(self.data.ptr, np.ascontiguousarray(values))

    def astype(self, dtype: Any, order: str = "K") -> DeviceArray:
        made = np.empty_like(self._values, dtype, order=order)  # type: ignore[call-overload]
        result = self._cupy.empty_strided(made.shape, made.dtype, made.strides)

        values, unknown = self._values, self._undefined
        to_values, to_unknown = result._values, result._undefined

        def work() -> None:
            to_values[...] = values
            to_unknown[...] = np.where(unknown, ~np.zeros_like(to_unknown), 0)

        self._cupy.stream().queue(work)
        return result

    def to_host(self) -> np.ndarray:
        """``cupy.asnumpy``."""
        self._cupy.stream().synchronize()
        if self._undefined.any():
            raise UnwrittenError(f"an array of shape {self.shape} holds what nobody wrote")
        return np.array(self._values, order="C")

    @property
    def _undefined(self) -> np.ndarray:
        """The unknown bits of every element, in the strides of the values."""
        memory, kind = self._held.memory, f"u{self.dtype.itemsize}"
        offset = self.data.ptr - memory.address
        return np.ndarray(self.shape, kind, memory.undefined.data, offset, self.strides)


class EmulatedCupy:
    """The module ``cupy``, to be put into ``sys.modules``."""

    __version__ = "14.0.0"
    ndarray = DeviceArray

    def __init__(self, gpus: Gpus | None = None) -> None:
        self.gpus = gpus or Gpus()
        self.current = _Current()
        self._nvrtc = Nvrtc.of_version("13")
        self._streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self.cuda = self._cuda()

    # ---- Arrays --------------------------------------------------------------------------------

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        made = np.empty(shape, dtype)
        return self.empty_strided(made.shape, made.dtype, made.strides)

    def empty_strided(self, shape: Any, dtype: Any, strides: Any) -> DeviceArray:
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        try:
            memory = self.allocate(size)
        except CudaError:
            self.stream().device.synchronize()  # as CuPy does, in the hope that memory comes back
            try:
                memory = self.allocate(size)
            except CudaError as error:
                raise OutOfMemoryError(str(error)) from error
        held = PoolMemory(memory, self.stream())
        return DeviceArray(self, held, np.ndarray(shape, dtype, memory.bytes.data, 0, strides))

    def asarray(self, values: Any) -> DeviceArray:
        if isinstance(values, DeviceArray):
            return values
        dense = np.asarray(values, order="F" if values.flags.f_contiguous else "C")
        result = self.empty_strided(dense.shape, dense.dtype, dense.strides)
        self.upload(result.data.ptr, dense)
        return result

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.gpus.fill(array.data.ptr, 0, array.nbytes, self.stream())
        return array

    def upload(self, to: int, values: np.ndarray) -> None:
        """Queue a copy on the current stream."""
        stream = self.stream()
        self.gpus.copy(to, values.ctypes.data, values.nbytes, HOST_TO_DEVICE, stream)

    @staticmethod
    def asnumpy(array: DeviceArray) -> np.ndarray:
        return array.to_host()

    def RawModule(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert backend == "nvrtc"
        arch = "-arch=compute_{}{}".format(*_COMPUTE_CAPABILITY)
        try:
            ptx = self._nvrtc.compile(code, (*options, *CUPY_OPTIONS, arch))
        except CompileError as error:
            raise CompileException(str(error)) from error

        def get_function(name: str) -> Any:
            return functools.partial(self._launch, Kernel(ptx, name))

        return types.SimpleNamespace(get_function=get_function)

    def _launch(
        self, kernel: Kernel, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]
    ) -> None:
        stream = self.stream()
        arguments = [np.asarray(argument).copy() for argument in args]
        stream.queue(lambda: stream.device.launch(kernel, grid, block, arguments))

    # ---- Devices and streams -------------------------------------------------------------------

    def device(self) -> Device:
        """The current device."""
        return self.gpus.device(self.current.ordinal)

    def allocate(self, size_bytes: int) -> Memory:
        """Memory of the current device."""
        return self.device().allocate(size_bytes)

    def stream(self) -> Stream:
        """The current stream."""
        if self.current.streams:
            return self.current.streams[-1].stream
        return self.device().default_stream

    def handle_of(self, stream: Stream) -> int:
        """``cudaStream_t``; 0 for a default stream."""
        if stream is stream.device.default_stream:
            return 0
        with self._lock:
            self._streams[id(stream)] = stream
        return id(stream)

    def _of_handle(self, handle: int) -> Stream:
        if handle == 0:
            return self.device().default_stream
        stream = self._streams.get(handle)
        if stream is None:
            raise CudaError(INVALID_HANDLE, f"there is no stream {handle:#x}")
        return stream

    @contextlib.contextmanager
    def _device(self, ordinal: int) -> Iterator[None]:
        before = self.current.ordinal
        self._set_device(ordinal)
        try:
            yield
        finally:
            self.current.ordinal = before

    def _set_device(self, ordinal: int) -> None:
        self.current.ordinal = self.gpus.device(ordinal).ordinal

    def _from_external(self, lent: Any) -> CupyStream:
        version, handle = lent.__cuda_stream__()
        assert version == 0
        return CupyStream(self, self._of_handle(handle))

    def _new_stream(self, *, non_blocking: bool) -> CupyStream:
        assert non_blocking, "only streams that wait for no other are emulated"
        return CupyStream(self, self.device().new_stream())

    # ---- The CUDA runtime ----------------------------------------------------------------------

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._copy_on(self._of_handle(stream), to, source, size, kind)

    def _copy_on(self, stream: Stream, to: int, source: int, size: int, kind: int) -> None:
        if kind == DEVICE_TO_DEVICE:
            self.gpus.copy_within(to, source, size, stream)
        else:
            self.gpus.copy(to, source, size, kind, stream)

    def _copy_and_wait(self, to: int, source: int, size: int, kind: int) -> None:
        """``cudaMemcpy``: on the default stream, and waits for no more than the host's memory.

        What lay in pageable memory may still be on its way when it returns.
        """
        stream = self.device().default_stream
        self._copy_on(stream, to, source, size, kind)
        uploads = kind == HOST_TO_DEVICE
        if kind == DEVICE_TO_HOST or (uploads and self.gpus.is_pinned(source, size)):
            stream.synchronize()

    def _fill(self, to: int, value: int, size: int, stream: int) -> None:
        self.gpus.fill(to, value, size, self._of_handle(stream))

    def _copy_2d(
        self,
        to: int,
        to_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> None:
        pitches = {"to_pitch": to_pitch, "source_pitch": source_pitch}
        self.gpus.copy(to, source, width, kind, self._of_handle(stream), rows=height, **pitches)

    def _memory_info(self) -> tuple[int, int]:
        device = self.device()
        return device.free_bytes, device.total_bytes

    def _properties(self, ordinal: int) -> dict[str, Any]:
        major, minor = _COMPUTE_CAPABILITY
        total = self.gpus.device(ordinal).total_bytes
        return {
            "name": b"emulated GPU",
            "major": major,
            "minor": minor,
            "totalGlobalMem": total,
        }

    def _attributes(self, address: int) -> Any:
        return types.SimpleNamespace(type=1 if self.gpus.is_pinned(address, 1) else 0)

    def _runtime(self) -> Any:
        return types.SimpleNamespace(
            CUDARuntimeError=CudaError,
            memcpyHostToDevice=HOST_TO_DEVICE,
            memcpyDeviceToHost=DEVICE_TO_HOST,
            memcpyDeviceToDevice=DEVICE_TO_DEVICE,
            memoryTypeUnregistered=0,
            memoryTypeHost=1,
            runtimeGetVersion=lambda: CUDA_VERSION,
            driverGetVersion=lambda: CUDA_VERSION,
            getDeviceCount=lambda: len(self.gpus.devices),
            getDevice=lambda: self.current.ordinal,
            setDevice=self._set_device,
            getDeviceProperties=self._properties,
            memGetInfo=self._memory_info,
            memcpy=self._copy_and_wait,
            memcpyAsync=self._copy,
            memcpy2DAsync=self._copy_2d,
            memsetAsync=self._fill,
            hostRegister=self.gpus.pin,
            hostUnregister=self.gpus.unpin,
            pointerGetAttributes=self._attributes,
        )

    def _cuda(self) -> Any:
        return types.SimpleNamespace(
            runtime=self._runtime(),
            nvrtc=types.SimpleNamespace(getVersion=self._nvrtc.version, NVRTCError=NVRTCError),
            driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
            compiler=types.SimpleNamespace(CompileException=CompileException),
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=self._device,
            Stream=Streams(self._new_stream, self._from_external),
            Event=functools.partial(Event, self),
            get_elapsed_time=lambda begin, end: end.since(begin),
            Memory=functools.partial(DeviceMemory, self),
            get_current_stream=lambda: CupyStream(self, self.stream()),
        )
