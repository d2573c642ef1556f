"""Small plans and samples for the tests of the format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ctgpu.buffers import Bytes, allocate_pages
from ctgpu.codec import Coding
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.record import SampleEntry, ShardRecord, checksum
from ctgpu.shards.tar import PAYLOADS
from ctgpu.shards.writer import PackedSample, ShardWriter
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.ref import SampleRef

#: 4,096 bytes, and 1,260: with and without a tail after the last whole page.
WHOLE_PAGES = Spec(shape_hwd=(16, 16, 8))
ODD = Spec(shape_hwd=(6, 7, 15))
#: What the first version of the format cannot say.
NEW_SPEC = Spec(shape_hwd=(6, 7, 15), dtype="int16", orientation="LPS")


#: Of two bytes a voxel, so that masks are larger than the volumes of a uint8 contract.
MASKS = MaskFormat("uint16", {"lung": 1, "nodule": 300})


def make_plan(
    count: int = 4,
    *,
    samples_per_shard: int = 4,
    spec: Spec = ODD,
    masks: MaskFormat | None = None,
    compression: Coding | None = None,
) -> Plan:
    """A plan of `count` samples."""
    return Plan(
        dataset="phantoms",
        split="valid",
        spec=spec,
        arithmetic="ctgpu",
        fingerprint=spec.fingerprint("ctgpu"),
        source={"kind": "folder", "location": "phantoms", "revision": "1"},
        selection={"recon": "all", "order": "path", "seed": 0, "limit": None},
        samples_per_shard=samples_per_shard,
        class_names=("Nodule", "Effusion"),
        samples=[
            SampleRef(f"scan_{i}", f"scan.{i}", f"valid/scan.{i}.npz", 1000 + i, "sha256:00")
            for i in range(count)
        ],
        masks=masks,
        compression=compression,
    )


def pack(plan: Plan, sample: SampleRef) -> PackedSample:
    """The sample's members, compressed as the plan says: noise that depends on the key alone."""
    seed = int(checksum(sample.key.encode())[:8], 16)
    noise = np.random.default_rng(seed)
    volume = allocate_pages(plan.spec.size_bytes)[: plan.spec.size_bytes]
    volume[:] = noise.integers(0, 256, volume.size, np.uint8)
    digest = checksum(volume.data)
    mask = None
    if plan.masks is not None:
        mask = allocate_pages(plan.sample_bytes)[: plan.masks.size_bytes(plan.spec)]
        mask.view(plan.masks.numpy_dtype)[:] = noise.choice(
            [0, *plan.masks.labels.values()], mask.size // plan.masks.numpy_dtype.itemsize
        )
    packed = PackedSample(
        sample.key,
        volume,
        digest,
        np.array([seed % 2, np.nan], "<f4").tobytes(),
        f"Bericht für {sample.study_id}".encode(),
        json.dumps({"study_id": sample.study_id, "xxh3_128": digest}).encode(),
        mask=mask,
        mask_xxh3_128=None if mask is None else checksum(mask.data),
    )
    if plan.compression is None:
        return packed
    return compress_sample(
        packed, plan, *(allocate_pages(n)[:n] for n in plan.payload_limits_bytes)
    )


def room_for(entry: SampleEntry) -> list[Bytes]:
    """Memory for the payloads of a sample."""
    sizes = [entry.members[e].size_bytes for e in PAYLOADS if e in entry.members]
    return [allocate_pages(size_bytes)[:size_bytes] for size_bytes in sizes]


def fail(sample: SampleRef) -> LedgerEntry:
    """A failure of the sample."""
    return LedgerEntry(sample.key, sample.path, "decode", "DecodeError", "not a volume", 1)


def write_shard(
    folder: Path,
    plan: Plan,
    index: int = 0,
    *,
    failing: tuple[str, ...] = (),
    replacing: bool = False,
) -> ShardRecord:
    """Write, or go on writing, one shard."""
    writer = ShardWriter(
        folder,
        plan,
        index,
        replace=replacing,
    )
    try:
        for sample in writer.pending:
            if sample.key in failing:
                writer.skip(fail(sample))
            else:
                writer.append(pack(plan, sample))
        return writer.commit({"engine": "test"})
    finally:
        writer.abandon()
