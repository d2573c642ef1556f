"""The CUDA decoder of `.ctz`, compiled for the host: kinds, codings, boxes, and damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from ctz_cases import (
    ALL_KERNELS,
    SHAPES,
    Batch,
    batch_of,
    beyond_floats,
    bits,
    decode_on_host,
    head_of,
    member_of,
    volume,
    whole,
)

from ctgpu import _native
from ctgpu.codec import CtzError, compress, compressed_limit_bytes, decompress
from ctgpu.codec.ctz import SLACK_BYTES, Kind, Shape, head_bytes
from ctgpu.codec.decompress import check_tiles
from ctgpu.engines.ctz_on_device import Compressed, CtzKernel

# The kernel is compiled for the host first.
pytestmark = pytest.mark.slow

SHAPE = SHAPES[0]


def check(batch: Batch) -> None:
    faults = decode_on_host(batch.samples, batch.data, batch.out)
    assert not faults.any()
    batch.check()


@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
def test_volumes_of_every_shape_are_what_the_page_says(key: CtzKernel) -> None:
    for shape in SHAPES:
        tiles = -(-shape[0] // 8) * -(-shape[2] // 32)
        seeds = (0, 1) if tiles > 1 else (0,)  # the second has a raw tile
        check(batch_of([whole(key.kind, key.coding, shape, n) for n in seeds], shape))


@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
def test_boxes_of_one_voxel_and_more(key: CtzKernel) -> None:
    members = [whole(key.kind, key.coding), whole(key.kind, key.coding, seed=1)]
    boxes: list[tuple[list[Shape], Shape]] = [
        ([(0, 0, 0), (10, 12, 36)], (1, 1, 1)),
        ([(3, 2, 20), (1, 5, 25)], (7, 8, 12)),
        ([(7, 0, 31), (7, 4, 32)], (2, 9, 5)),
    ]
    for starts, box in boxes:
        check(batch_of(members, SHAPE, starts, box))


def test_numbers_that_wrap_around_and_the_widest_groups() -> None:
    rng = np.random.default_rng(3)
    voxels = volume("int16", SHAPE).copy()
    voxels[::3, ::4] = rng.integers(0, 1 << 16, voxels[::3, ::4].shape, dtype=np.uint16)
    voxels[1, 5] = rng.choice(np.array([0, 0x7FFF, 0x8000, 0xFFFF], np.uint16), 37)
    for coding in ("pack", "rice"):
        member = member_of(voxels, "int16", coding)
        assert not head_of(member, SHAPE).table["raw"].all()
        check(batch_of([member], SHAPE))


def test_the_largest_and_the_least_floats() -> None:
    voxels = volume("float16", SHAPE).copy()
    voxels[0, :4, :8] = np.array([31.98, -31.98, 6e-8, -6e-8, 2**-9, 2**-10, 16, 0], np.float16)
    check(batch_of([member_of(voxels, "float16", "rice")], SHAPE))


def test_rows_that_are_more_than_their_ones_in_memory() -> None:
    """As many as the ring of places holds several times."""
    shape = (8, 97, 32)
    check(batch_of([whole("int16", "rice", shape), whole("float16", "rice", shape, 2)], shape))


# ---- Damage -------------------------------------------------------------------------------------


def verdicts(batch: Batch) -> dict[int, str]:
    """Which tiles the CPU finds damaged; of sound ones it writes the voxels to `batch.wanted`."""
    (sample,) = batch.samples
    found, begin = {}, sample.begin
    for number in sample.numbers().tolist():
        end = begin + int(sample.head.table["size"][number])
        data = np.concatenate([batch.data[begin:end], np.zeros(SLACK_BYTES, np.uint8)])
        try:
            runs = [range(number, number + 1)]
            decompress(sample.head, runs, data, batch.wanted[0], sample.start_dhw, verify=False)
        except CtzError as error:
            found[number] = str(error)
        begin = end
    return found


@pytest.mark.skipif(not hasattr(_native, "ctz_decode"), reason="needs the CPU's decoder")
@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
def test_damage_is_what_the_cpu_takes_for_damage(key: CtzKernel) -> None:
    """And what damage there is in voxels is the same, where tiles do not contradict themselves."""
    rng = np.random.default_rng(ALL_KERNELS.index(key))
    damaged = 0
    for n in range(60):
        shape = SHAPES[n % 2]
        batch = batch_of([whole(key.kind, key.coding, shape)], shape)
        data, (sample,) = batch.data, batch.samples
        if n % 3 == 0:  # one bit
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif n % 3 == 1:  # a run of bytes
            begin = rng.integers(len(data))
            data[begin : begin + rng.integers(1, 60)] = rng.integers(256)
        else:  # a part that is longer or shorter than it says
            table = sample.head.table.copy()
            field = ("packed", "quotients")[n % 2]
            moved = table[field].astype(int) + rng.integers(-2, 3, len(table))
            table[field] = np.where(table["raw"] == 1, 0, np.maximum(moved, 0))
            batch.samples[0] = replace(sample, head=replace(sample.head, table=table))
        faults = decode_on_host(batch.samples, data, batch.out)
        wanted = verdicts(batch)
        assert {*np.flatnonzero(faults).tolist()} == {*wanted}
        if not wanted:
            batch.check()
        damaged += bool(wanted)
    assert damaged > 5


def test_a_raw_tile_of_another_size_is_not_copied() -> None:
    last = member_of(volume("int16", SHAPE), "int16", "rice", frozenset({3}))
    batch = batch_of([last], SHAPE)
    (sample,) = batch.samples
    table = sample.head.table.copy()
    table["size"][3] -= 1
    batch.samples[0] = replace(sample, head=replace(sample.head, table=table))
    faults = decode_on_host(batch.samples, batch.data, batch.out)
    assert faults.tolist() == [0, 0, 0, 1]
    assert (batch.out[0, 8:, :, 32:] == 0xA5).all()
    assert {*verdicts(batch)} == {3}


@pytest.mark.skipif(not hasattr(_native, "ctz_decode"), reason="needs the CPU's decoder")
@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
def test_no_flipped_bit_passes(key: CtzKernel) -> None:
    """Its tile's checksum tells; and where nobody looks at that, both decoders make the same."""
    shape: Shape = (2, 2, 5)
    batch = batch_of([whole(key.kind, key.coding, shape)], shape)
    data, (sample,) = batch.data, batch.samples
    assert not sample.head.table["raw"].any()
    check_tiles(sample.head, sample.runs, data[sample.begin :])
    decoded = 0
    for bit in range(8 * sample.begin, 8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(CtzError, match="its tile 0 does not have its checksum"):
            check_tiles(sample.head, sample.runs, data[sample.begin :])
        faults = decode_on_host(batch.samples, data, batch.out)
        assert {*np.flatnonzero(faults).tolist()} == {*verdicts(batch)}
        if not faults.any():
            batch.check()
            decoded += 1
        data[bit >> 3] ^= 1 << (bit & 7)
    assert decoded or key == CtzKernel("uint8", "rice")  # whose residuals are quotients alone


def test_nothing_outside_the_box_is_written_whatever_the_bytes() -> None:
    rng = np.random.default_rng(0)
    for key in ALL_KERNELS:
        batch = batch_of([whole(key.kind, key.coding)], SHAPE, [(2, 3, 4)], (8, 9, 30))
        batch.data[:] = rng.integers(0, 256, batch.data.shape)
        room = np.full((1, 10, 11, 34), 0xA5, batch.out.dtype)
        decode_on_host(batch.samples, batch.data, room[:, 1:-1, 1:-1, 2:-2])
        room[:, 1:-1, 1:-1, 2:-2] = 0xA5
        assert (room == 0xA5).all()


@pytest.mark.parametrize(
    ("kind", "grid"),
    [("grid", -1), ("grid", 14), ("float16", -1), ("float16", 14), ("bfloat16", -7)],
)
def test_numbers_that_no_float_stands_for_are_what_the_page_says(kind: Kind, grid: int) -> None:
    """Whoever damages a volume can mend its checksums: every decoder then makes the same of it."""
    with np.errstate(over="ignore"):  # some become infinite
        batch = batch_of([beyond_floats(kind, grid, SHAPE)], SHAPE)
    check(batch)
    batch.wanted[:] = 0xA5
    assert verdicts(batch) == {}
    batch.check()


@pytest.mark.skipif(not hasattr(_native, "ctz_encode"), reason="needs the CPU's encoder")
def test_a_real_chest(real_ct: Path) -> None:
    """Whole tiles of 512 rows, as the CPU encodes them."""
    image: Any = nibabel.load(min(real_ct.glob("*.nii*")))
    hu = np.asarray(image.dataobj)[:, :100, :16].transpose(2, 0, 1)
    voxels = bits(np.ascontiguousarray(np.clip(hu / 1000.0, -1, 1).astype(np.float16)))
    shape: Shape = voxels.shape  # type: ignore[assignment]
    out = np.empty(compressed_limit_bytes(shape, 2), np.uint8)
    coded: Any = {"kind": "float16", "grid": None, "layout": "DHW", "coding": "rice"}
    size = compress(voxels, **coded, xxh3_128="0" * 32, out=out)
    head = head_of(out[:size].tobytes(), shape)
    sample = Compressed("chest", head, [range(len(head.table))], head_bytes(shape))
    made = np.zeros((1, *shape), np.uint16)
    assert not decode_on_host([sample], out[:size], made).any()
    np.testing.assert_array_equal(made[0], voxels)
