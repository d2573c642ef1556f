"""Small scans with masks, and what is read of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import ctgpu
from ctgpu.exporting import Exported, export_samples
from ctgpu.spec import Spec
from ctgpu.testing.masks import lay_out_with_masks
from stored import rotated
from support.phantoms import SPACING_MM, chest

#: Resampled, padded along H, cropped along D.
SPEC = Spec(target_spacing_mm=(4.0, 4.5, 6.0), shape_hwd=(56, 40, 30))
SHAPE = (60, 56, 40)
SCANS = {name: chest(SHAPE, seed).voxels for seed, name in enumerate(("a", "b", "7"))}
#: Of every scan: patients lie askew.
AFFINE = rotated(8) @ rotated(5, 2) @ np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
AFFINE[:3, 3] = 120.0, -40.0, 900.0


def build(root: Path, spec: Spec = SPEC, **options: Any) -> Path:
    """The scans, and the data set of them, two samples a shard."""
    description = root / "source.toml"
    if not description.exists():
        lay_out_with_masks(root / "source", SCANS, SPACING_MM, affine=AFFINE)
    report = ctgpu.build(
        root / "out",
        source=root / "source",
        dataset=description,
        spec=spec,
        samples_per_shard=2,
        device="cpu",
        **options,
    )
    assert report.exit_code == 0, report.failures
    return root / "out"


def export(where: Any, folder: Path, **options: Any) -> list[Exported]:
    return list(export_samples(where, folder, **options))


def beside(folder: Path, key: str) -> dict[str, Any]:
    """The JSON of an exported sample."""
    found: dict[str, Any] = json.loads((folder / f"{key}.json").read_bytes())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 0xFF]))
