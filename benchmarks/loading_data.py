"""What the loading benchmark reads: one scan as raw tars of the old scripts and as shards."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset

import ctgpu
from ctgpu.loading import VolumeDataset
from ctgpu.spec import Spec
from ctgpu.volume.raw import Spacing
from run_build import make_source

#: The pair that raw voxels are stored with; both ways apply it.
RESCALE_PAIR = (1.0, -1024.0)
# Worker processes of webdataset share the shards among them.
_MOST_SHARDS = 16


@dataclass(frozen=True)
class Data:
    """One scan, many times.

    Attributes
    ----------
    raw : pathlib.Path
        Tar of raw samples, ``npz`` and ``json``, as users of the old scripts have it.
    shards : pathlib.Path
        Data set that ``ctgpu.build`` made.
    litdata : pathlib.Path
        Folder for litdata's copy of it, made where that is read.
    """

    raw: Path
    shards: Path
    litdata: Path

    @cached_property
    def tars(self) -> list[Path]:
        """The tars of the data set."""
        return [shard.path for shard in VolumeDataset(self.shards).shards]

    @cached_property
    def spec(self) -> Spec:
        """What the volumes were made to."""
        return VolumeDataset(self.shards).spec

    @cached_property
    def checksums(self) -> list[str]:
        """XXH3-128 of every volume, as the records have it, sorted."""
        return sorted(
            entry.members["bin"].xxh3_128
            for shard in VolumeDataset(self.shards).shards
            for entry in shard.samples
        )

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return len(self.checksums)


def build(
    folder: Path, voxels: npt.NDArray[Any], spacing_mm: Spacing, spec: Spec, samples: int
) -> Path:
    """A data set of `samples` copies of one scan."""
    source = folder.with_name(folder.name + "-source")
    make_source(source, voxels, spacing_mm, ".nii.gz", samples)
    report = ctgpu.build(
        folder,
        source=source,
        spec=spec,
        samples_per_shard=max(1, samples // _MOST_SHARDS),
        device="cpu",
    )
    assert report.exit_code == 0
    shutil.rmtree(source)
    return folder


def write_raw(tar: Path, hu: npt.NDArray[np.int16], spacing_mm: Spacing, samples: int) -> Path:
    """A raw WebDataset of `samples` copies of one scan, stored as v1 volumes are: not in HU."""
    slope, intercept = RESCALE_PAIR
    stored = ((hu - intercept) / slope).astype(np.int16)
    npz = io.BytesIO()
    np.savez_compressed(npz, stored)
    facts = {
        "volume_shape": list(hu.shape),
        "volume_dtype": "int16",
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "XYSpacing": list(spacing_mm[:2]),
        "ZSpacing": spacing_mm[2],
    }
    with webdataset.TarWriter(str(tar)) as sink:
        for number in range(samples):
            key = f"valid_{number + 1}_a_1"
            sink.write(
                {
                    "__key__": key,
                    "npz": npz.getvalue(),
                    "json": json.dumps({"study_id": key, **facts}).encode(),
                }
            )
    return tar


def stock(tars: Iterable[Path]) -> Any:
    """webdataset over tars, undecoded."""
    return webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)
