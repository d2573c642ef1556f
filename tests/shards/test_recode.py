"""Samples compressed, and as they were: nothing but their payloads is another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shard_samples import MASKS, make_plan, pack

from ctgpu.buffers import Bytes, allocate_pages
from ctgpu.codec import Coding
from ctgpu.codec.ctz import SLACK_BYTES, CtzError
from ctgpu.codec.whole import head_of
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample, restore_sample
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat

#: No axis is a multiple of a tile's.
SHAPE = (6, 37, 9)


def plan_of(compression: Coding | None = None, *, masks: Any = None, **spec: Any) -> Plan:
    plan = make_plan(spec=Spec(shape_hwd=SHAPE, **spec), masks=masks)
    return replace(plan, compression=compression)


def smooth(sample: PackedSample, plan: Plan) -> PackedSample:
    """With a volume that can be compressed, on the grid of a precision if it has one."""
    h, w, d = np.ogrid[tuple(map(slice, plan.spec.stored_shape))]
    numbers = np.round((np.sin(h / 5) + np.cos(w / 9 + d / 7)) * 512)
    if plan.spec.dtype == "uint8":
        numbers = np.round(numbers / 10) + 110
    elif plan.spec.dtype != "int16":
        numbers /= 1024
    if plan.spec.dtype == "bfloat16":
        sample.volume.view(np.uint16)[:] = numbers.astype(np.float32).view(np.uint32).ravel() >> 16
    else:
        sample.volume.view(plan.spec.dtype)[:] = numbers.astype(plan.spec.dtype).ravel()
    return replace(sample, volume_xxh3_128=checksum(sample.volume.data))


def rooms_of(plan: Plan, spare_bytes: int = 0) -> list[Bytes]:
    return [allocate_pages(n + spare_bytes)[: n + spare_bytes] for n in plan.payload_limits_bytes]


def members_of(sample: PackedSample) -> list[Bytes]:
    """Its payloads, each with slack behind it."""
    payloads = [sample.volume, *([] if sample.mask is None else [sample.mask])]
    slack = np.full(SLACK_BYTES, 255, np.uint8)
    return [np.concatenate([payload, slack]) for payload in payloads]


@pytest.mark.parametrize("coding", ["pack", "rice"])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"layout": "HWD"}, "float16"),
        ({"layout": "DHW", "precision": "2^-10"}, "grid"),
        ({"layout": "HWD", "dtype": "int16"}, "int16"),
        ({"layout": "DHW", "dtype": "uint8"}, "uint8"),
        ({"layout": "HWD", "dtype": "bfloat16"}, "bfloat16"),
        ({"layout": "DHW", "masks": MASKS}, "float16"),
        ({"layout": "HWD", "masks": MaskFormat("uint8", {"lung": 1})}, "float16"),
    ],
)
def test_what_is_restored_is_what_was_compressed(
    options: dict[str, Any], kind: str, coding: Coding
) -> None:
    raw, plan = plan_of(**options), plan_of(coding, **options)
    sample = smooth(pack(raw, raw.samples[0]), raw)
    small = compress_sample(sample, plan, *rooms_of(plan))
    head = head_of(small.volume)
    assert (head.kind, head.coding, head.layout) == (kind, coding, plan.spec.layout)
    # The head names the volume as the JSON does, the record the member.
    assert head.xxh3_128 == sample.volume_xxh3_128
    assert small.volume_xxh3_128 == checksum(small.volume.data)
    assert len(small.volume) < len(sample.volume)
    wanted = ["ctz", *(["segz"] if "masks" in options else []), "cls", "txt", "json"]
    assert list(small.members()) == wanted == list(plan.extensions)
    same = {"compressed": False, "volume": sample.volume, "mask": sample.mask}
    digests = {n: getattr(sample, n) for n in ("volume_xxh3_128", "mask_xxh3_128")}
    assert replace(small, **same, **digests) == sample

    again = restore_sample(small, raw, members_of(small), *rooms_of(raw))
    assert np.array_equal(again.volume, sample.volume)
    assert (again.mask is None) == (sample.mask is None)
    if again.mask is not None:
        assert np.array_equal(again.mask, sample.mask)
        assert small.mask is not None
        assert head_of(small.mask).kind == ("int16" if options["masks"] is MASKS else "uint8")
    assert replace(again, volume=sample.volume, mask=sample.mask) == sample


def test_what_cannot_be_compressed_fits_the_room_that_the_plan_says() -> None:
    plan = plan_of("rice", masks=MASKS)
    noise = pack(plan_of(masks=MASKS), plan.samples[1])
    small = compress_sample(noise, plan, *rooms_of(plan))
    assert len(small.volume) == plan.payload_limits_bytes[0]
    assert small.mask is not None
    assert len(small.mask) < plan.payload_limits_bytes[1]


def test_a_file_that_holds_the_volume_holds_the_compressed_one_no_more(tmp_path: Any) -> None:
    plan = plan_of("pack")
    sample = replace(pack(plan_of(), plan.samples[0]), volume_file=tmp_path / "a.sample")
    assert compress_sample(sample, plan, *rooms_of(plan)).volume_file is None


def test_a_plan_without_compression_compresses_nothing() -> None:
    plan = plan_of()
    with pytest.raises(ValueError, match="the plan compresses nothing"):
        compress_sample(pack(plan, plan.samples[0]), plan, *rooms_of(plan))


def test_of_a_plan_with_masks_a_sample_without_one_is_refused() -> None:
    plan = plan_of("pack", masks=MASKS)
    with pytest.raises(ValueError, match="zip"):
        compress_sample(pack(plan_of(), plan.samples[0]), plan, *rooms_of(plan))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"dtype": "int16"}, "it holds float16, and int16 was wanted"),
        ({"precision": "2^-10"}, "it holds float16, and grid was wanted"),
        ({"dtype": "uint8"}, "its voxels have 2 bytes, in the order HWD; wanted 1, and HWD"),
        ({"layout": "DHW"}, "in the order HWD; wanted 2, and DHW"),
    ],
)
def test_a_volume_of_another_contract_is_refused(other: dict[str, Any], said: str) -> None:
    plan = plan_of("pack")
    small = compress_sample(pack(plan_of(), plan.samples[0]), plan, *rooms_of(plan))
    wanted = plan_of(**other)
    with pytest.raises(CtzError, match=said):
        restore_sample(small, wanted, members_of(small), *rooms_of(wanted))


@pytest.mark.parametrize("which", [0, 1], ids=["volume", "mask"])
def test_a_damaged_payload_is_found(which: int) -> None:
    plan = plan_of("rice", masks=MASKS)
    small = compress_sample(pack(plan_of(masks=MASKS), plan.samples[0]), plan, *rooms_of(plan))
    members = members_of(small)
    members[which][-SLACK_BYTES - 1] ^= 1
    with pytest.raises(CtzError, match="its tile 3 does not have its checksum"):
        restore_sample(small, plan, members, *rooms_of(plan_of(masks=MASKS)))
