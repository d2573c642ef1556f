"""What a build did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctgpu.building.described import JoinedTable
from ctgpu.building.pipeline import PipelineReport
from ctgpu.printable import counted, printable, to_json
from ctgpu.shards.names import FAILURES_NAME, shard_name


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    folder : Path
        The data set.
    manifest : dict
        The content of ``manifest.json``.
    written : int
        Samples written by this run.
    stored_bytes : int
        Bytes of their payloads.
    failures : list of dict
        Every sample of the data set that has no output: the lines of ``failures.jsonl``.
    pipeline : PipelineReport or None
        Stage times and memory; None where there was nothing to do.
    data_set : str
        Name of the description that it was built by.
    tables : sequence of JoinedTable
        What was joined to its samples; empty where its plan was made by an earlier run.
    """

    folder: Path
    manifest: Mapping[str, Any]
    written: int
    stored_bytes: int
    failures: Sequence[Mapping[str, Any]]
    pipeline: PipelineReport | None
    data_set: str = ""
    tables: Sequence[JoinedTable] = ()

    def __repr__(self) -> str:
        return (
            f"BuildReport({str(self.folder)!r}: {self.manifest['total_samples']} of "
            f"{counted(self.manifest['planned_samples'], 'planned sample')} in "
            f"{counted(self.manifest['total_shards'], 'shard')}, {self.written} of them written "
            f"now, {len(self.failures)} failed)"
        )

    @property
    def exit_code(self) -> int:
        """0, or 1 where a sample has no output, or folders could not be looked at for some."""
        return 1 if self.failures or self.missing_folders else 0

    @property
    def missing_folders(self) -> Mapping[str, str]:
        """Folders of the source that could not be looked at when it was planned, and why."""
        found: Mapping[str, str] = self.manifest["source"].get("missing_folders", {})
        return found

    @property
    def failures_path(self) -> Path:
        """The ledger."""
        return self.folder / FAILURES_NAME

    def training_yaml(self) -> str:
        """The lines that a training config needs."""
        last = self.manifest["total_shards"] - 1
        compression = self.manifest.get("compression")
        urls = f"shard-{{000000..{last:06d}}}.tar" if last > 0 else shard_name(0)
        return "\n".join(
            (
                "data:",
                "  format: webdataset",
                f"  urls: {_yaml_string(str(self.folder.resolve() / urls))}",
                f"  num_samples: {self.manifest['total_samples']}",
                f"  shape: {list(self.manifest['sample_shape'])}  # {self.manifest['layout']}",
                f"  dtype: {self.manifest['sample_dtype']}",
                *([f"  compression: {compression}"] if compression else []),
                f"  num_classes: {self.manifest['num_classes']}",
            )
        )

    def to_json(self) -> str:
        """One line of JSON."""
        stages = [] if self.pipeline is None else [asdict(s) for s in self.pipeline.stages]
        return to_json(
            {
                "folder": str(self.folder),
                "data_set": self.data_set,
                "tables": [asdict(table) for table in self.tables],
                "written": self.written,
                "stored_bytes": self.stored_bytes,
                "failed": len(self.failures),
                "missing_folders": dict(self.missing_folders),
                "total_samples": self.manifest["total_samples"],
                "total_shards": self.manifest["total_shards"],
                "wall_s": self.pipeline.wall_s if self.pipeline else 0.0,
                "stages": stages,
            }
        )


def _yaml_string(text: str) -> str:
    """Text in double quotes, in which YAML knows the escapes of JSON and those of `printable`."""
    return printable(json.dumps(text, ensure_ascii=False))
