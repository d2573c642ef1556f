"""What this machine can do, and what stands in the way: ``ctgpu doctor``."""

from __future__ import annotations

import ctypes
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from ctgpu.buffers import allocate_pages
from ctgpu.decode.inflate import BACKENDS, inflate_backend
from ctgpu.engines import open_engine
from ctgpu.engines.cupy_runtime import (
    count_devices,
    driver_cuda_version,
    fitting_extra,
    import_cupy,
    kernel_cache_folder,
    on_device,
    version_text,
)
from ctgpu.errors import (
    CtgpuError,
    DeviceError,
    EnvironmentFailure,
    SourceError,
    StorageError,
    UsageError,
    reason_of,
)
from ctgpu.installation import __version__, install_command
from ctgpu.machine import (
    available_memory_bytes,
    default_memory_limit_bytes,
    free_space_bytes,
    usable_cores,
)
from ctgpu.printable import counted
from ctgpu.sources.hub.connection import Transient, knock
from ctgpu.sources.hub.source import hub_address, is_offline
from ctgpu.spec import CT_RATE

Status = Literal["ok", "missing", "failed"]

_HUB_TIMEOUT_S = 5.0
_COPY_BYTES = 128 << 20
_COPY_REPEATS = 5
# From how many times the rate on another library is recommended.
_WORTH = 1.05


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What was looked at.
    status : {"ok", "missing", "failed"}
        ``missing``: a build can do without; ``failed``: it should work and does not.
    text : str
        What was found, and the way out where something is amiss.
    facts : dict
        The same, JSON-ready.
    """

    name: str
    status: Status
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at.

    Attributes
    ----------
    checks : tuple of Check
    device : str or None
        What ``--device`` takes here; None where nothing works.
    why : str
        Why that one.
    """

    checks: tuple[Check, ...]
    device: str | None
    why: str

    @property
    def next_command(self) -> str | None:
        """What a shell takes to have the GPU used, where a driver is there and CuPy is not."""
        checks = {check.name: check for check in self.checks}
        driver, cupy = checks.get("NVIDIA driver"), checks.get("CuPy")
        if driver is None or cupy is None or cupy.status != "failed":
            return None
        return str(driver.facts["install"])

    @property
    def exit_code(self) -> int:
        """0 where a device works, else 3; 2 where ``HF_ENDPOINT`` is no address."""
        if any((check.name, check.status) == ("Hub", "failed") for check in self.checks):
            return UsageError.exit_code
        return EnvironmentFailure.exit_code if self.device is None else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        checks = [asdict(check) for check in self.checks]
        return {"device": self.device, "why": self.why, "checks": checks}


def diagnose(output_dir: Path | None = None, *, device: str = "auto") -> Report:
    """Look at everything a build needs.  Takes seconds; sends no token anywhere.

    Parameters
    ----------
    output_dir : pathlib.Path, optional
        Where a build would write; by default the current folder.
    device : str
        As ``--device`` takes it.

    Raises
    ------
    UsageError
        If no engine has that name.
    """
    checks = [
        _package(),
        _cpu_engine(),
        _inflate(),
        _host_copy(),
        _memory(),
        _disk(output_dir or Path()),
        *_gpus(),
        _token(),
        _endpoint(),
    ]
    chosen, why = _choose(device)
    return Report(tuple(checks), chosen, why)


def _choose(device: str) -> tuple[str | None, str]:
    try:
        engine = open_engine(device)
    except EnvironmentFailure as error:
        return None, str(error)
    name = engine.name
    engine.close()
    if device != "auto":
        return name, "as asked"
    if name != "cpu":
        return name, "the GPU engine works"
    if driver_cuda_version() is None:
        return name, "the CPU engine was chosen"
    try:
        open_engine("cuda").close()
    except DeviceError as error:
        return name, f"the GPU engine does not work: {error}"
    return name, "the CPU engine was chosen"


def _package() -> Check:
    cores = usable_cores()
    facts = {"ctgpu": __version__, "numpy": np.__version__, "cores": cores}
    text = f"ctgpu {__version__}, NumPy {np.__version__}, {counted(cores, 'usable core')}"
    return Check("package", "ok", text, facts)


def _cpu_engine() -> Check:
    try:
        facts = open_engine("cpu").describe()
    except CtgpuError as error:
        return Check("CPU engine", "failed", str(error))
    return Check("CPU engine", "ok", f"variant {facts['variant']}", facts)


def _inflate() -> Check:
    """How fast a stream is inflated, and how fast libdeflate would where it is not built in."""
    name = inflate_backend()
    # As a scan: noise about two values, without which it would be a copy.
    voxels = np.random.default_rng(0).normal(0, 40, (32, 128, 128))
    voxels[:, 32:96, 32:96] -= 800
    packed = np.frombuffer(gzip.compress(voxels.astype("<i2").tobytes(), 6), np.uint8)
    out = np.empty(2 * voxels.size, np.uint8)
    rate = _inflate_rate(lambda: BACKENDS[name].gzip_into(packed, out), out.size)
    facts: dict[str, Any] = {"backend": name, "gb_per_s": rate}
    text = f"{name}, {rate:.2f} GB/s, one thread"
    if name == "libdeflate":
        return Check("inflate", "ok", text, facts)
    get = "brew install libdeflate" if sys.platform == "darwin" else "apt install libdeflate-dev"
    way = f"`{get}`, then install ctgpu again from its sources"
    other = _loaded_libdeflate()
    if other is None:
        text += f"; libdeflate may be faster, which shows here once it is there: {way}"
        return Check("inflate", "ok", text, facts)
    gained = _inflate_rate(lambda: other(packed, out), out.size)
    facts["libdeflate_gb_per_s"] = gained
    text += f"; libdeflate: {gained:.2f} GB/s, "
    text += f"so {way}" if gained > _WORTH * rate else "which gains nothing here"
    return Check("inflate", "ok", text, facts)


def _inflate_rate(inflate: Callable[[], object], size_bytes: int) -> float:
    """Best rate of some runs, in GB/s of what comes out."""
    seconds = []
    for _ in range(_COPY_REPEATS):
        begin = time.perf_counter()
        inflate()
        seconds.append(time.perf_counter() - begin)
    return round(size_bytes / min(seconds) / 1e9, 3)


def _loaded_libdeflate() -> Callable[[Any, Any], None] | None:
    """What inflates a gzip stream by the system's libdeflate; None where there is none."""
    try:
        library = ctypes.CDLL(f"libdeflate.{'0.dylib' if sys.platform == 'darwin' else 'so.0'}")
        make, inflate = library.libdeflate_alloc_decompressor, library.libdeflate_gzip_decompress
    except (OSError, AttributeError):
        return None
    make.restype = ctypes.c_void_p
    address, size = ctypes.c_void_p, ctypes.c_size_t
    inflate.argtypes = [address, address, size, address, size, address]
    state = make()

    def gzip_into(data: Any, out: Any) -> None:
        failed = inflate(state, data.ctypes.data, data.size, out.ctypes.data, out.size, None)
        if failed:
            raise EnvironmentFailure(f"libdeflate refuses a gzip stream (code {failed})")

    return gzip_into


def _host_copy() -> Check:
    source, target = allocate_pages(_COPY_BYTES), allocate_pages(_COPY_BYTES)
    source.fill(1)
    seconds = []
    for _ in range(_COPY_REPEATS):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    rate = _COPY_BYTES / min(seconds) / 1e9
    return Check("host copy", "ok", f"{rate:.1f} GB/s, one thread", {"gb_per_s": round(rate, 2)})


def _memory() -> Check:
    system = psutil.virtual_memory()
    usable, budget = available_memory_bytes(), default_memory_limit_bytes()
    facts = {
        "total_bytes": int(system.total),
        "available_bytes": int(system.available),
        "usable_bytes": usable,
        "default_budget_bytes": budget,
    }
    limited = ", limited by a cgroup or the scheduler" if usable < system.available else ""
    return Check(
        "memory",
        "ok",
        f"{_gib(usable)} usable of {_gib(system.total)}{limited}; a build takes {_gib(budget)}",
        facts,
    )


def _disk(folder: Path) -> Check:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        free = free_space_bytes(there)
    except StorageError as error:
        return Check("disk", "failed", str(error))
    if not os.access(there, os.W_OK):
        return Check("disk", "failed", f"{there} is not writable", {"free_bytes": free})
    text = f"the file system of {there} does not say how much is free"
    if free is not None:
        samples = counted(free // CT_RATE.size_bytes, "sample", grouped=True)
        size = f"{CT_RATE.size_bytes / 1e6:.1f} MB"
        text = f"{_gib(free)} free at {there}: about {samples} of {size}"
    return Check("disk", "ok", text, {"free_bytes": free, "folder": str(there)})


def _gpus() -> Iterator[Check]:
    driver = driver_cuda_version()
    if driver is None:
        # Nothing of a GPU works without it, so that nothing else of one is looked at.
        text = (
            "none was found (libcuda.so.1 cannot be loaded): for a GPU, install one or start the "
            "container with its GPU passed through"
        )
        yield Check("NVIDIA driver", "missing", text)
        return
    install = install_command(fitting_extra(driver))
    text = f"supports CUDA {version_text(driver)}: `{install}`"
    yield Check("NVIDIA driver", "ok", text, {"cuda": driver, "install": install})
    yield _cupy_package()
    yield _kernel_cache()
    try:
        cupy = import_cupy()
        nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        yield Check("NVRTC", "ok", nvrtc, {"version": nvrtc})
        devices = range(count_devices(cupy))
    except DeviceError as error:
        yield Check("GPU", "failed", str(error))
        return
    for ordinal in devices:
        yield _gpu(cupy, ordinal)


def _cupy_package() -> Check:
    for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Check("CuPy", "ok", f"{name} {version}", {"package": name, "version": version})
    return Check("CuPy", "failed", "not installed")


def _kernel_cache() -> Check:
    """Whether CuPy, which cannot do without, can keep compiled kernels."""
    folder = kernel_cache_folder()
    try:
        os.makedirs(folder, exist_ok=True)  # as CuPy does when it is imported
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = (
            f"{folder} cannot be written ({reason_of(error)}): set CUPY_CACHE_DIR to a "
            "folder that can"
        )
        return Check("kernel cache", "failed", text, {"folder": folder})
    return Check("kernel cache", "ok", folder, {"folder": folder})


def _gpu(cupy: Any, ordinal: int) -> Check:
    name = f"cuda:{ordinal}"
    try:
        engine = open_engine(name)
        facts = engine.describe()["devices"][0]
        with on_device(cupy, ordinal):
            facts["free_bytes"] = int(cupy.cuda.runtime.memGetInfo()[0])
            facts |= _device_copies(cupy, engine.allocate(_COPY_BYTES))
        engine.close()
    except DeviceError as error:
        return Check(name, "failed", str(error))
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return Check(name, "failed", f"a copy failed: {error}")
    text = (
        f"{facts['name']}, compute capability {facts['compute_capability']}, "
        f"{_gib(facts['free_bytes'])} free of {_gib(facts['memory_bytes'])}; "
        f"{facts['upload_gb_per_s']:.1f} GB/s up, {facts['download_gb_per_s']:.1f} GB/s down, "
        f"{facts['device_copy_gb_per_s']:.0f} GB/s read and written on the device"
    )
    return Check(name, "ok", text, facts)


def _device_copies(cupy: Any, pinned: Any) -> dict[str, float]:
    """Best rates of copies of one size, by CUDA events."""
    runtime = cupy.cuda.runtime
    memory, other = cupy.cuda.Memory(_COPY_BYTES), cupy.cuda.Memory(_COPY_BYTES)
    host = pinned.ctypes.data
    copies = {
        "upload": (memory.ptr, host, runtime.memcpyHostToDevice, 1),
        "download": (host, memory.ptr, runtime.memcpyDeviceToHost, 1),
        "device_copy": (other.ptr, memory.ptr, runtime.memcpyDeviceToDevice, 2),
    }
    stream = cupy.cuda.Stream(non_blocking=True)
    rates = {}
    for what, (to, source, kind, touched) in copies.items():
        fastest_ms = float("inf")
        for _ in range(_COPY_REPEATS):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            runtime.memcpyAsync(to, source, _COPY_BYTES, kind, stream.ptr)
            end.record(stream)
            end.synchronize()
            fastest_ms = min(fastest_ms, cupy.cuda.get_elapsed_time(begin, end))
        rates[f"{what}_gb_per_s"] = round(touched * _COPY_BYTES / fastest_ms / 1e6, 2)
    return rates


def _token() -> Check:
    try:
        hub_address()
    except UsageError:
        text = "not looked for, as HF_ENDPOINT is no address"
        return Check("Hub token", "missing", text, {"present": False})
    from huggingface_hub import get_token

    present = get_token() is not None
    text = "present" if present else "none: CT-RATE is gated; run `hf auth login` or set HF_TOKEN"
    return Check("Hub token", "ok" if present else "missing", text, {"present": present})


def _endpoint() -> Check:
    try:
        address = hub_address()
    except UsageError as error:
        return Check("Hub", "failed", str(error))
    facts: dict[str, Any] = {"endpoint": address, "reachable": False}
    if is_offline():
        text = f"{address} is not asked, as HF_HUB_OFFLINE is set"
        return Check("Hub", "missing", text, facts)
    begin = time.perf_counter()
    try:
        knock(address, _HUB_TIMEOUT_S)
    except (SourceError, Transient) as error:
        text = f"{address} cannot be reached ({error}); a local --source needs no Hub"
        return Check("Hub", "missing", text, facts)
    elapsed_ms = round((time.perf_counter() - begin) * 1e3)
    facts |= {"reachable": True, "answer_ms": elapsed_ms}
    return Check("Hub", "ok", f"{address} answers in {elapsed_ms} ms", facts)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
