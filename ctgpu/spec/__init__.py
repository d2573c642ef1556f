"""The contract of the output: what a Spec says, and what it refuses."""

from ctgpu.spec.contract import (
    CT_RATE,
    PRESETS,
    SPEC_WANTED,
    STORED,
    Dtype,
    Intensity,
    Layout,
    Normalise,
    Precision,
    Spec,
    is_orientation,
)

__all__ = [
    "CT_RATE",
    "PRESETS",
    "SPEC_WANTED",
    "STORED",
    "Dtype",
    "Intensity",
    "Layout",
    "Normalise",
    "Precision",
    "Spec",
    "is_orientation",
]
