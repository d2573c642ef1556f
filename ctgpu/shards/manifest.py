"""The data set's card and its list of failures, both derived from the plan and the records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ctgpu.shards import disk
from ctgpu.shards.card import refuse_newer
from ctgpu.shards.folder import failures, remove_leftovers, summaries
from ctgpu.shards.names import FAILURES_NAME, MANIFEST_NAME, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardSummary, checksum
from ctgpu.shards.versions import FIRST, format_name


def manifest(folder: Path, plan: Plan) -> dict[str, Any]:
    """The data set's card: a function of the plan and the committed shards alone.

    Raises
    ------
    StorageError
        If a record cannot be read.
    """
    return _manifest(plan, summaries(folder))


def _manifest(plan: Plan, shards: Sequence[ShardSummary]) -> dict[str, Any]:
    orientations, version = _count_orientations(shards), plan.shard_version
    return {
        "dataset": plan.dataset,
        "split": plan.split,
        "format": "webdataset",
        **({} if version == FIRST else {"manifest_format": format_name("manifest", version)}),
        "preprocessed": True,
        "total_shards": len(shards),
        "total_samples": sum(shard.num_samples for shard in shards),
        "planned_shards": plan.shards,
        "planned_samples": len(plan.samples),
        "failed_samples": sum(shard.num_failed for shard in shards),
        "unlabelled_samples": sum(shard.num_unlabelled for shard in shards),
        **({"orientations": orientations} if orientations else {}),
        "sample_shape": list(plan.spec.stored_shape),
        "layout": plan.spec.layout,
        "sample_dtype": plan.spec.dtype,
        **({} if plan.masks is None else {"masks": plan.masks.to_dict()}),
        **({} if plan.compression is None else {"compression": plan.compression}),
        "num_classes": len(plan.class_names),
        "class_names": list(plan.class_names),
        "spec": plan.spec.to_dict(),
        "arithmetic": plan.arithmetic,
        "fingerprint": plan.fingerprint,
        "plan_xxh3_128": checksum(plan.to_json()),
        "source": dict(plan.source),
        "selection": dict(plan.selection),
        "shards": [
            {
                "shard_index": shard.shard_index,
                "filename": shard_name(shard.shard_index),
                "num_samples": shard.num_samples,
                "size_bytes": shard.size_bytes,
            }
            for shard in shards
        ],
    }


def _count_orientations(shards: Iterable[ShardSummary]) -> dict[str, int]:
    """How many samples are stored in which orientation, most frequent first; the known ones."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.orientations)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def failures_text(folder: Path) -> bytes:
    """The content of ``failures.jsonl``: one line for each failed sample."""
    return _failures_text(folder, summaries(folder))


def _failures_text(folder: Path, shards: Sequence[ShardSummary]) -> bytes:
    return b"".join(
        json.dumps({"shard_index": index, **failure.to_dict()}).encode() + b"\n"
        for index, failure in failures(folder, shards)
    )


def manifest_text(folder: Path, plan: Plan) -> bytes:
    """The content of ``manifest.json``."""
    return _manifest_text(plan, summaries(folder))


def _manifest_text(plan: Plan, shards: Sequence[ShardSummary]) -> bytes:
    return json.dumps(_manifest(plan, shards), indent=2).encode() + b"\n"


def write_manifest(folder: Path) -> dict[str, Any]:
    """Derive ``manifest.json`` and ``failures.jsonl`` again, at any time, and tidy the folder.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UsageError
        If the folder has no plan.
    NewerFormatError
        If a newer ctgpu wrote it.
    StorageError
        If it cannot be read or written.
    """
    plan = Plan.load(folder)
    refuse_newer(folder)
    remove_leftovers(folder)
    written: list[bytes] = []
    while True:
        shards = summaries(folder)
        texts = [_manifest_text(plan, shards), _failures_text(folder, shards)]
        if texts == written:
            card: dict[str, Any] = json.loads(texts[0])
            return card
        for name, text in zip((MANIFEST_NAME, FAILURES_NAME), texts, strict=True):
            disk.replace_file(folder / name, text)
        # Looked at again: a process that has committed a shard meanwhile may have written these
        # files before this one did.
        written = texts


def read_failures(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``failures.jsonl``, as :func:`write_manifest` has left it.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    return [json.loads(line) for line in (folder / FAILURES_NAME).read_text().splitlines()]
