"""The CUDA sources: where they are, with which options they are compiled, and what came of it."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ctgpu.engines.batch import THREADS
from ctgpu.engines.cupy_runtime import compiling
from ctgpu.engines.packing import Launch
from ctgpu.errors import DeviceError

KERNEL_NAME = "ctgpu_preprocess"
#: What is compiled, below :func:`kernel_folder`; the translation unit comes last.
KERNEL_FILES = ("preprocess_math.h", "cuda/voxel.h", "cuda/tile.h", "cuda/preprocess.cu")


@dataclass(frozen=True, slots=True)
class Sources:
    """What one kernel is compiled from.

    Attributes
    ----------
    kernel : str
        Its name.
    files : tuple of str
        As :data:`KERNEL_FILES`.
    options : tuple of str
        Its own, for NVRTC.
    """

    kernel: str
    files: tuple[str, ...]
    options: tuple[str, ...] = ()


PREPROCESS = Sources(KERNEL_NAME, KERNEL_FILES)
DECODE_CTZ = Sources(
    "ctgpu_decode_ctz",
    ("codec/ctz.h", "cuda/ctz_warp.h", "cuda/ctz_tile.h", "cuda/decode_ctz.cu"),
    # NVRTC has no other way to use a constexpr function of the host's on the device.
    ("-default-device",),
)


class Variant(Protocol):
    """One of the kernels that are compiled from the same sources; hashable."""

    @property
    def defines(self) -> tuple[str, ...]:
        """Options that make it this one."""


@functools.cache
def kernel_folder() -> Path:
    """The folder of the kernels' sources: inside the package, or beside it in a checkout.

    Raises
    ------
    DeviceError
        If they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if all((folder / f).is_file() for of in (PREPROCESS, DECODE_CTZ) for f in of.files):
            return folder
    raise DeviceError(
        f"the CUDA sources are missing from {package / 'kernels'}: reinstall ctgpu, or use "
        "--device cpu"
    )


def kernel_source(sources: Sources = PREPROCESS) -> str:
    """The text of the translation unit."""
    return (kernel_folder() / sources.files[-1]).read_text(encoding="utf-8")


@functools.cache
def _hash_of_sources(sources: Sources) -> str:
    digest = hashlib.sha256()
    for name in sources.files:
        digest.update((kernel_folder() / name).read_bytes())
    return digest.hexdigest()[:16]


def kernel_options(key: Variant, sources: Sources = PREPROCESS) -> tuple[str, ...]:
    """The options for one kernel, for NVRTC and for nvcc.

    CuPy's disk cache looks at the source and the options but not at included files, so a hash of
    all of them is among the options.
    """
    return (
        "--std=c++17",
        "-fmad=false",
        f"-I{kernel_folder() / 'cuda'}",
        f"-DCTGPU_SOURCES=0x{_hash_of_sources(sources)}",
        *sources.options,
        *key.defines,
    )


class Kernels:
    """Compiled kernels, by device and kind."""

    def __init__(self, cupy: Any, sources: Sources = PREPROCESS) -> None:
        self._cupy = cupy
        self._sources = sources
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int, Variant], Any] = {}

    def get(self, ordinal: int, key: Variant) -> Any:
        """The kernel, compiled or taken from CuPy's disk cache on first use."""
        with self._lock:
            kernel = self._compiled.get((ordinal, key))
            if kernel is None:
                with compiling(self._cupy):
                    module = self._cupy.RawModule(
                        code=kernel_source(self._sources),
                        options=kernel_options(key, self._sources),
                        backend="nvrtc",
                    )
                    kernel = module.get_function(self._sources.kernel)
                    self._compiled[ordinal, key] = kernel
            return kernel

    def launch(self, ordinal: int, launches: Sequence[Launch]) -> None:
        """Queue the launches of a batch of volumes on the current stream."""
        for launch in launches:
            self.get(ordinal, launch.key)(launch.grid, (THREADS,), (launch.batch,))
