"""The CUDA sources: where they are, and with which options they are compiled."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ctgpu.engines.batch import KernelKey
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
