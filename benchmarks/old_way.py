"""The way ctgpu replaces: one step after the other, written from the data set's own contract.

Nothing here is tuned, and nothing is slowed down: nibabel or ``np.load``, numpy and torch steps on
whole float32 volumes, and webdataset's ``TarWriter``, as the scripts in the field do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TARGET_SPACING_MM = (0.75, 0.75, 1.5)
SHAPE_HWD = (480, 480, 240)


def read(path: Path) -> npt.NDArray[Any]:
    """A volume of shape (H, W, D): float64 from NIfTI, the stored dtype from ``.npz``."""
    if path.name.endswith(".npz"):
        with np.load(path) as archive:
            return archive[archive.files[0]]
    import nibabel

    return nibabel.load(path).get_fdata()


def preprocess(
    volume: npt.NDArray[Any],
    spacing_mm: tuple[float, float, float],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> npt.NDArray[np.float16]:
    """Rescale, clip, resize, normalise, crop, pad and round; float16 of (480, 480, 240)."""
    import torch

    hu = volume.astype(np.float32)
    hu = slope * hu + intercept
    hu = np.clip(hu, -1000, 1000)
    size = [
        max(1, int(n * (s / t)))
        for n, s, t in zip(hu.shape, spacing_mm, TARGET_SPACING_MM, strict=True)
    ]
    tensor = torch.from_numpy(np.ascontiguousarray(hu, np.float32))[None, None]
    resized = torch.nn.functional.interpolate(
        tensor, size=size, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    resized = resized / 1000.0
    start = [max(0, n - want) // 2 for n, want in zip(resized.shape, SHAPE_HWD, strict=True)]
    cropped = resized[tuple(slice(s, s + want) for s, want in zip(start, SHAPE_HWD, strict=True))]
    before = [(want - n) // 2 for n, want in zip(cropped.shape, SHAPE_HWD, strict=True)]
    padding = [
        (low, want - n - low) for n, want, low in zip(cropped.shape, SHAPE_HWD, before, strict=True)
    ]
    return np.pad(cropped, padding, constant_values=-1.0).astype(np.float16)


def write(
    sink: Any, key: str, volume: npt.NDArray[np.float16], labels: npt.NDArray[np.float32], text: str
) -> None:
    """Add a sample to a webdataset ``TarWriter``."""
    sink.write(
        {
            "__key__": key,
            "bin": volume.tobytes(),
            "cls": labels.astype("<f4").tobytes(),
            "txt": text,
            "json": json.dumps({"study_id": key, "shape": list(volume.shape)}).encode(),
        }
    )


def download(url_root: str, repo_id: str, path: str, folder: Path) -> Path:
    """One file by ``hf_hub_download``, as the scripts do, into `folder`."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo_id, path, repo_type="dataset", local_dir=folder, endpoint=url_root, token=None
        )
    )
