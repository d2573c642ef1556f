"""What stands between this process and a GPU: driver, CuPy, NVRTC, devices."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Any

from ctgpu.errors import DeviceError, reason_of
from ctgpu.installation import install_command

#: Oldest CUDA that there is a CuPy extra for, as the driver counts versions.
_OLDEST_CUDA = 12000
_OLDEST_CUPY = 14
_OR_CPU = "or use --device cpu"

# cudaError_t
_INSUFFICIENT_DRIVER = 35


def version_text(cuda_version: int) -> str:
    """``12040`` to ``"12.4"``."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"


def driver_cuda_version() -> int | None:
    """The newest CUDA that the NVIDIA driver supports, such as 13000; None without a driver.

    The driver library is asked itself, so that this works where CuPy is not installed.
    """
    version = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else version.value


def fitting_extra(driver: int) -> str:
    """The extra of this package whose CuPy runs under a driver for CUDA `driver`."""
    return "cuda13" if driver >= 13000 else "cuda12"


def import_cupy() -> Any:
    """The module ``cupy``, once driver, CuPy and NVRTC are known to fit together.

    Raises
    ------
    DeviceError
        If one of them is missing or too old.
    """
    driver = driver_cuda_version()
    if driver is None:
        raise DeviceError(
            "no NVIDIA driver was found (libcuda.so.1 cannot be loaded): install one, start the "
            f"container with its GPU passed through, {_OR_CPU}"
        )
    if driver < _OLDEST_CUDA:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {version_text(driver)} and "
            f"{version_text(_OLDEST_CUDA)} is needed: update the driver, {_OR_CPU}"
        )
    install = f"`{install_command(fitting_extra(driver))}`"
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise DeviceError(f"CuPy cannot be imported ({error}): {install}, {_OR_CPU}") from error
        raise DeviceError(
            f"CuPy is not installed; the driver supports CUDA {version_text(driver)}: {install}, "
            f"{_OR_CPU}"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise _no_kernel_cache(error) from error
        # Whatever a broken installation raises.  CuPy frames its advice; the cause is the last line
        # with words.
        lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
        raise DeviceError(
            f"CuPy cannot be imported ({lines[-1] if lines else 'no reason given'}): {install}, "
            f"{_OR_CPU}"
        ) from error
    if int(cupy.__version__.split(".")[0]) < _OLDEST_CUPY:
        raise DeviceError(
            f"CuPy {cupy.__version__} is installed and {_OLDEST_CUPY} is needed: {install}, "
            f"{_OR_CPU}"
        )
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    # Within one major version, a newer runtime works on an older driver.
    if runtime // 1000 > driver // 1000:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {version_text(driver)} and the installed CuPy is "
            f"built for CUDA {version_text(runtime)}: uninstall it and {install}, update the "
            f"driver, {_OR_CPU}"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise DeviceError(
            f"CuPy finds no NVRTC, which compiles the kernels: {install} brings it, {_OR_CPU}"
        ) from error
    return cupy


def count_devices(cupy: Any) -> int:
    """GPUs that this process can see.

    Raises
    ------
    DeviceError
        If there is none, or the driver refuses.
    """
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status == _INSUFFICIENT_DRIVER:
            raise DeviceError(
                f"the NVIDIA driver is too old for the installed CuPy: update the driver, {_OR_CPU}"
            ) from error
        count = 0
    if not count:
        raise DeviceError(
            "the NVIDIA driver shows no GPU to this process: look at nvidia-smi -L, which lists "
            "GPUs and MIG slices by UUID, and at CUDA_VISIBLE_DEVICES, "
            f"{_OR_CPU}"
        )
    return count


def kernel_cache_folder() -> str:
    """Where CuPy keeps compiled kernels; it makes the folder when it is imported."""
    return os.environ.get("CUPY_CACHE_DIR", os.path.expanduser("~/.cupy/kernel_cache"))


def _no_kernel_cache(error: OSError) -> DeviceError:
    folder, reason = kernel_cache_folder() or "no folder", reason_of(error)
    return DeviceError(
        f"CuPy cannot keep compiled kernels in {folder} ({reason}): set CUPY_CACHE_DIR to a folder "
        f"that can be written, {_OR_CPU}"
    )


def _cuda_errors(cupy: Any) -> tuple[type[Exception], ...]:
    """What CuPy raises where the driver, the runtime or NVRTC fails."""
    cuda = cupy.cuda
    return cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError, cuda.nvrtc.NVRTCError


@contextlib.contextmanager
def cuda_errors(
    cupy: Any,
    *,
    kernel: str,
    otherwise: str = "",
    failed: str,
    way_out: str,
    no_memory: str | None = None,
    on_failure: Callable[[str], None] = lambda sentence: None,
) -> Iterator[None]:
    """What CuPy raises while it compiles, queues or waits, as one sentence.

    Parameters
    ----------
    cupy : module
    kernel : str
        What is compiled, such as ``"the kernel"``.
    otherwise : str
        What to do where that is impossible, behind what mends it.
    failed : str
        What happened where the device, or the driver, fails.
    way_out : str
        And what to do then.
    no_memory : str, optional
        The sentence where the device's memory does not suffice; by default that error passes.
    on_failure : callable
        Gets the sentence where the device fails, whose context is then beyond use.

    Raises
    ------
    DeviceError
        With that sentence.
    """
    cuda = cupy.cuda
    try:
        yield
    except cuda.memory.OutOfMemoryError as error:
        if no_memory is None:
            raise
        raise DeviceError(no_memory) from error
    except cuda.compiler.CompileException as error:
        reason = next((line for line in str(error).splitlines() if "error" in line), error)
        raise DeviceError(
            f"NVRTC cannot compile {kernel} for this GPU ({reason}): update nvidia-cuda-nvrtc or "
            f"the driver{otherwise}"
        ) from error
    except _cuda_errors(cupy) as error:
        sentence = f"{failed} ({error}): {way_out}"
        on_failure(sentence)
        raise DeviceError(sentence) from error


@contextlib.contextmanager
def compiling(cupy: Any) -> Iterator[None]:
    """What CuPy raises of its own accord while it compiles or loads a kernel, as one sentence.

    CUDA's own errors pass.

    Raises
    ------
    DeviceError
        If the cache on disk cannot be written, or CuPy lacks something such as CUDA's headers.
    """
    try:
        yield
    except _cuda_errors(cupy):
        raise
    except OSError as error:
        raise _no_kernel_cache(error) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        install = install_command(fitting_extra(driver_cuda_version() or 0))
        raise DeviceError(
            f"CuPy cannot compile the kernel ({reason}): `{install}` brings CUDA's headers, "
            f"{_OR_CPU}"
        ) from error


def has_context(ordinal: int) -> bool:
    """Whether this process already has a context on that device."""
    device, flags, active = ctypes.c_int(0), ctypes.c_uint(0), ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        # Ordinals count what this process can see; the driver has a number of its own for each.
        failed = driver.cuDeviceGet(
            ctypes.byref(device), ctypes.c_int(ordinal)
        ) or driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
    except (OSError, AttributeError):
        return False
    return not failed and bool(active.value)


@contextlib.contextmanager
def on_device(cupy: Any, ordinal: int) -> Iterator[None]:
    """Have this thread work on a device; afterwards it goes back to the one that it had.

    From CUDA 12 on, choosing a device makes a context on it: hundreds of megabytes, and an error
    where another process has the device to itself.  So a thread whose device holds no context of
    this process stays where the work was.
    """
    runtime = cupy.cuda.runtime
    before = runtime.getDevice()
    if before != ordinal:
        runtime.setDevice(ordinal)
    try:
        yield
    finally:
        if before != ordinal and has_context(before):
            runtime.setDevice(before)


class LentStream:
    """A caller's ``cudaStream_t``, in the protocol by which CuPy takes streams."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle  # version of the protocol, stream


def upload(cupy: Any, to: int, address: int, size_bytes: int, stream: int) -> None:
    """Queue a copy of host memory to the device."""
    runtime = cupy.cuda.runtime
    runtime.memcpyAsync(to, address, size_bytes, runtime.memcpyHostToDevice, stream)


def sleeping_event(cupy: Any) -> Any:
    """An event of the current device; a thread that waits for it sleeps."""
    return cupy.cuda.Event(block=True, disable_timing=True)


def wait_for(cupy: Any, stream: Any) -> None:
    """Sleep until what is queued on `stream` is done; ``stream.synchronize`` keeps a core busy."""
    done = sleeping_event(cupy)
    done.record(stream)
    done.synchronize()


def forget(cupy: Any, queued: list[tuple[Any, Any]], process: int) -> None:
    """Let go of things that a device may still read, each with the event behind that, once it has.

    In a child that `process` forked nothing is waited for: it has neither the device nor the
    memory.
    """
    if os.getpid() == process:
        for _, passed in queued:
            # A lost device reads nothing.
            with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                passed.synchronize()
    queued.clear()
