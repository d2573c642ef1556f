"""WebDatasets of raw volumes, as the old scripts stored them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from support.phantoms import SPACING_MM

SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(72, 72, 36))

#: Members by extension, by key.
Samples = dict[str, dict[str, bytes]]


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """A tar as any WebDataset writer makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime = len(content), 1_700_000_000
                archive.addfile(info, io.BytesIO(content))


def raw_sample(
    study: str, voxels: npt.NDArray[Any], spacing_mm: tuple[float, float, float], number: int
) -> dict[str, bytes]:
    """As the old scripts stored raw volumes."""
    h, w, d = spacing_mm
    facts = {
        "study_id": study,
        "volume_shape": list(voxels.shape),
        "volume_dtype": str(voxels.dtype),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "XYSpacing": f"[{h}, {w}]",
        "ZSpacing": d,
    }
    labels = np.arange(18, dtype="<f4") % (number + 2) == 1
    return {
        "bin": np.ascontiguousarray(voxels).tobytes(),
        "json": json.dumps(facts).encode(),
        "cls": labels.astype("<f4").tobytes(),
        "txt": f"Findings of {study}.".encode(),
    }


def samples(first: int, count: int = 2) -> Samples:
    """As the old scripts stored chests."""
    return {
        f"scan_{n}": raw_sample(
            f"scan_{n}", chest_phantom((64, 60, 40), SPACING_MM, n), SPACING_MM, n
        )
        for n in range(first, first + count)
    }


def lay_out(folder: Path, *tars: Samples) -> Path:
    """A folder of these tars."""
    for number, content in enumerate(tars):
        write_tar(folder / f"shard-{number:06d}.tar", content)
    return folder
