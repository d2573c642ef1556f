"""What a sample holds of the memory between two stages, and gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.building.in_flight import DecodedSample, FetchedSample, MadeSample
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.fetched import Fetched
from ctgpu.spec import Spec
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.masks import MaskFormat
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
    MadeSample(NOTHING, [volume], None).release()
    assert (is_lent(volume), is_lent(mask)) == (False, True)
    MadeSample(NOTHING, [volume, mask], None).release()
    assert not is_lent(mask)


SPEC = Spec(shape_hwd=(5, 6, 7))
PLAN = Plan(
    dataset="a",
    split="valid",
    spec=SPEC,
    arithmetic="ctgpu",
    fingerprint=SPEC.fingerprint("ctgpu"),
    source={"kind": "folder", "location": "a", "revision": "1"},
    selection={},
    samples_per_shard=1,
    class_names=(),
    samples=(),
    masks=MaskFormat("uint8", {"lung": 1}),
    compression="rice",
)


@pytest.mark.parametrize("fails", ["", "in the codec", "for want of memory"])
def test_whether_it_is_compressed_or_not_the_buffers_before_are_given_back(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, rooms = BufferPool(), BufferPool()
    volume, mask = pool.acquire(SPEC.size_bytes), pool.acquire(SPEC.size_bytes // 2)
    for buffer in (volume, mask):
        buffer.bytes[:] = 0
    packed = PackedSample(
        *("a", volume.bytes, checksum(volume.bytes.data), b"", b"", b""),
        mask=mask.bytes,
        mask_xxh3_128=checksum(mask.bytes.data),
    )

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    if fails == "in the codec":
        monkeypatch.setattr("ctgpu.building.in_flight.compress_sample", fail)
    elif fails:
        acquire = rooms.acquire
        monkeypatch.setattr(rooms, "acquire", lambda n: acquire(n) if n > 400 else fail())
    made = MadeSample(packed, [volume, mask], "odd")
    if fails:
        with pytest.raises(ZeroDivisionError):
            made.compress(rooms, PLAN)
        assert rooms.lent_bytes == 0
    else:
        small = made.compress(rooms, PLAN)
        assert (small.packed.compressed, small.hu_finding) == (True, "odd")
        assert small.held_bytes == sum(PLAN.payload_limits_bytes)
        assert rooms.lent_bytes > 0
        small.release()
        assert rooms.lent_bytes == 0
    assert pool.lent_bytes == 0
