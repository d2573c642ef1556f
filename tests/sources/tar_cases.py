"""Tars of small samples, as any WebDataset writer makes them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def facts(**others: Any) -> bytes:
    """The JSON of a sample whose volume is :data:`VOXELS`."""
    stated = {"volume_shape": [2, 3, 4], "volume_dtype": "int16", "XYSpacing": [0.7, 0.8]}
    return json.dumps(stated | {"ZSpacing": 1.5} | others).encode()


#: Of shape (2, 3, 4).
VOXELS = np.arange(24, dtype="<i2")
