"""Is a data set still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from ctgpu.errors import NewerFormatError, StorageError, UsageError
from ctgpu.machine import default_memory_limit_bytes, usable_cores
from ctgpu.printable import counted, to_json
from ctgpu.shards.findings import Finding, folder_findings, shard_findings
from ctgpu.shards.folder import is_committed
from ctgpu.shards.names import PLAN_NAME, parse_shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardSummary

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
            f"Verification({str(self.folder)!r}: {counted(self.samples, 'sample')} in "
            f"{counted(self.shards, 'shard')}, {self.failed_samples} failed, "
            f"{counted(len(self.findings), 'finding')})"
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
    """Re-read a whole data set and check every byte of it; what is compressed is decoded, too.

    Parameters
    ----------
    folder : path
        The data set.
    found : callable
        Called with each finding at once.
    checked : callable
        Called after each shard with how many have been checked and how many there are.

    Returns
    -------
    Verification

    Raises
    ------
    UsageError
        If there is no such folder.
    NewerFormatError
        If a newer ctgpu wrote a file of it, so that there is no telling.
    StorageError
        If it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the --output-dir of a build")
    findings: list[Finding] = []

    def note(found_now: Iterable[Finding]) -> None:
        for finding in found_now:
            findings.append(finding)
            found(finding)

    try:
        plan = Plan.load(folder)
    except NewerFormatError:
        raise
    except UsageError as error:
        note([Finding(PLAN_NAME, str(error))])
    else:
        with ThreadPoolExecutor(_threads(plan)) as pool:
            of_shards = pool.map(partial(shard_findings, folder, plan), range(plan.shards))
            for done, of_shard in enumerate(of_shards, 1):
                checked(done, plan.shards)
                note(of_shard)
        note(folder_findings(folder, plan))
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


def _threads(plan: Plan) -> int:
    threads = min(_MOST_THREADS, usable_cores())
    if plan.compression is None:
        return threads
    # Each may hold a volume and its mask, decoded.
    return max(1, min(threads, default_memory_limit_bytes() // plan.sample_bytes))
