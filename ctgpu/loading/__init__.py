"""Feeds shards to training: a torch loader, and adapters for stock webdataset and DALI.

>>> from ctgpu.loading import VolumeDataset, make_loader
>>> loader = make_loader(VolumeDataset("shards"), 2, shuffle=True)          # doctest: +SKIP
>>> for batch in loader:                                                    # doctest: +SKIP
...     batch["volume"], batch["labels"]

torch is imported by :func:`make_loader` alone; the data set and the adapters do without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.loader import VolumeLoader, make_loader
from ctgpu.loading.window import WINDOWS

if TYPE_CHECKING:
    from ctgpu.online.raw_dataset import RawDataset

__all__ = ["WINDOWS", "RawDataset", "VolumeDataset", "VolumeLoader", "make_loader"]


def __getattr__(name: str) -> Any:
    # It is a build that it is made of, and its room is above this one.
    if name == "RawDataset":
        return import_module("ctgpu.online.raw_dataset").RawDataset
    raise AttributeError(f"module 'ctgpu.loading' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
