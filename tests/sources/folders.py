"""Folders of files whose content is their path, and what a source lists of them."""

from __future__ import annotations

from pathlib import Path

from ctgpu.sources.folder import FolderSource


def put(root: Path, *paths: str) -> None:
    """Files at these paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def listed(root: Path, split: str = "valid") -> list[tuple[str, str]]:
    """Path and provenance of each volume of a split."""
    refs = FolderSource(root).list_volumes(split)  # type: ignore[arg-type]
    return [(ref.path, ref.provenance) for ref in refs]
