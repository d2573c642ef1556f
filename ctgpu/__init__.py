"""ctgpu: 3-D CT volumes from archives into training-ready shards, and from there to the GPU.

>>> import ctgpu
>>> volume = ctgpu.preprocess("scan.nii.gz")                            # doctest: +SKIP
>>> ctgpu.build(output_dir="shards", source="CT-RATE", split="valid")   # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctgpu.errors import CtgpuError
from ctgpu.installation import __version__
from ctgpu.spec import PRESETS, Spec

if TYPE_CHECKING:
    from ctgpu.api import preprocess
    from ctgpu.api_batch import PreprocessedBatch, preprocess_batch
    from ctgpu.building.builder import build
    from ctgpu.building.convert import convert_tars
    from ctgpu.building.estimate import estimate_build
    from ctgpu.building.relabelling import RelabelReport, relabel
    from ctgpu.building.report import BuildReport
    from ctgpu.checking.compare import compare_samples
    from ctgpu.checking.facts import inspect_samples
    from ctgpu.volume.on_scan import Geometry, save_on_scan

__all__ = [
    "PRESETS",
    "BuildReport",
    "CtgpuError",
    "Geometry",
    "PreprocessedBatch",
    "RelabelReport",
    "Spec",
    "__version__",
    "build",
    "compare_samples",
    "convert_tars",
    "estimate_build",
    "inspect_samples",
    "preprocess",
    "preprocess_batch",
    "relabel",
    "save_on_scan",
]

# Loaded on first use, so that `import ctgpu` stays quick.
_LAZY = {
    "Geometry": "ctgpu.volume.on_scan",
    "save_on_scan": "ctgpu.volume.on_scan",
    "preprocess": "ctgpu.api",
    "PreprocessedBatch": "ctgpu.api_batch",
    "preprocess_batch": "ctgpu.api_batch",
    "BuildReport": "ctgpu.building.report",
    "build": "ctgpu.building.builder",
    "compare_samples": "ctgpu.checking.compare",
    "convert_tars": "ctgpu.building.convert",
    "estimate_build": "ctgpu.building.estimate",
    "inspect_samples": "ctgpu.checking.facts",
    "RelabelReport": "ctgpu.building.relabelling",
    "relabel": "ctgpu.building.relabelling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ctgpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
