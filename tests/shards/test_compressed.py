"""Compressed members of a shard: boxes of them, what is read for these, and what damage says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import MASKS, make_plan, pack

from ctgpu.buffers import BufferPool, allocate_pages
from ctgpu.codec.ctz import Coding, Head, head_bytes
from ctgpu.codec.decompress import tiles_of
from ctgpu.errors import FetchError
from ctgpu.shards.compressed import CompressedMember, compressed_fault
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.record import SampleEntry, ShardRecord, checksum
from ctgpu.shards.writer import PackedSample, ShardWriter
from ctgpu.spec import Layout, Spec

#: Rests along D and W; 3 x 2 tiles.
SHAPE_DHW = (19, 13, 37)
TABLE = head_bytes(SHAPE_DHW)


def plan_of(layout: Layout = "HWD", coding: Coding = "rice", **fields: Any) -> Plan:
    spec = Spec(shape_hwd=(13, 37, 19), layout=layout, **fields)
    return replace(make_plan(2, spec=spec, masks=MASKS), compression=coding)


def smooth(plan: Plan, number: int) -> PackedSample:
    """A sample whose volume is a ramp with noise on it."""
    sample = pack(replace(plan, compression=None), plan.samples[number])
    noise = np.random.default_rng(number).integers(0, 30, plan.spec.stored_shape)
    ramp = np.arange(noise.size).reshape(noise.shape) // 7 + noise
    dtype = {"float16": "<f2", "int16": "<i2", "uint8": "u1"}[plan.spec.dtype]
    volume = allocate_pages(plan.spec.size_bytes)[: plan.spec.size_bytes]
    volume.view(dtype).reshape(noise.shape)[...] = ramp % 251 if dtype == "u1" else ramp / 512
    return replace(sample, volume=volume, volume_xxh3_128=checksum(volume))


def written(
    folder: Path, plan: Plan, change: Callable[[PackedSample], PackedSample] = lambda sample: sample
) -> ShardRecord:
    """Two samples, compressed, and then changed before their record is made."""
    writer = ShardWriter(folder, plan, 0)
    for number in range(2):
        rooms = [allocate_pages(size)[:size] for size in plan.payload_limits_bytes]
        writer.append(change(compress_sample(smooth(plan, number), plan, *rooms)))
    return writer.commit({})


def changed(member: bytearray, at: int) -> bytearray:
    member[at] ^= 0x10
    return member


def damage(folder: Path, entry: SampleEntry, extension: str, at: int) -> None:
    tar = folder / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    tar.write_bytes(changed(content, entry.members[extension].offset + at))


def volume_dhw(plan: Plan, number: int) -> np.ndarray[Any, Any]:
    voxels = smooth(plan, number).volume.view("u1" if plan.spec.dtype == "uint8" else "u2")
    stored = voxels.reshape(plan.spec.stored_shape)
    return stored if plan.spec.layout == "DHW" else stored.transpose(2, 0, 1)


class Opened:
    """The first shard of a folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.reader = ShardReader(folder / "shard-000000.tar")
        self.plan, self.entries = plan, self.reader.record.samples

    def member(self, number: int = 0, extension: str = "ctz", **other: Any) -> CompressedMember:
        dtype = self.plan.spec.dtype if extension == "ctz" else "uint16"
        shape, dtype = other.get("shape_dhw", SHAPE_DHW), other.get("dtype", dtype)
        return CompressedMember(self.reader, self.entries[number], extension, shape, dtype)

    def fault(self, number: int = 0, extension: str = "ctz", **other: Any) -> str | None:
        masks, spec = self.plan.masks, self.plan.spec
        assert masks is not None
        return compressed_fault(
            self.reader,
            self.entries[number],
            extension,
            SHAPE_DHW,
            spec.dtype if extension == "ctz" else masks.dtype,
            other.get("layout", spec.layout),
            other.get("stated"),
            BufferPool(),
        )


@pytest.mark.parametrize("coding", ["pack", "rice"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"layout": "DHW", "dtype": "int16", "hu_window": None}, {"dtype": "uint8"}],
    ids=["float16", "int16", "uint8"],
)
def test_boxes_of_volume_and_mask_are_what_was_stored(
    tmp_path: Path, coding: Any, fields: dict[str, Any]
) -> None:
    plan = plan_of(coding=coding, **fields)
    written(tmp_path, plan)
    shard, pool = Opened(tmp_path, plan), BufferPool()
    for number in range(2):
        wanted = volume_dhw(plan, number)
        mask = smooth(plan, number).mask
        assert mask is not None
        stored = mask.view("<u2").reshape(plan.spec.stored_shape)
        masks = stored if plan.spec.layout == "DHW" else stored.transpose(2, 0, 1)
        for verify in (True, False):
            for start, box in [
                ((0, 0, 0), SHAPE_DHW),
                ((7, 5, 31), (2, 3, 2)),
                ((18, 12, 36), (1, 1, 1)),
                ((0, 0, 32), (19, 13, 5)),
            ]:
                within = tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))
                for extension, whole in (("ctz", wanted), ("segz", masks)):
                    out = np.full(box, 77, whole.dtype)
                    turned = np.full(box[::-1], 77, whole.dtype).transpose(2, 1, 0)
                    member = shard.member(number, extension)
                    member.read_box(start, out, pool, verify=verify)
                    shard.member(number, extension).read_box(start, turned, pool, verify=verify)
                    assert np.array_equal(out, whole[within])
                    assert np.array_equal(turned, whole[within])
    assert pool.lent_bytes == 0


def test_tiles_come_as_they_are_stored(tmp_path: Path) -> None:
    plan = plan_of()
    written(tmp_path, plan)
    shard = Opened(tmp_path, plan)
    content = shard.reader.read(shard.entries[1], "ctz")
    member = shard.member(1)
    sizes = member.head.table["size"].tolist()
    out = np.full(len(content), 77, np.uint8)
    member.read_tiles(tiles_of(member.head, (8, 0, 0), (11, 13, 32)), out, verify=True)
    starts = np.cumsum([TABLE, *sizes])
    wanted = b"".join(content[starts[n] : starts[n + 1]] for n in (2, 4))
    assert out[: len(wanted)].tobytes() == wanted
    assert (out[len(wanted) :] == 77).all()


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        (0, "it does not begin as a .ctz"),
        (3, r"it is a .ctz of version 17, and 1 is known"),
        (40, "its header or table does not have its checksum"),
        (70, "its header or table does not have its checksum"),
        (TABLE, "its tile 0 does not have its checksum"),
        (-1, "its tile 5 does not have its checksum"),
    ],
)
@pytest.mark.parametrize("extension", ["ctz", "segz"])
def test_damage_is_one_sentence(tmp_path: Path, extension: str, at: int, sentence: str) -> None:
    plan = plan_of("DHW")
    record = written(tmp_path, plan)
    size_bytes = record.samples[0].members[extension].size_bytes
    damage(tmp_path, record.samples[0], extension, at % size_bytes)
    shard, pool = Opened(tmp_path, plan), BufferPool()
    out = np.empty(SHAPE_DHW, np.uint16)
    match = rf"shard-000000\.tar: scan_0\.{extension} cannot be decoded: {sentence}; the tar has"
    with pytest.raises(FetchError, match=match):
        shard.member(0, extension).read_box((0, 0, 0), out, pool, verify=True)
    shard.member(1, extension).read_box((0, 0, 0), out, pool, verify=True)
    if at >= TABLE:  # a box beside the damage does not meet it
        beside = np.empty((3, 13, 3), np.uint16)
        shard.member(0, extension).read_box((9, 0, 33), beside, pool, verify=True)
    assert pool.lent_bytes == 0


def test_what_is_another_volume_or_ends_too_early_is_refused(tmp_path: Path) -> None:
    plan = plan_of()
    record = written(tmp_path, plan)
    shard = Opened(tmp_path, plan)
    for other, sentence in (
        ({"shape_dhw": (19, 37, 13)}, "its header or table does not have|its head has"),
        ({"shape_dhw": (19, 12, 37)}, r"its shape \(D, H, W\) is \(19, 13, 37\), and \(19, 12, 37"),
        ({"dtype": "int16"}, "it holds float16, and int16 was wanted"),
        ({"dtype": "bfloat16"}, "it holds float16, and bfloat16 was wanted"),
        ({"shape_dhw": (60000, 13, 37)}, r"it has \d+ bytes, and its head takes 360064"),
    ):
        with pytest.raises(FetchError, match=sentence):
            shard.member(**other)
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[: record.samples[1].members["ctz"].offset + TABLE + 9])
    member = Opened(tmp_path, plan).member(1)
    out = np.empty(SHAPE_DHW, np.uint16)
    with pytest.raises(FetchError, match=r"shard-000000\.tar ends within scan_1\.ctz"):
        member.read_box((0, 0, 0), out, BufferPool(), verify=False)


def restated(sample: PackedSample, **fields: Any) -> PackedSample:
    """The sample whose volume has another head, as sound as its own."""
    data = sample.volume.tobytes()
    head = Head.parse(data[:TABLE], shape_dhw=SHAPE_DHW, member_bytes=len(data))
    for name, value in fields.items():
        head = replace(head, **{name: value})
    volume = sample.volume.copy()
    volume[:TABLE] = np.frombuffer(head.to_bytes(), np.uint8)
    return replace(sample, volume=volume, volume_xxh3_128=checksum(volume))


def test_sound_tiles_of_another_build_are_not_those_of_the_record(tmp_path: Path) -> None:
    """A shard that was rebuilt since its record was read: every tile has its checksum."""
    plan = plan_of()
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    entry = written(old, plan).samples[0]
    written(new, plan, lambda sample: restated(sample, xxh3_128="0" * 32))
    out, pool = np.empty(SHAPE_DHW, np.uint16), BufferPool()
    reader = ShardReader(new / "shard-000000.tar")
    member = CompressedMember(reader, entry, "ctz", SHAPE_DHW, "float16")
    wanted = entry.members["ctz"].xxh3_128
    with pytest.raises(FetchError, match=f"scan_0.ctz cannot .* it does not have its .* {wanted}"):
        member.read_box((0, 0, 0), out, pool, verify=True)
    member = CompressedMember(reader, entry, "ctz", SHAPE_DHW, "float16")
    member.read_box((0, 0, 0), out, pool, verify=False)
    # Also where the bytes go to a GPU.
    member = CompressedMember(reader, entry, "ctz", SHAPE_DHW, "float16")
    room = np.empty(entry.members["ctz"].size_bytes, np.uint8)
    with pytest.raises(FetchError, match="it does not have its checksum"):
        member.read_tiles(tiles_of(member.head, (0, 0, 0), SHAPE_DHW), room, verify=True)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_what_was_stored_has_no_fault(tmp_path: Path, layout: Layout) -> None:
    plan = plan_of(layout)
    written(tmp_path, plan)
    shard = Opened(tmp_path, plan)
    for number in range(2):
        sample = smooth(plan, number)
        digests = {"ctz": sample.volume_xxh3_128, "segz": sample.mask_xxh3_128}
        for extension, stated in digests.items():
            assert shard.fault(number, extension, stated=stated) is None
            assert shard.fault(number, extension, stated=None) is None
    other = "0" * 32
    assert shard.fault(1, stated=other) == (
        f"scan_1.ctz holds what has the checksum {digests['ctz']}, and scan_1.json says {other}"
    )


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_a_fault_says_which_voxels_are_damaged(tmp_path: Path, layout: Layout) -> None:
    plan = plan_of(layout)
    record = written(tmp_path, plan)
    first = record.samples[0]
    size_bytes = first.members["ctz"].size_bytes
    damage(tmp_path, first, "ctz", size_bytes - 1)
    assert Opened(tmp_path, plan).fault() == (
        "scan_0.ctz is damaged: tile 5 (planes 16 to 18 of D, columns 32 to 36 of W) does not have "
        "its checksum"
    )
    damage(tmp_path, first, "ctz", TABLE)
    assert Opened(tmp_path, plan).fault() == (
        "scan_0.ctz is damaged: tile 0 (planes 0 to 7 of D, columns 0 to 31 of W) does not have "
        "its checksum, nor have 1 more of 6 tiles"
    )
    damage(tmp_path, record.samples[1], "segz", 50)
    shard = Opened(tmp_path, plan)
    assert shard.fault(1, "segz") == (
        "scan_1.segz cannot be decoded: its header or table does not have its checksum"
    )
    assert (shard.fault(1, "ctz"), shard.fault(0, "segz")) == (None, None)
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[: first.members["ctz"].offset + TABLE])
    with pytest.raises(FetchError, match=r"ends within scan_0\.ctz"):
        Opened(tmp_path, plan).fault()


def test_faults_of_a_writer_are_found_though_every_checksum_of_bytes_is_right(
    tmp_path: Path,
) -> None:
    plan = plan_of("DHW")
    true = smooth(plan, 0).volume_xxh3_128

    def sentence(**fields: Any) -> str:
        (folder := tmp_path / str(len([*tmp_path.iterdir()]))).mkdir()
        written(folder, plan, lambda sample: restated(sample, **fields))
        return str(Opened(folder, plan).fault(stated=true))

    assert sentence(xxh3_128="0" * 32) == (
        f"scan_0.ctz decodes to what has the checksum {true}; its head says {'0' * 32}"
    )
    assert "scan_0.ctz cannot be decoded: its tile 0" in sentence(weights=(0, 0, 0))
    assert sentence(layout="HWD") == (
        "scan_0.ctz is of a volume in the order HWD, and DHW was wanted"
    )
    assert "scan_0.ctz cannot be decoded: its tile 0" in sentence(coding="pack")
