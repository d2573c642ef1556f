"""Volumes in a folder: a local copy of CT-RATE, or any folder at all."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ctgpu.buffers import Buffer
from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources.base import (
    VOLUME_SUFFIXES,
    Allocate,
    SampleRef,
    Source,
    Split,
    natural_key,
)
from ctgpu.sources.layout import LAYOUT_FOLDERS, provenance_of, split_folders, table_names

_log = logging.getLogger(__name__)


class FolderSource(Source):
    """A folder of ``.nii.gz``, ``.nii`` and ``.npz`` files.

    Where it has CT-RATE's folders (``train_fixed``, ``valid``, …, under ``dataset`` or directly),
    only those of the split asked for are listed, flat or nested; ``…_fixed`` (v2) goes before v1
    where both are there.  Otherwise every volume below it belongs to the split asked for.  Hidden
    files and folders are left out, and so are partial downloads, which do not end in a volume's
    suffix.  Links are followed, for a Hub cache and many a lab consist of them.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    UsageError
        If it is not a folder.
    """

    def __init__(self, path: Path) -> None:
        self._root = Path(os.path.abspath(path))
        if not self._root.is_dir():
            raise UsageError(f"{path} is not a folder; pass the folder that holds the volumes")
        # "." and links have names that say nothing.
        self._name = self._root.resolve().name
        self._revision: str | None = None

    def identity(self) -> dict[str, str]:
        """``kind``, ``location`` and ``revision``, without anything of this machine.

        The location is the folder's name and the revision a hash of the last listing (paths and
        sizes, the CSVs' included), so that a folder that changed is noticed wherever it lies.

        Raises
        ------
        ValueError
            If no listing was made yet.
        """
        if self._revision is None:
            raise ValueError("list_volumes comes before identity: the listing is the revision")
        return {"kind": "folder", "location": self._name, "revision": self._revision}

    def list_volumes(self, split: Split) -> list[SampleRef]:
        """Every volume of the split, in natural order of the paths.

        Raises
        ------
        UsageError
            If the folder has no volume of the split.
        SourceError
            If a folder cannot be read.
        """
        refs = []
        for path, size_bytes in _volumes_below(self._folder_of(split)):
            relative = path[len(os.path.join(self._root, "")) :]
            refs.append(
                SampleRef(
                    relative, size_bytes, provenance=provenance_of(f"{self._name}/{relative}")
                )
            )
        if not refs:
            raise UsageError(
                f"{self._root} has no {' or '.join(VOLUME_SUFFIXES)} file of the split {split!r}; "
                f"wanted dataset/{split}_fixed in it, or volumes anywhere below it"
            )
        refs.sort(key=lambda ref: natural_key(ref.path))
        self._revision = self._hash_listing(refs, split)
        return refs

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these files that exists, by path, and its bytes; else None."""
        for name in names:
            try:
                return name, (self._root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise SourceError(
                    f"{self._root / name} cannot be read: {error.strerror}"
                ) from error
        return None

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Buffer:
        """The bytes of one volume, read straight into the allocated buffer."""
        parts = ref.path.split("/")
        if ref.path.startswith("/") or ".." in parts:
            raise FetchError(f"{ref.path} leads out of the source; it is not read")
        path = self._root / ref.path
        try:
            # O_NONBLOCK: a pipe that has taken the file's place must not hang the build.
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
        except OSError as error:
            if not self._root.is_dir():
                raise SourceError(f"{self._root} is gone; mount it again and resume") from error
            raise FetchError(f"{ref.path} cannot be read: {error.strerror}") from error
        with file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != ref.size_bytes:
                raise FetchError(
                    f"{ref.path} has {status.st_size} bytes, but had {ref.size_bytes} when it was "
                    "listed; wait until nothing writes to the source, then use --retry-failed"
                )
            buffer = allocate(ref.size_bytes)
            try:
                target = memoryview(buffer.bytes.data)
                while target:
                    count = file.readinto(target)
                    if not count:
                        raise FetchError(
                            f"{ref.path} ended {len(target)} bytes early; it was cut while it "
                            "was read: use --retry-failed when it is complete"
                        )
                    target = target[count:]
            except OSError as error:
                buffer.release()
                raise FetchError(f"{ref.path} cannot be read: {error.strerror}") from error
            except BaseException:
                buffer.release()
                raise
        return buffer

    def _folder_of(self, split: Split) -> Path:
        bases = (self._root / "dataset", self._root)
        for base in bases:
            for folder in split_folders(split):
                if (base / folder).is_dir():
                    return base / folder
        if any((base / folder).is_dir() for base in bases for folder in LAYOUT_FOLDERS):
            raise UsageError(
                f"{self._root} has CT-RATE's folders but none for the split {split!r}; "
                f"wanted dataset/{split}_fixed in it"
            )
        return self._root

    def _hash_listing(self, refs: list[SampleRef], split: Split) -> str:
        digest = hashlib.sha256()
        for ref in refs:
            digest.update(f"{ref.path}\t{ref.size_bytes}\n".encode(errors="surrogateescape"))
        for table in ("metadata", "labels", "reports", "no_chest"):
            for name in table_names(table, split):
                if (self._root / name).is_file():
                    digest.update(f"{name}\t{(self._root / name).stat().st_size}\n".encode())
                    break
        return digest.hexdigest()


def _volumes_below(root: Path) -> Iterator[tuple[str, int]]:
    """Paths and sizes of all volumes; a link back to where it was come from is not followed."""
    pending: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    while pending:
        folder, come_from = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise SourceError(f"{folder} cannot be listed: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, come_from))
                    continue
                status = entry.stat()
            except OSError as error:
                _log.warning("%s is left out: %s", entry.path, error.strerror)
                continue
            if stat.S_ISDIR(status.st_mode):
                trail = (*come_from, os.path.realpath(folder))
                target = os.path.realpath(entry.path)
                if not any(f"{place}/".startswith(f"{target}/") for place in trail):
                    pending.append((entry.path, trail))
            elif stat.S_ISREG(status.st_mode) and entry.name.lower().endswith(VOLUME_SUFFIXES):
                yield entry.path, status.st_size
