"""Reads a data set again, every byte, and says what is not as it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctgpu.buffers import BufferPool
from ctgpu.errors import FetchError, StorageError, reason_of
from ctgpu.shards.card import refuse_newer
from ctgpu.shards.compressed import compressed_fault
from ctgpu.shards.folder import is_committed
from ctgpu.shards.index import index_text
from ctgpu.shards.manifest import failures_text, manifest_text
from ctgpu.shards.names import (
    FAILURES_NAME,
    MANIFEST_NAME,
    index_name,
    parse_shard_name,
    partial_name,
    record_name,
    shard_name,
)
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.shards.reread import Rereader
from ctgpu.shards.tar import END_OF_ARCHIVE
from ctgpu.shards.untrusted import JSON_LIMIT_BYTES, open_regular, read_file
from ctgpu.shards.versions import format_name


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not right.

    Attributes
    ----------
    file : str
        Name of the file, inside the folder.
    problem : str
        What is wrong with it, in words.
    damaged : bool
        False where something is only missing yet, as in a build that was interrupted.
    """

    file: str
    problem: str
    damaged: bool = True


def shard_findings(folder: Path, plan: Plan, index: int) -> list[Finding]:
    """Check every byte of one shard, its record and its index.  Threads may check several.

    What is compressed is decoded, too: volumes in the order H, W, D one at a time in memory.

    Parameters
    ----------
    folder : Path
        The data set's folder.
    plan : Plan
        Its plan.
    index : int
        The shard.

    Raises
    ------
    NewerFormatError
        If a newer ctgpu wrote its record.
    """
    name = shard_name(index)
    if not is_committed(folder, index):
        return [_not_committed(folder, index)]
    try:
        record = ShardRecord.load(folder / record_name(index))
    except StorageError as error:
        return [Finding(record_name(index), str(error))]
    findings = [Finding(record_name(index), p) for p in _contradictions(plan, record)]
    try:
        with (
            os.fdopen(open_regular(folder / name), "rb", buffering=0) as tar,
            ShardReader(folder / name) as reader,
        ):
            faults = _faults(tar.fileno(), record, reader, plan)
            findings += [Finding(name, problem) for problem in faults]
    except OSError as error:
        findings.append(Finding(name, f"it cannot be read: {reason_of(error)}"))
    except StorageError as error:
        findings.append(Finding(name, str(error)))
    findings += _compare(folder, index_name(index), index_text(record))
    return findings


def folder_findings(folder: Path, plan: Plan) -> Iterator[Finding]:
    """Check what else lies in the folder: strange shards, the manifest, the list of failures.

    Parameters
    ----------
    folder : Path
        The data set's folder.
    plan : Plan
        Its plan.

    Raises
    ------
    NewerFormatError
        If a newer ctgpu wrote the manifest.
    """
    for entry in sorted(os.listdir(folder)):
        shard = parse_shard_name(entry)
        if shard and shard[0] >= plan.shards:
            yield Finding(entry, f"the plan ends with shard {plan.shards - 1}")
    refuse_newer(folder)
    try:
        yield from _compare(folder, MANIFEST_NAME, manifest_text(folder, plan))
        yield from _compare(folder, FAILURES_NAME, failures_text(folder))
    except StorageError:
        # A damaged record, which has been named above.
        return


def _not_committed(folder: Path, index: int) -> Finding:
    if (folder / record_name(index)).exists():
        return Finding(shard_name(index), "it is gone, while its record is still there")
    if (folder / partial_name(index)).exists():
        return Finding(partial_name(index), "the shard is not finished", damaged=False)
    if (folder / shard_name(index)).exists():
        return Finding(record_name(index), "it is missing, so the shard is not committed")
    return Finding(shard_name(index), "it has not been made yet", damaged=False)


def _contradictions(plan: Plan, record: ShardRecord) -> Iterator[str]:
    if record.fingerprint != plan.fingerprint:
        yield f"its fingerprint is {record.fingerprint}, the plan's is {plan.fingerprint}"
    if record.version != plan.shard_version:
        stated, wanted = (format_name("shard", n) for n in (record.version, plan.shard_version))
        yield f"its format is {stated}, and that of this plan's records is {wanted}"
    failed = {failure.key for failure in record.failures}
    planned = {s.key: s.study_id for s in plan.samples_of(record.shard_index)}
    left = [(key, study_id) for key, study_id in planned.items() if key not in failed]
    if [(s.key, s.study_id) for s in record.samples] != left or not failed <= planned.keys():
        yield "its samples are not those that the plan has for this shard"


def _faults(fd: int, record: ShardRecord, reader: ShardReader, plan: Plan) -> Iterator[str]:
    found_bytes = os.fstat(fd).st_size
    if found_bytes != record.size_bytes:
        yield f"it has {found_bytes} bytes, and its record says {record.size_bytes}"
    rereader, scratch = Rereader(fd), BufferPool()
    for sample in record.samples:
        fault = rereader.fault(sample)
        # Where a compressed member is damaged, it knows better what of it.
        decoded = _decoded_faults(reader, sample, plan, scratch) if sample.is_compressed else []
        yield from decoded or ([fault] if fault else [])
    end = record.size_bytes - len(END_OF_ARCHIVE)
    if os.pread(fd, len(END_OF_ARCHIVE), end) != END_OF_ARCHIVE:
        yield "its end mark is damaged"


def _decoded_faults(
    reader: ShardReader, sample: SampleEntry, plan: Plan, scratch: BufferPool
) -> list[str]:
    """What is wrong with the compressed volume of a sample, and with its mask."""
    spec, masks = plan.spec, plan.masks
    stated = _stated(reader, sample)
    payloads: list[tuple[str, str, Any]] = [(sample.volume_extension, spec.dtype, stated)]
    if masks is not None and sample.mask_extension is not None:
        payloads.append((sample.mask_extension, masks.dtype, stated.get("mask")))
    h, w, d = spec.shape_hwd
    found = []
    for extension, dtype, facts in payloads:
        digest = facts.get("xxh3_128") if isinstance(facts, dict) else None
        try:
            fault = compressed_fault(
                reader, sample, extension, (d, h, w), dtype, spec.layout, digest, scratch
            )
        except FetchError:
            continue  # the tar is too short, which its bytes have shown already
        if fault is not None:
            found.append(
                f"{fault}; remove the shard and its record and run the build again, which rebuilds "
                "both"
            )
    return found


def _stated(reader: ShardReader, sample: SampleEntry) -> dict[str, Any]:
    """The JSON of a sample; empty where it is damaged, which its bytes show."""
    try:
        stated = json.loads(reader.read(sample, "json"))
    except (FetchError, ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _compare(folder: Path, name: str, expected: bytes) -> list[Finding]:
    try:
        found = read_file(folder / name, JSON_LIMIT_BYTES)
    except OSError as error:
        return [Finding(name, f"it cannot be read: {reason_of(error)}")]
    if found == expected:
        return []
    return [Finding(name, "it is not what the records say; `ctgpu manifest` writes it again")]
