"""Compares preprocessed samples with their originals, derived again by the reference engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.checking.distance import likely_cause, measure
from ctgpu.checking.facts import stored_mask
from ctgpu.checking.originals import Originals
from ctgpu.checking.picking import pick
from ctgpu.checking.recipe import Recipe
from ctgpu.engines import Job, open_engine
from ctgpu.errors import SampleError
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.tables import SampleRow
from ctgpu.sources.tar_samples import TarSample, read_volume, stored_dtype
from ctgpu.spec import Spec
from ctgpu.volume.mask_gather import gather_mask
from ctgpu.volume.stored import numbers_of, numpy_dtype


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one sample compares with its original.

    Attributes
    ----------
    key : str
        The sample.
    tar : str
        Name of the tar that holds it.
    max_ulp, mean_ulp : float
        Distance of its voxels from the reference, in units in the last place of the stored type,
        which are 1 for int16 and uint8, or in steps of a precision, where these are larger; NaN
        where they cannot be compared.
    differing_share : float
        Share of voxels that are not the same number; NaN likewise.
    faults : tuple of str
        What is wrong, in words.
    """

    key: str
    tar: str
    max_ulp: float
    mean_ulp: float
    differing_share: float
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        numbers = (self.max_ulp, self.mean_ulp, self.differing_share)
        return {
            "key": self.key,
            "tar": self.tar,
            **{
                name: None if np.isnan(value) else value
                for name, value in zip(
                    ("max_ulp", "mean_ulp", "differing_share"), numbers, strict=True
                )
            },
            "passed": self.passed,
            "faults": list(self.faults),
        }


def compare_samples(
    preprocessed: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    num_samples: int | None = 8,
    spec: Spec | None = None,
) -> Iterator[Comparison]:
    """Derive samples again from their originals and compare volume, mask, labels and report.

    Masks are compared where the folder's plan says how they were made, and must be the same.

    Parameters
    ----------
    preprocessed : path
        A data set's folder, or a tar, brace pattern or glob of preprocessed shards.
    source : path, optional
        The originals: a local copy of CT-RATE, any folder of volumes, or raw tars; by default
        what the folder's plan names.
    num_samples : int, optional
        So many, spread evenly over the tars; None for all.
    spec : Spec, optional
        What they should have been made to; by default what plan or manifest beside them say.

    Yields
    ------
    Comparison
        Sample by sample.

    Raises
    ------
    UsageError
        If there is nothing to compare, or no original to compare it with.
    DeviceError
        If torch is missing.
    """
    tars = expand_pattern(preprocessed)
    recipe = Recipe.beside(tars[0])
    if spec is not None:
        recipe = replace(recipe, spec=spec)
    engine = open_engine("reference")
    with Originals.open(source, recipe) as originals:
        for sample in pick(tars, num_samples):
            out = np.empty(recipe.spec.stored_shape, numpy_dtype(recipe.spec.dtype))
            try:
                prepared = originals.prepare(sample.key.rsplit("/", 1)[-1])
                try:
                    job = Job(prepared.voxels, prepared.rescale, prepared.plan, out)
                    engine.run([job])
                    mask = None if prepared.mask is None else gather_mask(prepared)
                finally:
                    prepared.release()
                reference = numbers_of(out, recipe.spec.dtype)
                row = originals.row(sample.key.rsplit("/", 1)[-1])
                yield _compare(sample, reference, mask, recipe.spec, row)
            except SampleError as error:
                yield Comparison(sample.key, sample.tar.name, np.nan, np.nan, np.nan, (str(error),))


def _compare(
    sample: TarSample,
    reference: npt.NDArray[np.float32],
    mask: npt.NDArray[Any] | None,
    spec: Spec,
    row: SampleRow,
) -> Comparison:
    raw = read_volume(sample, BufferPool())
    made, dtype = raw.voxels, stored_dtype(raw)
    faults: list[str] = []
    numbers = (np.nan, np.nan, np.nan)
    if dtype != spec.dtype or made.shape != reference.shape:
        faults.append(f"the volume is {dtype} {made.shape}; wanted {spec.dtype} {reference.shape}")
    else:
        numbers, within = measure(made, reference, spec)
        if not within:
            cause = likely_cause(made, reference, spec)
            faults.append(
                f"the volume is up to {numbers[0]:.0f} ulp from the reference, and "
                f"{numbers[2]:.2%} of its voxels differ: {cause}"
            )
    if mask is not None:
        faults += _mask_faults(sample, mask)
    labels = sample.labels()
    if labels is None or not _same_labels(labels, row):
        faults.append("the labels are not those of its original")
    if sample.text() != row.text:
        faults.append("the report is not that of its original")
    raw.release()
    return Comparison(sample.key, sample.tar.name, *numbers, tuple(faults))


def _mask_faults(sample: TarSample, wanted: npt.NDArray[Any]) -> Iterator[str]:
    made = stored_mask(sample, wanted.shape)
    if made is None:
        yield "it has no mask, and its original has one"
    elif made.dtype != wanted.dtype:
        yield f"the mask is {made.dtype}; wanted {wanted.dtype}"
    elif differing := np.count_nonzero(made != wanted):
        yield (
            f"the mask differs from that of its original in {differing:,} of {wanted.size:,} voxels"
        )


def _same_labels(labels: npt.NDArray[np.float32], row: SampleRow) -> bool:
    if not row.has_labels and np.isnan(labels).all():
        return True  # Neither has any; older tars then hold a NaN for each of CT-RATE's classes.
    return np.array_equal(labels, row.labels, equal_nan=True)
