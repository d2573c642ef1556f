"""ctgpu: 3-D CT volumes from archives into training-ready shards, and from there to the GPU.

>>> import ctgpu
>>> volume = ctgpu.preprocess("scan.nii.gz")                            # doctest: +SKIP
>>> ctgpu.build(output_dir="shards", source="CT-RATE", split="valid")   # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ctgpu.errors import CtgpuError
from ctgpu.spec import PRESETS, Spec

if TYPE_CHECKING:
    from ctgpu.api import Geometry, preprocess
    from ctgpu.builder import build
    from ctgpu.compare import compare_samples
    from ctgpu.convert import convert_tars
    from ctgpu.estimate import estimate_build
    from ctgpu.inspect import inspect_samples
    from ctgpu.relabelling import RelabelReport, relabel
    from ctgpu.report import BuildReport

__all__ = [
    "PRESETS",
    "BuildReport",
    "CtgpuError",
    "Geometry",
    "RelabelReport",
    "Spec",
    "__version__",
    "build",
    "compare_samples",
    "convert_tars",
    "estimate_build",
    "inspect_samples",
    "preprocess",
    "relabel",
]

try:
    __version__ = version("ctgpu")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

# Loaded on first use, so that `import ctgpu` stays quick.
_LAZY = {
    "Geometry": "ctgpu.api",
    "preprocess": "ctgpu.api",
    "BuildReport": "ctgpu.report",
    "build": "ctgpu.builder",
    "compare_samples": "ctgpu.compare",
    "convert_tars": "ctgpu.convert",
    "estimate_build": "ctgpu.estimate",
    "inspect_samples": "ctgpu.inspect",
    "RelabelReport": "ctgpu.relabelling",
    "relabel": "ctgpu.relabelling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ctgpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
