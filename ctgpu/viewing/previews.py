"""A few samples as pictures, as many of their slices as a page has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.checking.picking import spread
from ctgpu.checking.sheet import View
from ctgpu.errors import CtgpuError, DecodeError
from ctgpu.loading.region import Payload, in_stored_order, read_box, stored_order, to_hwd
from ctgpu.shards.card import Card
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Layout, Spec
from ctgpu.viewing.cuts import MOST_SLICES, Plane, planes_of
from ctgpu.viewing.inventory import HeldShard, Inventory
from ctgpu.viewing.members import Metadata, read_labels, read_metadata, read_report
from ctgpu.volume.stored import numbers_of, numpy_dtype

#: Where a contract clips nothing, what is shown, in HU.
PLAIN_WINDOW = (-1000.0, 1000.0)
#: Fewer slices of a plane than these show no volume: then fewer samples are shown.
LEAST_SLICES = 8
#: Bins of a histogram of HU.
BINS = 64

_MOST_COUNTED = 4_000_000


@dataclass(frozen=True, slots=True)
class Preview:
    """One sample to look at.

    Attributes
    ----------
    key : str
        Its name.
    fault : str
        Why there is nothing to see; empty where there is.
    metadata : Metadata or None
        Its JSON; None where it cannot be read.
    planes : tuple of Plane
        Its slices.
    hu_counts : numpy.ndarray
        int64, shape (BINS,): voxels, padding left out, by HU over :func:`window_of`; what lies
        outside counts in the first and the last.
    labels : dict of str to float, or None
        By name, NaN where not known; None where there are none.
    mask : dict of int to int, or None
        Voxels of each label that its mask has; None where there is no mask.
    report : str
        Its report; empty where it has none.
    """

    key: str
    fault: str = ""
    metadata: Metadata | None = None
    planes: tuple[Plane, ...] = ()
    hu_counts: npt.NDArray[np.int64] | None = None
    labels: Mapping[str, float] | None = None
    mask: Mapping[int, int] | None = None
    report: str = ""

    def thinned(self, most: int) -> Preview:
        """The same with at most so many slices of each plane."""
        return replace(self, planes=tuple(plane.thinned(most) for plane in self.planes))


def window_of(spec: Spec) -> tuple[float, float]:
    """The HU that are shown as black and white."""
    return spec.hu_window or PLAIN_WINDOW


def take_previews(
    inventory: Inventory,
    num_samples: int,
    budget_bytes: int,
    size_of: Callable[[Preview], int],
) -> list[Preview]:
    """Some of the finished samples, evenly spaced, with as many slices as fit.

    Parameters
    ----------
    inventory : Inventory
        What there is.
    num_samples : int
        So many at most; fewer where :data:`LEAST_SLICES` of each plane would not fit.
    budget_bytes : int
        What all of them may take together.
    size_of : callable
        Says what one takes.
    """
    total = len(inventory.entries)
    chosen = spread(total, num_samples)
    made: dict[int, Preview] = {}
    for place in chosen:
        made = {place: preview_of(inventory.card, *inventory.entries[place])}
        if made[place].planes:
            # By the first one that can be shown, how many there is room for.
            room = budget_bytes // max(1, size_of(made[place].thinned(LEAST_SLICES)))
            if room < len(chosen):
                chosen = spread(total, max(1, room))
            break
    taken: list[Preview] = []
    for place in chosen:
        preview = made.pop(place, None) or preview_of(inventory.card, *inventory.entries[place])
        fitted = fit(preview, budget_bytes // (len(chosen) - len(taken)), size_of)
        taken.append(fitted)
        budget_bytes -= size_of(fitted)
    return taken


def fit(preview: Preview, budget_bytes: int, size_of: Callable[[Preview], int]) -> Preview:
    """A preview with the most slices that fit, which may be none."""
    most, too_many = 0, MOST_SLICES + 1
    if size_of(preview) <= budget_bytes:
        return preview
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if size_of(preview.thinned(middle)) <= budget_bytes:
            most = middle
        else:
            too_many = middle
    return preview.thinned(most)


def preview_of(card: Card, shard: HeldShard, entry: SampleEntry) -> Preview:
    """One sample; what is wrong with it is said in it."""
    preview = Preview(entry.key)
    try:
        with ShardReader(shard.path) as reader:
            metadata = read_metadata(reader, entry)
            preview = replace(preview, metadata=metadata)
            values = read_labels(reader, entry, len(card.class_names)).tolist()
            labels = dict(zip(card.class_names, values, strict=True)) or None
            report = "\n".join(metadata.report.values()) or read_report(reader, entry)
            preview = replace(preview, labels=labels, report=report)
            return _with_pictures(preview, card, reader, entry, metadata)
    except CtgpuError as error:
        return replace(preview, fault=str(error))


def _with_pictures(
    preview: Preview, card: Card, reader: ShardReader, entry: SampleEntry, metadata: Metadata
) -> Preview:
    spec = card.spec
    scale, offset = metadata.scale_offset(spec)
    volume = _read(reader, entry, entry.volume_extension, spec, spec.dtype, numpy_dtype(spec.dtype))
    mask = None
    masks, extension = card.masks, entry.mask_extension
    if masks is not None and extension is not None:
        mask = _read(reader, entry, extension, spec, masks.dtype, masks.numpy_dtype)
    black, white = (hu * scale + offset for hu in window_of(spec))
    affine = metadata.known_affine
    view = View(entry.key, volume, metadata.spacing_mm, affine, None, mask)
    return replace(
        preview,
        planes=planes_of(view, spec.dtype, black, white),
        hu_counts=_count(volume, spec, metadata, black, white),
        mask=None if mask is None else _count_labels(mask),
    )


def _read(
    reader: ShardReader,
    entry: SampleEntry,
    extension: str,
    spec: Spec,
    dtype: str,
    kind: np.dtype[Any],
) -> npt.NDArray[Any]:
    """A volume or a mask of a sample, shape (H, W, D), as it is stored."""
    memory: Layout = "DHW" if entry.is_compressed else spec.layout
    voxels = np.empty(stored_order(spec.shape_hwd, memory), kind)
    found_bytes = entry.members[extension].size_bytes
    if not entry.is_compressed and found_bytes != voxels.nbytes:
        raise DecodeError(
            f"{reader.path}: {entry.key}.{extension} has {found_bytes:,} bytes, and its data set's "
            f"spec asks for {voxels.nbytes:,}; remove the shard's record and build it again"
        )
    payload = Payload(extension, dtype, in_stored_order(voxels, memory, spec.layout))
    read_box(reader, entry, payload, spec, (0, 0, 0), scratch=BufferPool(), verify=True)
    return to_hwd(voxels, memory)


def _count(
    volume: npt.NDArray[Any], spec: Spec, metadata: Metadata, black: float, white: float
) -> npt.NDArray[np.int64]:
    """Voxels, or evenly spaced planes of them where they are many, by their HU."""
    inner = volume[tuple(_unpadded(spec, metadata))]
    step = max(1, -(-inner.size // _MOST_COUNTED))
    counts = np.zeros(BINS, np.int64)
    for plane in inner[::step]:
        places = (numbers_of(plane, spec.dtype) - black) * (BINS / (white - black))
        counts += np.bincount(np.clip(places, 0, BINS - 1).astype(np.intp).ravel(), minlength=BINS)
    return counts


def _unpadded(spec: Spec, metadata: Metadata) -> Iterator[slice]:
    for size, resized, start, before in zip(
        spec.shape_hwd,
        metadata.resized_shape,
        metadata.crop_start,
        metadata.pad_before,
        strict=True,
    ):
        yield slice(before, min(size, before + max(0, resized - start)))


def _count_labels(mask: npt.NDArray[Any]) -> dict[int, int]:
    counts = np.zeros(int(np.iinfo(mask.dtype).max) + 1, np.int64)
    for plane in mask:  # a whole mask as the integers that are counted is eight times as large
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {number: int(counts[number]) for number in np.flatnonzero(counts).tolist() if number}
