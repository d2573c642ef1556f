"""Is a data set still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from ctgpu.errors import StorageError, UsageError
from ctgpu.limits import usable_cores
from ctgpu.printable import to_json
from ctgpu.shards import integrity
from ctgpu.shards.folder import is_committed
from ctgpu.shards.integrity import Finding
from ctgpu.shards.names import parse_shard_name
from ctgpu.shards.record import ShardSummary

__all__ = ["Finding", "Verification", "verify_folder"]

# Checksums run at the speed of memory: a few threads keep any disk busy.
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked, and what is wrong.

    Attributes
    ----------
    folder : Path
        The data set.
    shards, samples, failed_samples, size_bytes : int
        Of the committed shards whose record can be read: how many, the samples in them, the
        samples that their builds could not make, and the bytes of their tars.
    findings : list of Finding
        Empty if every payload, record, index and manifest is as it was written, and none is
        missing.
    """

    folder: Path
    shards: int
    samples: int
    failed_samples: int
    size_bytes: int
    findings: list[Finding]

    def __repr__(self) -> str:
        return (
            f"Verification({str(self.folder)!r}: {self.samples} samples in {self.shards} shards, "
            f"{self.failed_samples} failed, {len(self.findings)} findings)"
        )

    @property
    def exit_code(self) -> int:
        """0, or 1 where something was found."""
        return 1 if self.findings else 0

    def to_json(self) -> str:
        """One line of JSON."""
        return to_json(
            {
                "folder": str(self.folder),
                "shards": self.shards,
                "samples": self.samples,
                "failed_samples": self.failed_samples,
                "size_bytes": self.size_bytes,
                "findings": [asdict(finding) for finding in self.findings],
            }
        )


def verify_folder(
    folder: str | PathLike[str],
    *,
    found: Callable[[Finding], None] = lambda finding: None,
    checked: Callable[[int, int], None] = lambda done, shards: None,
) -> Verification:
    """Re-read a whole data set and check every byte of it.

    Parameters
    ----------
    folder : path
        The data set.
    found : callable
        Told each finding at once.
    checked : callable
        Told, after each shard, how many have been checked and how many there are.

    Returns
    -------
    Verification

    Raises
    ------
    UsageError
        If there is no such folder.
    StorageError
        If it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the --output-dir of a build")
    findings: list[Finding] = []
    with ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:

        def each(check: Callable[[int], list[Finding]], shards: range) -> Iterator[list[Finding]]:
            for done, result in enumerate(pool.map(check, shards), 1):
                checked(done, len(shards))
                yield result

        for finding in integrity.verify_folder(folder, each):
            findings.append(finding)
            found(finding)
    summaries = []
    for path in folder.glob("shard-*.json"):
        shard = parse_shard_name(path.name)
        # One that cannot be read has been found already.
        with suppress(StorageError):
            if shard and is_committed(folder, shard[0]):
                summaries.append(ShardSummary.load(path))
    return Verification(
        folder,
        len(summaries),
        sum(summary.num_samples for summary in summaries),
        sum(summary.num_failed for summary in summaries),
        sum(summary.size_bytes for summary in summaries),
        findings,
    )
