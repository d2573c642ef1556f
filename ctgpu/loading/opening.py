"""What loaders take, as a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ctgpu.errors import UsageError
from ctgpu.loading.catalogue import Named
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.printable import counted

if TYPE_CHECKING:
    from torch.utils.data import Subset

log = logging.getLogger(__name__)


def samples_to_load(dataset: VolumeDataset, *, labelled_only: bool) -> VolumeDataset:
    """The samples to load; one warning in the log says how many of them lack labels.

    Raises
    ------
    UsageError
        If there are none.
    """
    if len(dataset) == 0:
        raise UsageError(f"{dataset!r} has no samples to load")
    if labelled_only:
        labelled = [number for number, entry in enumerate(dataset.entries) if entry.labelled]
        if not labelled:
            raise UsageError(f"{dataset!r} has no labelled samples, and labelled_only wants those")
        if len(labelled) < len(dataset):
            dataset = dataset.take(labelled)
    if dataset.class_names:
        _warn_of_nan(dataset)
    return dataset


def _warn_of_nan(dataset: VolumeDataset) -> None:
    unlabelled = sum(not entry.labelled for entry in dataset.entries)
    partly = sum(entry.partly_labelled for entry in dataset.entries)
    samples = counted(len(dataset), "sample has", "samples have")
    found, ways_out = [], []
    if unlabelled:
        found.append(f"{unlabelled} of {samples} no label row: their labels are NaN")
        ways_out.append("labelled_only=True leaves out those without a row")
    if partly:
        found.append(f"{partly} of {samples} a label row with blanks: these are NaN")
        ways_out.append(
            "dataset.select(lambda sample: sample.labelled and not sample.partly_labelled) keeps "
            "those without a blank"
        )
    if found:
        log.warning(
            "%s; and so is a loss that does not mask them (docs/loading.md has one that does); %s",
            *("; ".join(found), "; ".join(ways_out)),
        )


def open_samples(
    source: VolumeDataset | Subset[Any] | Named | Sequence[Named],
) -> VolumeDataset:
    """What a loader is given, as a data set.

    Raises
    ------
    UsageError
        If it is none that a loader can read.
    MismatchError, StorageError
        As :class:`VolumeDataset`, which opens paths.
    """
    from torch.utils.data import Subset

    if isinstance(source, VolumeDataset):
        return source
    if isinstance(source, Subset):
        kind = type(source)
        if (kind.__getitem__, kind.__getitems__) != (Subset.__getitem__, Subset.__getitems__):
            raise UsageError(
                f"{kind.__name__} changes the samples of a Subset, and volumes are read without "
                "it; give the Subset that it was made of, and the change as transform="
            )
        return open_samples(source.dataset).take(source.indices)  # type: ignore[arg-type]
    if isinstance(source, str | PathLike | list | tuple):
        return VolumeDataset(source)
    raise UsageError(
        f"dataset is a {type(source).__name__}; it takes a VolumeDataset, a "
        "torch.utils.data.Subset of one, or the paths of folders"
    )
