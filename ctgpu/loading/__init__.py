"""Feeds shards to training: a torch loader, and adapters for stock webdataset and DALI.

>>> from ctgpu.loading import VolumeDataset, make_loader
>>> loader = make_loader(VolumeDataset("shards"), 2, shuffle=True)          # doctest: +SKIP
>>> for batch in loader:                                                    # doctest: +SKIP
...     batch["volume"], batch["labels"]

torch is imported by :func:`make_loader` alone; the data set and the adapters do without it.
"""

from __future__ import annotations

from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.loader import VolumeLoader, make_loader
from ctgpu.loading.window import WINDOWS

__all__ = ["WINDOWS", "VolumeDataset", "VolumeLoader", "make_loader"]
