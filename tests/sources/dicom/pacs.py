"""Small series as an archive has them: tiny slices, a folder a series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from ctgpu.buffers import BufferPool
from ctgpu.sources.dicom.private import Pseudonyms
from ctgpu.sources.dicom.source import DicomSource
from ctgpu.volume.ref import SampleRef
from support.dicom_series import write_series

#: Of rows, columns and slices that are unequal, each along one of the patient's axes.
AFFINE = np.array([[-1.5, 0, 0, 9], [0, -2, 0, 8], [0, 0, 3, -7], [0, 0, 0, 1.0]])
SHAPE_HWD = (6, 5, 4)

Change = Callable[[Dataset, int], None]


def marked(seed: int = 0, shape_hwd: tuple[int, int, int] = SHAPE_HWD) -> Any:
    """HU of which no two neighbours are alike."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape_hwd).astype(np.int16)


def put_series(root: Path, folder: str, seed: int = 0, **how: Any) -> list[Path]:
    """A series of its own for each folder and seed."""
    how = {"series": f"{folder}/{seed}", "study": folder} | how
    return write_series(root / folder, marked(seed), AFFINE, **how)


def opened(root: Path, folder: Path | None = None, **names: Any) -> DicomSource:
    """The source, with what is private kept in a folder."""
    return DicomSource(root, pseudonyms=Pseudonyms(folder, **names))


def voxels_of(source: DicomSource, ref: SampleRef) -> Any:
    """A series, fetched and decoded: HU."""
    pool = BufferPool()
    raw = source.fetch(ref, pool.acquire).decode(pool)
    hu = raw.header_rescale.hu_of(raw.voxels).copy()
    raw.release()
    return hu
