"""Data sets with masks whose every voxel says which voxel of the volume it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, checksum
from ctgpu.shards.writer import PackedSample, ShardWriter
from ctgpu.volume.masks import MaskDtype, MaskFormat

#: The highest needs more than seven bits, or fifteen.
LABELS = {
    "uint8": {"lung": 1, "nodule": 2, "vessel": 200},
    "uint16": {"lung": 1, "nodule": 2, "vessel": 60000},
}


def mask_of(volume: Any, dtype: MaskDtype) -> npt.NDArray[Any]:
    """The mask that belongs to a volume of float16, or to any box of it."""
    bits = np.ascontiguousarray(volume).view(np.uint16)
    numbers = np.array([0, *LABELS[dtype].values()], dtype)
    return numbers[(bits // 3 + bits // 64) % 4]


def with_masks(folder: Path, out: Path, dtype: MaskDtype = "uint8") -> Path:
    """A copy of a data set of float16, each sample with :func:`mask_of` its volume."""

    def masked(sample: PackedSample) -> PackedSample:
        mask = mask_of(sample.volume.view(np.float16), dtype)
        return replace_mask(sample, mask.view(np.uint8), dtype=dtype)

    plan = replace(Plan.load(folder), masks=MaskFormat(dtype, LABELS[dtype]))
    return rewritten(folder, out, masked, plan)


def replace_mask(sample: PackedSample, mask: npt.NDArray[np.uint8], **said: str) -> PackedSample:
    """The sample with this mask, of which its JSON says this and its checksum."""
    digest = checksum(mask.data)
    stated = json.loads(sample.metadata) | {"mask": {**said, "xxh3_128": digest}}
    metadata = json.dumps(stated).encode()
    return replace(sample, mask=mask, mask_xxh3_128=digest, metadata=metadata)


def rewritten(
    folder: Path,
    out: Path,
    change: Callable[[PackedSample], PackedSample],
    plan: Plan | None = None,
) -> Path:
    """A copy of a data set, by another plan if one is given, of samples that were changed."""
    plan = plan or Plan.load(folder)
    out.mkdir(parents=True)
    Plan.create(out, plan)
    for index in range(plan.shards):
        writer = ShardWriter(out, plan, index)
        with ShardReader(folder / shard_name(index)) as reader:
            good = {entry.key: entry for entry in reader.record.samples}
            failed = {failure.key: failure for failure in reader.record.failures}
            for planned in plan.samples_of(index):
                if planned.key in failed:
                    writer.skip(failed[planned.key])
                else:
                    writer.append(change(_copied(reader, good[planned.key])))
        writer.commit(reader.record.run)
    write_manifest(out)
    return out


def _copied(reader: ShardReader, entry: SampleEntry) -> PackedSample:
    payloads = [
        np.empty(entry.members[extension].size_bytes, np.uint8)
        for extension in ("bin", "seg")
        if extension in entry.members
    ]
    return reader.copy_sample(entry, *payloads)
