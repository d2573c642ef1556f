"""Holds preprocessed samples against their originals: derived again, by the reference engine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.engines import Job, open_engine
from ctgpu.errors import FetchError, SampleError, UsageError
from ctgpu.planning import Request, as_split, open_planned_source
from ctgpu.sample import PreparedVolume, prepare_volume
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME
from ctgpu.shards.plan import Plan
from ctgpu.sources import open_source
from ctgpu.sources.base import Source, Split
from ctgpu.sources.tables import SampleRow, report_text
from ctgpu.sources.tars import TarSample, expand_pattern, read_volume, samples_of_tar
from ctgpu.spec import CT_RATE, Spec

#: The contract's bounds against the reference: ulp or absolute anywhere, and share of voxels.
MAX_ULP = 1
MAX_ABSOLUTE = 2.4e-7
MAX_DIFFERING_SHARE = 1e-3

_SLAB_VOXELS = 1 << 22
_LOOKED_AT_VOXELS = 1 << 18
_FITS = 3
_FEWEST_FITTED = 16


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
        Distance of its voxels from the reference, in float16 values; NaN where they cannot be
        compared.
    differing_share : float
        Share of voxels that are not the same float16; NaN likewise.
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


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the samples beside a tar were made.

    Attributes
    ----------
    spec : Spec
        What they were made to.
    split : {"train", "valid"}
        Which CSVs belong to them.
    spacing_from_header : bool
        Whether the file's spacing served where the CSV had none.
    plan : Plan or None
        The data set's plan, where a folder of ctgpu is compared.
    """

    spec: Spec = CT_RATE
    split: Split = "valid"
    spacing_from_header: bool = False
    plan: Plan | None = None

    @classmethod
    def beside(cls, tar: Path) -> Recipe:
        """From the plan or the manifest beside `tar`; CT-RATE's contract where there is neither.

        Raises
        ------
        UsageError
            If one of them is damaged.
        """
        folder = tar.parent
        if (folder / PLAN_NAME).exists():
            plan = Plan.load(folder)
            from_header = plan.selection.get("spacing_fallback") == "header"
            return cls(plan.spec, as_split(plan.split), from_header, plan)
        try:
            card = json.loads((folder / MANIFEST_NAME).read_bytes())
            spec = card.get("spec")
            made_to = Spec.from_dict(spec) if isinstance(spec, dict) else CT_RATE
            return cls(made_to, as_split(str(card.get("split", "valid"))))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{folder / MANIFEST_NAME} is damaged: {error}") from error


class Originals:
    """The volumes that samples were made of, found by key.

    Parameters
    ----------
    source : Source
        Where they are; closed with this.
    recipe : Recipe
        How the samples were made.
    """

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self._source = source
        self._recipe = recipe
        self._pool = BufferPool()
        self._refs = {ref.key: ref for ref in source.list_volumes(recipe.split)}
        self._tables = source.tables(recipe.split)

    @classmethod
    def open(cls, source: str | PathLike[str] | None, recipe: Recipe) -> Originals:
        """Those of a folder or of tars; by default those that the recipe's plan names.

        Raises
        ------
        UsageError
            If there is no source, or it holds no volume of the split.
        EnvironmentFailure
            If the source fails.
        """
        if source is not None:
            return cls(open_source(source=Path(source)), recipe)
        if recipe.plan is None:
            raise UsageError(
                "there is no plan that names the originals; pass --source or --original-pattern"
            )
        planned, *_ = open_planned_source(recipe.plan, Request(selection={}))
        return cls(planned, recipe)

    def row(self, key: str) -> SampleRow:
        """What the source says about the original of `key`.

        Raises
        ------
        FetchError
            If there is no original.
        TableError
            If its rows cannot be used.
        """
        if key not in self._refs:
            raise FetchError(f"the source has no original of {key}")
        return self._tables.row(
            self._refs[key].study_id, spacing_from_header=self._recipe.spacing_from_header
        )

    def prepare(self, key: str) -> PreparedVolume:
        """The original of `key`, decoded, with everything decided; release its ``raw`` when done.

        Raises
        ------
        SampleError
            If it cannot be had, or not be used.
        """
        row = self.row(key)
        ref = self._refs[key]
        raw = self._source.decode(ref.path, self._source.fetch(ref, self._pool.acquire), self._pool)
        try:
            spacing_mm, spacing_source = row.choose_spacing_mm(raw.spacing_mm)
            return prepare_volume(
                raw,
                spec=self._recipe.spec,
                spacing_mm=spacing_mm,
                spacing_source=spacing_source,
                intensity=self._recipe.spec.intensity,
                provenance=ref.provenance,
                csv_pair=row.rescale_pair,
            )
        except BaseException:
            raw.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._source.close()


def compare_samples(
    preprocessed: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    num_samples: int | None = 8,
    spec: Spec | None = None,
) -> Iterator[Comparison]:
    """Derive samples again from their originals and compare volume, labels and report.

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
        recipe = Recipe(spec, recipe.split, recipe.spacing_from_header, recipe.plan)
    engine = open_engine("reference")
    with Originals.open(source, recipe) as originals:
        for sample in pick(tars, num_samples):
            out = np.empty(recipe.spec.stored_shape, np.float16)
            try:
                prepared = originals.prepare(sample.key.rsplit("/", 1)[-1])
                try:
                    job = Job(prepared.raw.voxels, prepared.rescale, prepared.plan, out)
                    engine.run([job])
                finally:
                    prepared.raw.release()
                yield _compare(sample, out, originals.row(sample.key.rsplit("/", 1)[-1]))
            except SampleError as error:
                yield Comparison(sample.key, sample.tar.name, np.nan, np.nan, np.nan, (str(error),))


def pick(tars: Sequence[Path], num_samples: int | None) -> Iterator[TarSample]:
    """Samples of some tars, spread evenly; all of them where `num_samples` is None.

    Raises
    ------
    UsageError
        If the tars hold no sample.
    """
    if num_samples is None:
        yield from itertools.chain.from_iterable(map(samples_of_tar, tars))
        return
    # No more tars are scanned than samples are wanted.
    chosen = [tars[i] for i in _spread(len(tars), num_samples)]
    for position, tar in enumerate(chosen):
        share = num_samples * (position + 1) // len(chosen) - num_samples * position // len(chosen)
        samples = samples_of_tar(tar)
        yield from (samples[i] for i in _spread(len(samples), share))


def _spread(count: int, wanted: int) -> list[int]:
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def ulp_distance(
    made: npt.NDArray[np.float16], reference: npt.NDArray[np.float16]
) -> npt.NDArray[np.int32]:
    """How many float16 values apart each pair is; +0 and -0 are the same."""

    def ordered(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
        bits = values.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    distance: npt.NDArray[np.int32] = np.abs(ordered(made) - ordered(reference))
    return distance


def _compare(sample: TarSample, reference: npt.NDArray[np.float16], row: SampleRow) -> Comparison:
    raw = read_volume(sample, BufferPool())
    made = raw.voxels
    faults: list[str] = []
    numbers = (np.nan, np.nan, np.nan)
    if made.dtype != np.float16 or made.shape != reference.shape:
        faults.append(f"the volume is {made.dtype} {made.shape}; wanted float16 {reference.shape}")
    else:
        numbers, within = _measure(made, reference)
        if not within:
            cause = _likely_cause(made, reference)
            faults.append(
                f"the volume is up to {numbers[0]:.0f} ulp from the reference, and "
                f"{numbers[2]:.2%} of its voxels differ: {cause}"
            )
    labels = sample.labels()
    if labels is None or not np.array_equal(labels, row.labels, equal_nan=True):
        faults.append("the labels are not those of its original")
    if sample.text() != report_text(row.report):
        faults.append("the report is not that of its original")
    raw.release()
    return Comparison(sample.key, sample.tar.name, *numbers, tuple(faults))


def _measure(
    made: npt.NDArray[Any], reference: npt.NDArray[np.float16]
) -> tuple[tuple[float, float, float], bool]:
    """Largest and mean distance and share of differing voxels; whether all bounds hold."""
    flat, wanted = made.reshape(-1), reference.reshape(-1)
    largest = total = differing = 0
    near = True
    for start in range(0, flat.size, _SLAB_VOXELS):
        part = slice(start, start + _SLAB_VOXELS)
        distance = ulp_distance(flat[part], wanted[part])
        largest = max(largest, int(distance.max()))
        total += int(distance.sum(dtype=np.int64))
        differing += int(np.count_nonzero(distance))
        far = distance > MAX_ULP
        if far.any():
            apart = np.abs(flat[part][far].astype(np.float32) - wanted[part][far])
            near = near and bool((apart <= MAX_ABSOLUTE).all())
    few = differing <= max(1, flat.size * MAX_DIFFERING_SHARE)
    return (float(largest), total / flat.size, differing / flat.size), near and few


def _likely_cause(made: npt.NDArray[Any], reference: npt.NDArray[np.float16]) -> str:
    """What the differences look like, judged on a part of the voxels."""
    for axes in itertools.permutations(range(3)):
        if axes != (0, 1, 2) and np.array_equal(made.transpose(axes).shape, reference.shape):
            step = _step(made)
            swapped = made.transpose(axes)[::step, ::step, ::step]
            part = reference[::step, ::step, ::step]
            if np.abs(swapped.astype(np.float32) - part).mean() < 1e-3:
                return f"its axes are in the order {axes} of the reference's"
    step = _step(made)
    x = reference[::step, ::step, ::step].astype(np.float64).ravel()
    y = made[::step, ::step, ::step].astype(np.float64).ravel()
    kept = (np.abs(x) < 0.99) & (np.abs(y) < 0.99)
    for _ in range(_FITS):
        if np.count_nonzero(kept) < _FEWEST_FITTED or np.ptp(x[kept]) == 0:
            return "it has next to no voxel in common with the reference, as of a wrong rescale"
        slope, offset = np.polyfit(x[kept], y[kept], 1)
        # Voxels between clipped and unclipped ones follow no line: the better half decides.
        apart = np.abs(y - slope * x - offset)
        kept &= apart <= np.median(apart[kept])
    if apart[kept].max() < 2e-3 and abs(slope - 1) + abs(offset) > 1e-2:
        return (
            f"its values are {slope:.3f} times the reference's and {offset:+.3f}, as of another HU "
            "window or of a rescale too many or too few"
        )
    return "it lies elsewhere, as of another spacing, crop or sampling position"


def _step(volume: npt.NDArray[Any]) -> int:
    return max(1, int((volume.size / _LOOKED_AT_VOXELS) ** (1 / 3)))
