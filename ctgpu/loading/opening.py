"""What :func:`ctgpu.loading.make_loader` takes, as a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ctgpu.errors import UsageError
from ctgpu.loading.catalogue import Named
from ctgpu.loading.dataset import VolumeDataset

if TYPE_CHECKING:
    from torch.utils.data import Subset

log = logging.getLogger(__name__)


def open_samples(
    source: VolumeDataset | Subset[Any] | Named | Sequence[Named], *, labelled_only: bool
) -> VolumeDataset:
    """The samples to load; one warning in the log says how many of them have no labels.

    Raises
    ------
    UsageError
        If there are none, or the source is none that a loader can read.
    MismatchError, StorageError
        As :class:`VolumeDataset`, which opens paths.
    """
    dataset = _as_dataset(source)
    if len(dataset) == 0:
        raise UsageError(f"{dataset!r} has no samples to load")
    labelled = [number for number, entry in enumerate(dataset.entries) if entry.labelled]
    if len(labelled) == len(dataset):
        return dataset
    if labelled_only:
        if not labelled:
            raise UsageError(f"{dataset!r} has no labelled samples, and labelled_only wants those")
        return dataset.take(labelled)
    if dataset.class_names:
        log.warning(
            "%d of %d samples have no label row: their labels are NaN, and so is a loss that does "
            "not mask them; make_loader(..., labelled_only=True) leaves them out",
            len(dataset) - len(labelled),
            len(dataset),
        )
    return dataset


def _as_dataset(
    source: VolumeDataset | Subset[Any] | Named | Sequence[Named],
) -> VolumeDataset:
    from torch.utils.data import Subset

    if isinstance(source, VolumeDataset):
        return source
    if isinstance(source, Subset):
        kind = type(source)
        if (kind.__getitem__, kind.__getitems__) != (Subset.__getitem__, Subset.__getitems__):
            raise UsageError(
                f"{kind.__name__} changes the samples of a Subset, and the loader reads "
                "volumes itself; give make_loader the Subset, and the change as transform="
            )
        return _as_dataset(source.dataset).take(source.indices)  # type: ignore[arg-type]
    if isinstance(source, str | PathLike | list | tuple):
        return VolumeDataset(source)
    raise UsageError(
        f"make_loader was given a {type(source).__name__}; it takes a VolumeDataset, a "
        "torch.utils.data.Subset of one, or the paths of folders"
    )
