"""Holds preprocessed samples against their originals: derived again, by the reference engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.engines import Job, open_engine
from ctgpu.errors import FetchError, SampleError, UsageError, reason_of
from ctgpu.intensity import HuGuard
from ctgpu.orientation import DEFAULT_RULES, AxisRules
from ctgpu.planning import Request, as_split, open_named_source
from ctgpu.sample import PreparedVolume, prepare_volume
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME
from ctgpu.shards.patterns import expand_pattern
from ctgpu.shards.plan import Plan
from ctgpu.shards.untrusted import read_json
from ctgpu.sources import open_source
from ctgpu.sources.base import SampleRef, Source, Split, normal_form
from ctgpu.sources.tables import SampleRow, report_text
from ctgpu.sources.tar_samples import TarSample, read_volume, samples_of_tar
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
    rules : AxisRules
        Which orientations were taken.
    hu_guard : {"refuse", "warn"}
        What was done about volumes that do not look like HU.
    plan : Plan or None
        The data set's plan, where a folder of ctgpu is compared.
    """

    spec: Spec = CT_RATE
    split: Split = "valid"
    spacing_from_header: bool = False
    rules: AxisRules = DEFAULT_RULES
    hu_guard: HuGuard = "refuse"
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
            rules = AxisRules.of_selection(plan.selection)
            guard = _guard_of(plan.selection)
            return cls(plan.spec, as_split(plan.split), from_header, rules, guard, plan)
        try:
            card = read_json(folder / MANIFEST_NAME)
            spec = card.get("spec")
            made_to = Spec.from_dict(spec) if isinstance(spec, dict) else CT_RATE
            selection = card.get("selection")
            selection = selection if isinstance(selection, dict) else {}
            return cls(
                made_to,
                as_split(str(card.get("split", "valid"))),
                rules=AxisRules.of_selection(selection),
                hu_guard=_guard_of(selection),
            )
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise UsageError(
                f"{folder / MANIFEST_NAME} cannot be read: {reason_of(error)}; remove it, or "
                "bring it back from a copy"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{folder / MANIFEST_NAME} is damaged: {error}") from error


def _guard_of(selection: Mapping[str, Any]) -> HuGuard:
    """That of a data set; before it was recorded, it let through most of what is not HU."""
    return "refuse" if selection.get("hu_guard") == "refuse" else "warn"


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
        refs = source.list_volumes(recipe.split)
        # A copy may have its names in another normal form; one of exactly the name goes before.
        self._refs = {normal_form(ref.key): ref for ref in refs} | {ref.key: ref for ref in refs}
        class_names = recipe.plan.class_names if recipe.plan else None
        self._tables = source.tables(recipe.split, class_names)

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
        named = Path(source) if source is not None else None
        if recipe.plan is not None:
            return cls(open_named_source(recipe.plan, named, Request(selection={})), recipe)
        if named is None:
            raise UsageError(
                "there is no plan that names the originals; pass --source or --original-pattern"
            )
        return cls(open_source(source=named), recipe)

    def row(self, key: str) -> SampleRow:
        """What the source says about the original of `key`.

        Raises
        ------
        FetchError
            If there is no original.
        TableError
            If its rows cannot be used.
        """
        return self._tables.row(
            self._ref(key).study_id, spacing_from_header=self._recipe.spacing_from_header
        )

    def prepare(self, key: str) -> PreparedVolume:
        """The original of `key`, decoded, with everything decided; release its ``raw`` when done.

        Raises
        ------
        SampleError
            If it cannot be had, or not be used.
        """
        row, ref = self.row(key), self._ref(key)
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
                rules=self._recipe.rules,
                hu_guard=self._recipe.hu_guard,
            )
        except BaseException:
            raw.release()
            raise

    def _ref(self, key: str) -> SampleRef:
        found = self._refs.get(key) or self._refs.get(normal_form(key))
        if found is None:
            raise FetchError(f"the source has no original of {key}")
        return found

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
        recipe = replace(recipe, spec=spec)
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

    They are `num_samples` unless the tars hold fewer.  No more tars are scanned than samples are
    wanted, and one more for each that turns out to be empty.

    Raises
    ------
    UsageError
        If the tars hold no sample.
    """
    if num_samples is None:
        picked = itertools.chain.from_iterable(map(samples_of_tar, tars))
    else:
        samples = _scan_enough(tars, num_samples)
        shares = _deal_out([len(of_tar) for of_tar in samples], num_samples)
        picked = itertools.chain.from_iterable(
            (of_tar[i] for i in _spread(len(of_tar), share))
            for of_tar, share in zip(samples, shares, strict=True)
        )
    first = next(picked, None)
    if first is None:
        raise UsageError(
            f"{tars[0]} and the {len(tars) - 1} tars named beside it hold no sample, so there is "
            "nothing to compare; name others"
        )
    yield first
    yield from picked


def _scan_enough(tars: Sequence[Path], num_samples: int) -> list[list[TarSample]]:
    """The samples of so many tars that hold some, in the order of the tars."""
    left = dict(enumerate(tars))
    scanned: dict[int, list[TarSample]] = {}
    while left and len(scanned) < num_samples:
        places = list(left)
        for i in _spread(len(places), num_samples - len(scanned)):
            if samples := samples_of_tar(left.pop(places[i])):
                scanned[places[i]] = samples
    return [scanned[place] for place in sorted(scanned)]


def _deal_out(counts: Sequence[int], wanted: int) -> list[int]:
    """How many to take of each, as even as `counts` allow; what is over goes to the fuller ones."""
    shares = [0] * len(counts)
    fewest_first = sorted(range(len(counts)), key=counts.__getitem__)
    for done, place in enumerate(fewest_first):
        shares[place] = min(counts[place], wanted // (len(counts) - done))
        wanted -= shares[place]
    return shares


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
    if labels is None or not _same_labels(labels, row):
        faults.append("the labels are not those of its original")
    if sample.text() != report_text(row.report):
        faults.append("the report is not that of its original")
    raw.release()
    return Comparison(sample.key, sample.tar.name, *numbers, tuple(faults))


def _same_labels(labels: npt.NDArray[np.float32], row: SampleRow) -> bool:
    if not row.has_labels and np.isnan(labels).all():
        return True  # Neither has any; older tars then hold a NaN for each of CT-RATE's classes.
    return np.array_equal(labels, row.labels, equal_nan=True)


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
