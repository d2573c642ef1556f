"""A small CT-RATE-like data set, made, built and shown: what `ctgpu demo` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.building.builder import BuildReport, build
from ctgpu.building.events import Watcher, ignore
from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.folder import committed_shards
from ctgpu.testing.ctrate import (
    Volume,
    VolumeFormat,
    chest_phantom,
    lay_out_ct_rate,
    write_tables,
)
from ctgpu.volume.stored import numbers_of

#: Study id to shape (H, W, D), spacing (mm) and file format: up- and down-sampled, cropped, padded.
SCANS: Mapping[str, tuple[tuple[int, int, int], tuple[float, float, float], VolumeFormat]] = {
    "valid_1_a_1": ((256, 256, 100), (1.4, 1.4, 3.5), ".nii.gz"),
    "valid_1_a_2": ((320, 320, 150), (1.2, 1.2, 2.0), ".nii.gz"),
    "valid_2_a_1": ((224, 240, 90), (1.5, 1.5, 4.0), ".npz"),
    "valid_3_a_1": ((300, 280, 60), (1.25, 1.25, 5.0), ".npz"),
}


@dataclass(frozen=True, slots=True)
class BuiltSample:
    """One sample, read back from its shard.

    Attributes
    ----------
    key : str
        Its name.
    metadata : dict
        Its ``.json``.
    lowest, highest, mean : float
        Of its voxels.
    """

    key: str
    metadata: Mapping[str, Any]
    lowest: float
    highest: float
    mean: float


def make_source(folder: Path) -> None:
    """Write the phantoms of :data:`SCANS` and their CSVs as CT-RATE lays them out."""
    volumes = {
        study_id: Volume(chest_phantom(shape_hwd, spacing_mm, seed), spacing_mm)
        for seed, (study_id, (shape_hwd, spacing_mm, _)) in enumerate(SCANS.items())
    }
    for volume_format in (".nii.gz", ".npz"):
        lay_out_ct_rate(
            folder,
            {s: v for s, v in volumes.items() if SCANS[s][2] == volume_format},
            format=volume_format,
            tables=(),
        )
    write_tables(folder, volumes)


def run_demo(folder: Path, *, device: str = "auto", watch: Watcher = ignore) -> BuildReport:
    """Make the source in ``folder/source`` and build it into ``folder/shards``.

    Raises
    ------
    UsageError
        If `folder` holds something else already.
    """
    source, shards = folder / "source", folder / "shards"
    if not source.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files; choose an empty --output-dir")
        make_source(source)
    return build(
        shards, source=source, split="valid", samples_per_shard=2, device=device, watch=watch
    )


def read_back(folder: Path) -> list[BuiltSample]:
    """Every sample of a data set, verified against its checksums; none where there is no shard."""
    if not committed_shards(folder):
        return []
    dataset = VolumeDataset(folder)
    samples = []
    for index, entry in enumerate(dataset.entries):
        metadata = dataset.metadata(index)
        volume = numbers_of(dataset[index]["volume"], dataset.spec.dtype)
        samples.append(
            BuiltSample(
                entry.key,
                metadata,
                float(volume.min()),
                float(volume.max()),
                float(volume.mean(dtype=np.float64)),
            )
        )
    return samples
