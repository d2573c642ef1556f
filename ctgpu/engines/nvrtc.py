"""The CUDA sources: where they are, with which options they are compiled, and what came of it."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.engines.batch import THREADS, VOLUME, KernelKey, Launch
from ctgpu.engines.cupy_runtime import compiling
from ctgpu.errors import DeviceError

KERNEL_NAME = "ctgpu_preprocess"
#: What is compiled, below :func:`kernel_folder`; the translation unit comes last.
KERNEL_FILES = ("preprocess_math.h", "cuda/voxel.h", "cuda/tile.h", "cuda/preprocess.cu")


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
        if all((folder / name).is_file() for name in KERNEL_FILES):
            return folder
    raise DeviceError(
        f"the CUDA sources are missing from {package / 'kernels'}: reinstall ctgpu, or use "
        "--device cpu"
    )


def kernel_source() -> str:
    """The text of the translation unit."""
    return (kernel_folder() / KERNEL_FILES[-1]).read_text(encoding="utf-8")


@functools.cache
def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for name in KERNEL_FILES:
        digest.update((kernel_folder() / name).read_bytes())
    return digest.hexdigest()[:16]


def kernel_options(key: KernelKey) -> tuple[str, ...]:
    """The options for one kernel, for NVRTC and for nvcc.

    CuPy's disk cache looks at the source and the options but not at included files, so a hash of
    all of them is among the options.
    """
    return (
        "--std=c++17",
        "-fmad=false",
        f"-I{kernel_folder() / 'cuda'}",
        f"-DCTGPU_SOURCES=0x{_hash_of_sources()}",
        *key.defines,
    )


class Kernels:
    """Compiled kernels, by device and kind."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int, KernelKey], Any] = {}

    def get(self, ordinal: int, key: KernelKey) -> Any:
        """The kernel, compiled or taken from CuPy's disk cache on first use."""
        with self._lock:
            kernel = self._compiled.get((ordinal, key))
            if kernel is None:
                with compiling(self._cupy):
                    module = self._cupy.RawModule(
                        code=kernel_source(), options=kernel_options(key), backend="nvrtc"
                    )
                    kernel = self._compiled[ordinal, key] = module.get_function(KERNEL_NAME)
            return kernel

    def launch(self, ordinal: int, launches: Sequence[Launch], header_address: int) -> None:
        """Queue the launches of a batch on the current stream."""
        for launch in launches:
            volumes = header_address + launch.first * VOLUME.itemsize
            kernel = self.get(ordinal, launch.key)
            kernel((launch.blocks,), (THREADS,), (np.uint64(volumes), np.int32(launch.count)))
