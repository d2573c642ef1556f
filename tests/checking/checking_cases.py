"""Data sets to look at and to compare, some of them spoilt."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import ctgpu
from ctgpu.checking.compare import Comparison, compare_samples
from ctgpu.spec import Spec
from support.phantoms import study_ids

SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(72, 72, 40))
STUDIES = study_ids(3)


def compare(built: Path, folder: Path) -> dict[str, Comparison]:
    found = compare_samples(folder, source=built / "source", num_samples=None)
    return {comparison.key: comparison for comparison in found}


def build(folder: Path, source: Path, layout: str = "HWD") -> Path:
    spec = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40), layout=layout)
    ctgpu.build(folder, source=source, spec=spec, device="cpu")
    return folder


def raw_tar(path: Path, labels: bytes | None, seg: bytes | None = None, **stated: object) -> Path:
    """A tar of one raw volume with these labels, this ``seg``, and this in its JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"volume_shape": [2, 3, 4], "volume_dtype": "int16", **stated}
    members = {"bin": bytes(48), "json": json.dumps(facts).encode()}
    with tarfile.open(path, "w") as archive:
        for name, content in (members | {"cls": labels, "seg": seg}).items():
            if content is None:
                continue
            info = tarfile.TarInfo(f"one.{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
