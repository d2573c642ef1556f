"""What a sample holds of the memory between two stages, and gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.building.in_flight import DecodedSample, FetchedSample, MadeSample
from ctgpu.sources.fetched import Fetched
from ctgpu.spec import Spec
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import RawVolume

NOTHING: Any = None


def is_lent(buffer: Buffer) -> bool:
    try:
        return buffer.bytes.size >= 0
    except ValueError:
        return False


def buffers(count: int) -> list[Buffer]:
    pool = BufferPool()
    return [pool.acquire(1000 * (k + 1)) for k in range(count)]


def test_of_a_fetched_sample_every_file_counts() -> None:
    volume, one, other = buffers(3)
    mask = [(1, Fetched("a.nii", one)), (2, Fetched("b.nii", other))]
    sample = FetchedSample(Fetched("v.nii", volume), NOTHING, mask)
    assert sample.size_bytes == 6000
    sample.release()
    assert not any(map(is_lent, (volume, one, other)))


@pytest.mark.parametrize("has_mask", [True, False])
def test_of_a_decoded_one_voxels_labels_and_stored_mask(has_mask: bool) -> None:
    raw_buffer, stored = buffers(2)
    raw = RawVolume(raw_buffer.array((5, 6, 7), np.int16), (1, 1, 1), buffer=raw_buffer)
    raw.voxels[...] = 0
    labels = LabelVolume.empty(raw.voxels, np.uint8, BufferPool()) if has_mask else None
    prepared = prepare_volume(
        raw,
        spec=Spec(),
        spacing_mm=(1, 1, 1),
        spacing_source="header",
        intensity="hu",
        hu_guard=None,
        mask=labels,
    )
    DecodedSample(prepared, NOTHING, stored if has_mask else None).release()
    assert not is_lent(raw_buffer)
    assert raw.buffer is None
    assert is_lent(stored) is not has_mask
    assert labels is None or labels.buffer is None


def test_of_a_made_one_both_buffers() -> None:
    volume, mask = buffers(2)
    MadeSample(NOTHING, volume, None, None).release()
    assert (is_lent(volume), is_lent(mask)) == (False, True)
    MadeSample(NOTHING, volume, mask, None).release()
    assert not is_lent(mask)
