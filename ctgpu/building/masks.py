"""The mask of one sample, made of the files that its source has for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctgpu.buffers import BufferPool
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.errors import DecodeError
from ctgpu.sources.base import Source
from ctgpu.sources.fetched import Fetched
from ctgpu.volume.label_volume import LabelVolume, require_same_place
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.raw import RawVolume
from ctgpu.volume.ref import SampleRef

#: The number of the label that a file is of, None where it holds numbers; and the file.
MaskFiles = Sequence[tuple[int | None, Fetched]]


def read_mask(
    source: Source, ref: SampleRef, raw: RawVolume, masks: MaskFormat, pool: BufferPool
) -> LabelVolume:
    """Fetch the mask of a volume, and merge it; as :func:`merge_mask`.

    Raises
    ------
    FetchError, DecodeError, GeometryError
    """
    return merge_mask(source.fetch_mask(ref, pool.acquire), raw, masks, pool)


def merge_mask(
    files: MaskFiles,
    raw: RawVolume,
    masks: MaskFormat,
    pool: BufferPool,
    *,
    limit_bytes: int = MAX_VOLUME_BYTES,
) -> LabelVolume:
    """The mask of a volume; only one of its files is inflated at a time.

    Parameters
    ----------
    files : sequence of (int or None, Fetched)
        As :meth:`Source.fetch_mask` gives them; taken over.
    raw : RawVolume
        The volume, which stays the caller's.
    masks : MaskFormat
        What the numbers may be, and their type.
    pool : BufferPool
        Lends the memory.
    limit_bytes : int
        Largest file that is inflated.

    Raises
    ------
    DecodeError
        If a file is no volume, or holds a number that is no label.
    GeometryError
        If one does not lie as the volume does.
    """
    waiting = list(files)
    try:
        labels = LabelVolume.empty(raw.voxels, masks.numpy_dtype, pool)
        with labels.released_on_error():
            while waiting:
                number, fetched = waiting.pop(0)
                _merge(labels, number, fetched, raw, masks, pool, limit_bytes)
            return labels
    finally:
        for _, fetched in waiting:
            fetched.release()


def _merge(
    labels: LabelVolume,
    number: int | None,
    fetched: Fetched,
    raw: RawVolume,
    masks: MaskFormat,
    pool: BufferPool,
    limit_bytes: int,
) -> None:
    name = fetched.path
    mask = fetched.decode(pool, limit_bytes=limit_bytes)
    try:
        require_same_place(name, mask, raw)
        if number is not None:
            labels.add(mask.voxels, number)
        elif (found := labels.take(mask.voxels, _known(masks))) is not None:
            largest = np.iinfo(masks.numpy_dtype).max
            wanted = (
                f"0 and the numbers of its labels, {_few(sorted(masks.labels.values()))}"
                if masks.labels
                else f"whole numbers from 0 to {largest}, as masks.dtype says"
            )
            raise DecodeError(
                f"{name} has a voxel of {found:g}; wanted {wanted}: correct the mask, or the "
                "description"
            )
    finally:
        mask.release()


def _known(masks: MaskFormat) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Above 0 at each number that a voxel may have."""
    if not masks.labels:
        return np.ones(int(np.iinfo(masks.numpy_dtype).max) + 1, np.uint8)
    known = np.zeros(max(masks.labels.values()) + 1, np.uint8)
    known[[0, *masks.labels.values()]] = 1
    return known


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown if len(numbers) <= 6 else f"{shown}, … {numbers[-1]}"
