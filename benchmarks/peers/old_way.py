"""The way ctgpu replaces: one step after the other, written from the data set's own contract.

Nothing here is tuned, and nothing is slowed down: nibabel or ``np.load``, numpy and torch steps on
whole float32 volumes, and webdataset's ``TarWriter``, as the scripts in the field do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

TARGET_SPACING_MM = (0.75, 0.75, 1.5)
SHAPE_HWD = (480, 480, 240)

Volume = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]


def read(path: Path) -> npt.NDArray[Any]:
    """A volume of shape (H, W, D): float64 from NIfTI, the stored dtype from ``.npz``."""
    if path.name.endswith(".npz"):
        return decompress(path)
    import nibabel

    image: Any = nibabel.load(path)
    voxels: npt.NDArray[Any] = image.get_fdata()
    return voxels


def decompress(npz: Path | BinaryIO) -> npt.NDArray[Any]:
    """The first array of an ``.npz``."""
    with np.load(npz) as archive:
        first: npt.NDArray[Any] = archive[archive.files[0]]
        return first


def preprocess(volume: npt.NDArray[Any], spacing_mm: Spacing) -> npt.NDArray[np.float16]:
    """Rescale, clip, resize, normalise, crop, pad and round; float16 of (480, 480, 240)."""
    resized = resize(clip(rescale(volume, 1.0, 0.0)), spacing_mm)
    return crop_and_pad(normalise(resized)).astype(np.float16)


def rescale(volume: npt.NDArray[Any], slope: float, intercept: float) -> Volume:
    """Stored values to HU, float32."""
    return slope * volume.astype(np.float32) + intercept


def clip(hu: Volume) -> Volume:
    """To the HU window."""
    return np.clip(hu, -1000, 1000)


def resize(
    hu: Volume, spacing_mm: Spacing, target_spacing_mm: Spacing = TARGET_SPACING_MM
) -> Volume:
    """Trilinear, to the target spacing."""
    import torch

    size = [
        max(1, int(n * (s / t)))
        for n, s, t in zip(hu.shape, spacing_mm, target_spacing_mm, strict=True)
    ]
    tensor = torch.from_numpy(np.ascontiguousarray(hu, np.float32))[None, None]
    return torch.nn.functional.interpolate(
        tensor, size=size, mode="trilinear", align_corners=False
    )[0, 0].numpy()


def normalise(hu: Volume) -> Volume:
    """The HU window to [-1, 1]."""
    return hu / 1000.0


def crop_and_pad(volume: Volume, shape_hwd: tuple[int, int, int] = SHAPE_HWD) -> Volume:
    """Cut or fill each axis around its centre."""
    start = [max(0, n - want) // 2 for n, want in zip(volume.shape, shape_hwd, strict=True)]
    cropped = volume[tuple(slice(s, s + want) for s, want in zip(start, shape_hwd, strict=True))]
    before = [(want - n) // 2 for n, want in zip(cropped.shape, shape_hwd, strict=True)]
    padding = [
        (low, want - n - low) for n, want, low in zip(cropped.shape, shape_hwd, before, strict=True)
    ]
    return np.pad(cropped, padding, constant_values=-1.0)


def decode_preprocessed(sample: dict[str, Any]) -> dict[str, Any]:
    """A preprocessed webdataset sample as the old loader gave it: float32 on the host."""
    import torch

    shape = json.loads(sample["json"])["shape"]
    volume = np.frombuffer(sample["bin"], np.float16).reshape(shape).astype(np.float32)
    return {
        "volume": torch.from_numpy(volume)[None],
        "labels": torch.from_numpy(np.frombuffer(sample["cls"], "<f4").copy()),
        "report": sample["txt"].decode(),
    }


def write(
    sink: Any, key: str, volume: npt.NDArray[np.float16], labels: npt.NDArray[np.float32], text: str
) -> None:
    """Add a sample to a webdataset ``TarWriter``."""
    facts = json.dumps({"study_id": key, "shape": list(volume.shape)}).encode()
    members = {"bin": volume.tobytes(), "cls": labels.astype("<f4").tobytes()}
    sink.write({"__key__": key, **members, "txt": text, "json": facts})


def download(url_root: str, repo_id: str, path: str, folder: Path) -> Path:
    """One file by ``hf_hub_download``, as the scripts do, into `folder`."""
    from huggingface_hub import hf_hub_download

    how: Any = {"repo_type": "dataset", "endpoint": url_root, "token": None}
    return Path(hf_hub_download(repo_id, path, local_dir=folder, **how))
