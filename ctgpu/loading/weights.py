"""How often each sample is drawn in an epoch, on average, beside the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ctgpu.arguments import require_flag, shown
from ctgpu.errors import UsageError
from ctgpu.loading.dataset import Labels, VolumeDataset
from ctgpu.loading.order import Weights
from ctgpu.printable import counted
from ctgpu.volume.arrays import on_host
from ctgpu.volume.ref import normal_form

_SHOWN = 3


def require_mode(
    sample_weights: object, class_balanced: bool, *, shuffle: bool, window_bytes: int | None
) -> None:
    """Refuse weights that contradict each other, or the order that is asked for.

    Raises
    ------
    UsageError
    """
    require_flag("class_balanced", class_balanced)
    if sample_weights is None and not class_balanced:
        return
    if sample_weights is not None and class_balanced:
        raise UsageError(
            "sample_weights and class_balanced both say how often samples are drawn; give one of "
            "them"
        )
    name = "class_balanced" if class_balanced else "sample_weights"
    if not shuffle:
        raise UsageError(
            f"{name} draws samples at random, and shuffle=False keeps their order; give "
            "shuffle=True, or leave the weights out"
        )
    if window_bytes is not None:
        raise UsageError(
            f"{name} draws from the whole data set, and shuffle_window_bytes mixes a few shards at "
            "a time; give one of them"
        )


def given_weights(
    weights: object, opened: VolumeDataset, dataset: VolumeDataset, *, labelled_only: bool
) -> Weights:
    """The weights that a caller gives, as one for each sample of `dataset`.

    Parameters
    ----------
    weights : mapping or array-like
        By study id, compared in Unicode's NFC, of at least the samples of `dataset`; or one for
        each sample of `opened`, in their order.
    opened : VolumeDataset
        What the caller opened.
    dataset : VolumeDataset
        Of these samples those that are loaded: all, or if `labelled_only` the labelled ones.

    Raises
    ------
    UsageError
        If one is missing, negative or not finite, or all are 0; or there are too many.
    """
    if isinstance(weights, Mapping):
        found = _checked(_by_study(weights, dataset), dataset)
    else:
        found = _checked(weights, opened)
        if labelled_only:
            found = found[[entry.labelled for entry in opened.entries]]
    if not found.any():
        loaded = counted(len(dataset), "sample that is loaded", "samples that are loaded")
        raise UsageError(
            f"sample_weights is 0 for all {loaded}; give those that are to be drawn a weight above "
            "0"
        )
    return found


def balanced_weights(labels: Labels) -> Weights:
    """Weights under which the values of each class come more nearly equally often.

    In each class, a label weighs as scikit-learn's ``class_weight="balanced"`` has it: N / (K × n),
    of N known labels with K different values, n of which have this one.  A sample has the mean of
    its known labels, and one without any the mean of the other samples.

    Parameters
    ----------
    labels : numpy.ndarray
        Shape (samples, classes), float32; NaN where a label is not known.

    Returns
    -------
    numpy.ndarray
        Shape (samples,), float64; the same bits on every machine.

    Raises
    ------
    UsageError
        If no label is known.
    """
    known = ~np.isnan(labels)
    counts = np.count_nonzero(known, axis=1)
    labelled = counts > 0
    if not labelled.any():
        raise UsageError(
            "class_balanced has no known label to go by; give sample_weights, or leave it out"
        )
    # Class by class, as NumPy does not promise in which order it adds up along an axis.
    sums = np.zeros(len(labels))
    for column, there in zip(labels.T, known.T, strict=True):
        values, which, times = np.unique(column[there], return_inverse=True, return_counts=True)
        sums[there] += (len(which) / (len(values) * times))[which]
    weights = np.empty(len(labels))
    weights[labelled] = sums[labelled] / counts[labelled]
    weights[~labelled] = math.fsum(weights[labelled]) / np.count_nonzero(labelled)
    return weights


def _by_study(weights: Mapping[Any, Any], dataset: VolumeDataset) -> list[Any]:
    by_name: dict[str, Any] = {}
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise UsageError(f"sample_weights has the key {shown(name)}; its keys are study ids")
        if by_name.setdefault(normal_form(name), weight) is not weight:
            raise UsageError(
                f"sample_weights has {name} in two spellings of Unicode; give it one weight"
            )
    names = [normal_form(study_id) for study_id in dataset.study_ids]
    if missing := sorted({name for name in names if name not in by_name}):
        some = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise UsageError(
            f"sample_weights has no weight for {len(missing)} of the studies that are loaded "
            f"({some}); give them one, 0 for those that are never to be drawn"
        )
    return [by_name[name] for name in names]


def _checked(weights: Any, dataset: VolumeDataset) -> Weights:
    """One weight for each sample of a data set, none of which is impossible."""
    found = on_host(weights, "sample_weights")
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iuf"):
        raise UsageError(
            f"sample_weights is {shown(weights)}; wanted one number for each sample, or a mapping "
            "of study ids to numbers"
        )
    if len(found) != len(dataset):
        raise UsageError(
            f"sample_weights has {counted(len(found), 'number')}, and {dataset!r} has "
            f"{counted(len(dataset), 'sample')}; give one for each, in their order"
        )
    values = found.astype(np.float64)
    # Not only "negative": a NaN compares with nothing.
    if (wrong := np.flatnonzero(~((values >= 0) & (values < np.inf)))).size:
        first = int(wrong[0])
        raise UsageError(
            f"sample_weights has {values[first]} for {dataset.study_ids[first]}; a weight is a "
            "finite number, 0 or above"
        )
    return values
