"""Which files below a folder may be DICOM, by their names alone."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctgpu.decode.dicom_header import MAGIC_BYTES, is_dicom
from ctgpu.errors import SourceError, reason_of
from ctgpu.volume.ref import DICOM_SUFFIXES, VOLUME_SUFFIXES

# What lies beside DICOM and is something else; files of other names are looked into.
_OTHERS = re.compile(
    r"(?i)\.(csv|tsv|xlsx?|jsonl?|parquet|txt|xml|html?|pdf|md|rtf|docx?|png|jpe?g|bmp|gif|tiff?|"
    r"zip|gz|bz2|xz|7z|tar|toml|ya?ml|ini|inf|log|db|exe|dll|py|h5|hdf5|mat|pt|pkl)\Z"
)
# The index of a medium: it says nothing that the files do not.
_INDEX = "DICOMDIR"


class FoundFile(NamedTuple):
    """A file that may be DICOM.

    Attributes
    ----------
    path : str
        Below the folder that was looked through.
    size_bytes, mtime_ns : int
        Both 0 where it cannot be looked at, as a link that leads nowhere.
    """

    path: str
    size_bytes: int
    mtime_ns: int


def files_below(root: Path) -> list[FoundFile]:
    """Every file below a folder that may be DICOM, in the order of their paths.

    What is hidden is left out.  Links are followed, and what several lead to, a folder or a file,
    is there once: a slice is not doubled by that.

    Raises
    ------
    SourceError
        If a folder cannot be listed.
    """
    begin = len(os.path.join(root, ""))
    found: list[tuple[FoundFile, object]] = []
    for entry in _entries(root):
        if not _may_be_dicom(entry.name):
            continue
        path, status = entry.path[begin:], _status(entry)
        if status is None:
            found.append((FoundFile(path, 0, 0), path))
        elif stat.S_ISREG(status.st_mode):
            file = FoundFile(path, status.st_size, status.st_mtime_ns)
            found.append((file, (status.st_dev, status.st_ino)))
    once: dict[object, FoundFile] = {}
    for file, place in sorted(found, key=lambda each: each[0]):
        once.setdefault(place, file)
    return [*once.values()]


def holds_dicom(root: Path) -> bool:
    """Whether a folder has files of DICOM anywhere below it, and volumes of no other format.

    What cannot be listed ends the look; whoever lists the folder then says so.
    """
    found = False
    with contextlib.suppress(SourceError):
        for entry in _entries(root):
            if entry.name.lower().endswith(VOLUME_SUFFIXES):
                return False
            found = found or (_may_be_dicom(entry.name) and _looks_like_it(entry))
    return found


def _looks_like_it(entry: os.DirEntry[str]) -> bool:
    if entry.name.lower().endswith(DICOM_SUFFIXES):
        return True
    status = _status(entry)
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return is_dicom(file.read(MAGIC_BYTES))
    except OSError:
        return False


def _may_be_dicom(name: str) -> bool:
    return (
        not _OTHERS.search(name)
        and name.upper() != _INDEX
        and not name.lower().endswith(VOLUME_SUFFIXES)
    )


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is not hidden and no folder itself."""
    pending, seen = [str(root)], set()
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (place := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(place)
            # In an order of their own, as one of two links to a folder is taken.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            failed = reason_of(error)
        else:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    pending.append(entry.path)
                else:
                    yield entry
            continue
        # Its name may be a patient's, and what an error says is logged.
        raise SourceError(
            f"a folder below the source cannot be listed ({failed}); `find SOURCE -type d ! "
            "-readable` names it: make it readable, then run the same command again"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None
