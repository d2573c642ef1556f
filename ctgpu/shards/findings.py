"""Reads a data set again, every byte, and says what is not as it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctgpu.errors import StorageError, reason_of
from ctgpu.shards.card import refuse_newer
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
from ctgpu.shards.record import ShardRecord
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
        with os.fdopen(open_regular(folder / name), "rb", buffering=0) as tar:
            findings += [Finding(name, problem) for problem in _faults(tar.fileno(), record)]
    except OSError as error:
        findings.append(Finding(name, f"it cannot be read: {reason_of(error)}"))
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


def _faults(fd: int, record: ShardRecord) -> Iterator[str]:
    found_bytes = os.fstat(fd).st_size
    if found_bytes != record.size_bytes:
        yield f"it has {found_bytes} bytes, and its record says {record.size_bytes}"
    rereader = Rereader(fd)
    for sample in record.samples:
        if fault := rereader.fault(sample):
            yield fault
    end = record.size_bytes - len(END_OF_ARCHIVE)
    if os.pread(fd, len(END_OF_ARCHIVE), end) != END_OF_ARCHIVE:
        yield "its end mark is damaged"


def _compare(folder: Path, name: str, expected: bytes) -> list[Finding]:
    try:
        found = read_file(folder / name, JSON_LIMIT_BYTES)
    except OSError as error:
        return [Finding(name, f"it cannot be read: {reason_of(error)}")]
    if found == expected:
        return []
    return [Finding(name, "it is not what the records say; `ctgpu manifest` writes it again")]
