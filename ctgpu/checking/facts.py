"""What is in a tar, a data set or a volume file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import converted, require_whole_number
from ctgpu.buffers import BufferPool
from ctgpu.checking.recipe import Recipe
from ctgpu.checking.sheet import View, stated_affine, to_hu
from ctgpu.codec import CtzError
from ctgpu.codec.whole import decode_member
from ctgpu.data_sets import built_in
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.errors import DecodeError, StorageError
from ctgpu.shards.card import Claims
from ctgpu.shards.names import parse_shard_name, record_name
from ctgpu.shards.patterns import expand_pattern
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.tar import MASKS, mask_of
from ctgpu.sources.fetched import fetch_file
from ctgpu.sources.tar_samples import (
    TarSample,
    preprocessed_shape,
    read_volume,
    samples_of_tar,
    stored_dtype,
)
from ctgpu.spec import Dtype, Layout, Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.orientation import Orientation, orientation_of
from ctgpu.volume.raw import RawVolume, Rescale, Spacing
from ctgpu.volume.ref import VOLUME_SUFFIXES, strip_volume_suffix

#: Characters of a report that are shown.
EXCERPT_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known about one sample.

    Attributes
    ----------
    key, file : str
        Its name, and that of the tar or file that holds it.
    members : dict of str to int
        Bytes of each member, by extension.
    shape, dtype, layout : tuple of int, str, str
        Of the volume as stored.
    lowest, mean, highest : float
        Of its voxels as stored.
    preprocessed : bool
        Whether this is a finished output, not a raw volume.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D), where it is stated.
    orientation : Orientation or None
        How H, W and D lie in the patient, where it is stated.
    contradictions : tuple of str
        What its header states twice and not alike.
    labels : dict of str to float, or None
        By name; None where there are none.
    mask : dict of str to int, or None
        Voxels of each label of its mask, by name, or by number where it has none; None where there
        is no mask.
    report : str
        Its beginning.
    source : dict
        What its JSON says it was made of.
    engine : dict or None
        What made it, by the shard's record.
    """

    key: str
    file: str
    members: dict[str, int]
    shape: tuple[int, ...]
    dtype: str
    layout: str
    lowest: float
    mean: float
    highest: float
    preprocessed: bool
    spacing_mm: Spacing | None
    orientation: Orientation | None
    contradictions: tuple[str, ...]
    labels: dict[str, float] | None
    mask: dict[str, int] | None
    report: str
    source: dict[str, Any]
    engine: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; NaN labels become null."""
        facts = asdict(self)
        if self.labels is not None:
            facts["labels"] = {k: None if np.isnan(v) else v for k, v in self.labels.items()}
        return facts


def inspect_samples(
    where: str | PathLike[str], *, num_samples: int = 4
) -> Iterator[tuple[SampleFacts, View]]:
    """Look at the first samples of something.

    Parameters
    ----------
    where : path
        A data set's folder, a tar, a brace pattern or glob of tars (raw or preprocessed), or the
        file of one volume.
    num_samples : int
        At most so many.

    Yields
    ------
    (SampleFacts, View)
        What is known about it, and what :func:`draw_sheet` takes.

    Raises
    ------
    UsageError
        If it names nothing, or `num_samples` is none.
    StorageError, DecodeError
        If it cannot be read.
    """
    require_whole_number("num_samples", num_samples)
    path = Path(where)
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        yield _look_at_file(path)
        return
    tars = expand_pattern(where)
    samples = itertools.chain.from_iterable(map(samples_of_tar, tars))
    recipe = Recipe.beside(tars[0])
    for sample in itertools.islice(samples, num_samples):
        yield _look_at_sample(sample, recipe)


def _look_at_file(path: Path) -> tuple[SampleFacts, View]:
    pool = BufferPool()
    fetched = fetch_file(path, pool.acquire)
    size_bytes = fetched.size_bytes
    raw = fetched.decode(pool)
    key = strip_volume_suffix(path.name)
    hu = to_hu(raw.voxels, raw.header_rescale)
    extension = path.name[len(key) + 1 :]
    facts = _facts(key, path.name, {extension: size_bytes}, raw, raw.spacing_mm)
    return facts, View(key, hu, raw.spacing_mm or (1.0, 1.0, 1.0), stated_affine(raw), None)


def _look_at_sample(sample: TarSample, recipe: Recipe) -> tuple[SampleFacts, View]:
    raw = read_volume(sample, BufferPool())
    stated = sample.facts()
    named = _named_labels(sample, recipe)
    dtype = stored_dtype(raw)
    # Tars that were made before any of this was stated hold float16, and no raw scan does.
    preprocessed = preprocessed_shape(sample) is not None or dtype == "float16"
    source = stated.get("source", {})
    mask = stored_mask(sample, raw.voxels.shape)
    facts = _facts(
        sample.key,
        sample.tar.name,
        {extension: member.size_bytes for extension, member in sample.members.items()},
        raw,
        raw.spacing_mm,
        dtype=dtype,
        layout=str(stated.get("layout", "HWD")),
        preprocessed=preprocessed,
        labels=named,
        mask=None if mask is None else _label_voxels(mask, _mask_labels(sample, recipe)),
        report=sample.text()[:EXCERPT_CHARACTERS],
        source=source if isinstance(source, dict) else {"path": source},
        engine=_engine(sample),
    )
    rescale_to_hu = (
        _stored_rescale(dtype, stated, recipe.spec) if preprocessed else raw.header_rescale
    )
    axes_hwd = (1, 2, 0) if facts.layout == "DHW" else (0, 1, 2)
    view = View(
        sample.key,
        to_hu(raw.voxels.transpose(axes_hwd), rescale_to_hu),
        raw.spacing_mm or (recipe.spec.target_spacing_mm if preprocessed else (1.0, 1.0, 1.0)),
        stated_affine(raw),
        named,
        None if mask is None else mask.transpose(axes_hwd),
    )
    return facts, view


def stored_mask(sample: TarSample, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """The mask of a sample, in stored order; None where it has none that its JSON describes.

    Parameters
    ----------
    sample : TarSample
        The sample.
    shape : tuple of int
        That of its volume as stored.

    Raises
    ------
    DecodeError
        If it cannot be read, or does not have the voxels of the volume.
    """
    said = sample.facts().get("mask")
    extension = mask_of(sample.members)
    if extension is None or not isinstance(said, dict):
        return None
    try:
        masks = MaskFormat.from_dict({"dtype": said.get("dtype")})
    except ValueError:
        return None  # another writer's
    content = sample.read(extension, MAX_VOLUME_BYTES)
    if extension == MASKS[1]:
        return _decoded_mask(sample, extension, content, shape, masks)
    if len(content) != math.prod(shape) * masks.numpy_dtype.itemsize:
        raise DecodeError(
            f"{sample.tar}: {sample.key}.{extension} has {len(content):,} bytes; wanted "
            f"{masks.dtype} for each of {math.prod(shape):,} voxels: make the sample again"
        )
    return np.frombuffer(content, masks.numpy_dtype).reshape(shape)


def _decoded_mask(
    sample: TarSample, extension: str, content: bytes, shape: tuple[int, ...], masks: MaskFormat
) -> npt.NDArray[Any]:
    layout: Layout = "DHW" if sample.facts().get("layout") == "DHW" else "HWD"
    first, second, third = shape
    shape_dhw = (first, second, third) if layout == "DHW" else (third, first, second)
    try:
        return decode_member(content, shape_dhw, masks.dtype, masks.numpy_dtype, layout)
    except CtzError as error:
        raise DecodeError(
            f"{sample.tar}: {sample.key}.{extension} cannot be decoded: {error}; make the sample "
            "again"
        ) from error


def _mask_labels(sample: TarSample, recipe: Recipe) -> Mapping[str, int]:
    """By the plan or the manifest; empty where neither names any."""
    claimed = recipe.plan.masks if recipe.plan else Claims.if_readable(sample.tar.parent).masks
    return {} if claimed is None else claimed.to_dict()["labels"]


def _label_voxels(mask: npt.NDArray[Any], labels: Mapping[str, int]) -> dict[str, int]:
    counts = np.zeros(int(np.iinfo(mask.dtype).max) + 1, np.int64)
    for plane in mask:  # a whole volume as the integers that are counted is eight times as large
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    named = {name: int(counts[number]) for name, number in labels.items()}
    others = sorted({*np.flatnonzero(counts).tolist()} - {0, *labels.values()})
    return named | {f"label {number}": int(counts[number]) for number in others}


def _stored_rescale(dtype: str, stated: Mapping[str, Any], spec: Spec) -> Rescale:
    """How the numbers of a preprocessed sample become HU again, up to what was clipped.

    Parameters
    ----------
    dtype : str
        As they are stored.
    stated : mapping
        The sample's JSON.
    spec : Spec
        What the data set was made to, as far as that is known.
    """
    if dtype == "int16":
        return Rescale()
    if dtype != spec.dtype and dtype in get_args(Dtype):
        spec = Spec.from_dict({"dtype": dtype})  # the tar alone, of which no more is known
    if spec.normalise == "window":
        scale, offset = spec.scale_offset
        return Rescale(1 / scale, -offset / scale)
    try:
        own = converted(stated.get("normalisation"), _OwnScale)
        return Rescale(1 / own.scale, -own.offset / own.scale)
    except (ValueError, ZeroDivisionError):
        return Rescale()  # not the JSON of ctgpu, so that there is no telling


@dataclass(frozen=True, slots=True)
class _OwnScale:
    """What the JSON of a sample says that was normalised by its own voxels."""

    scale: float
    offset: float


def _named_labels(sample: TarSample, recipe: Recipe) -> dict[str, float] | None:
    """By the plan's names, the manifest's or CT-RATE's; by numbers where none of them fit."""
    labels = sample.labels()
    if labels is None or not labels.size:
        return None
    claims = Claims.if_readable(sample.tar.parent)
    names = recipe.plan.class_names if recipe.plan else claims.class_names
    if names is None and labels.size == len(built_in().class_names):
        names = built_in().class_names
    if names is None or len(set(names)) != labels.size:
        names = tuple(f"class {number}" for number in range(labels.size))
    return dict(zip(names, map(float, labels), strict=True))


def _facts(
    key: str,
    file: str,
    members: dict[str, int],
    raw: RawVolume,
    spacing_mm: Spacing | None,
    *,
    dtype: str | None = None,
    layout: str = "HWD",
    preprocessed: bool = False,
    labels: dict[str, float] | None = None,
    mask: dict[str, int] | None = None,
    report: str = "",
    source: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
) -> SampleFacts:
    voxels = raw.voxels
    return SampleFacts(
        key,
        file,
        members,
        voxels.shape,
        dtype or voxels.dtype.name,
        layout,
        float(voxels.min()),
        float(voxels.mean(dtype=np.float64)),
        float(voxels.max()),
        preprocessed,
        spacing_mm,
        orientation_of(raw),
        tuple(s for s in (raw.spacing_contradiction, raw.orientation_contradiction) if s),
        labels,
        mask,
        report,
        source or {},
        engine,
    )


def _engine(sample: TarSample) -> dict[str, Any] | None:
    shard = parse_shard_name(sample.tar.name)
    path = sample.tar.with_name(record_name(shard[0])) if shard else None
    if path is None or not path.exists():
        return None
    try:
        engine = ShardRecord.load(path).run.get("engine")
    except StorageError:
        return None
    return engine if isinstance(engine, dict) else None
