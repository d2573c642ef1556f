"""What lies below a folder: volumes, the folders of a data set's splits, and tables."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctgpu.data_sets.layout import SplitFolders
from ctgpu.errors import SourceError, reason_of
from ctgpu.volume.ref import DICOM_SUFFIXES, VOLUME_SUFFIXES, strip_volume_suffix

_log = logging.getLogger(__name__)

#: Suffixes of files that may say something about the volumes beside them.
_TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xls", ".json", ".jsonl", ".parquet")

# How names of files end, and those of folders, such as the UIDs of DICOM, do not.
_FILE_NAME = re.compile(r"\.[A-Za-z]\w*\Z")

# A folder to look into, and the real places from which links led to it.
_Step = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Tree:
    """What is below a folder, as paths that begin with the folder's.

    Attributes
    ----------
    volumes : list of (str, int)
        With their sizes in bytes; those in split folders are not among them.
    missing : list of str
        Those of the volumes, with a size of 0, whose file cannot be looked at: links that lead
        nowhere, as in a Hub cache with a blob gone.
    missing_folders : dict of str to str
        What cannot be looked at and may have been a folder of volumes, for its name is not that of
        a file; where it links to, or else why.  Those of splits are not among them.
    split_folders : list of str
        Those of the data set's splits, links that lead nowhere included.
    tables : list of str
        Those beside the volumes, without the JSON that a volume may have to itself.
    dicom : list of str
        Files that are DICOM by their names.
    """

    volumes: list[tuple[str, int]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_folders: dict[str, str] = field(default_factory=dict)
    split_folders: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    dicom: list[str] = field(default_factory=list)


def look_below(
    top: str, trail: tuple[str, ...] = (), *, at_top: bool, splits_of: SplitFolders | None = None
) -> Tree:
    """Everything below a folder that is not hidden.

    Links are followed, but for one back to a place on the way.

    Parameters
    ----------
    top : str
        The folder.
    trail : tuple of str
        Real paths of the places on the way to it.
    at_top : bool
        Whether it is the source itself, where any name of a split's folder is one.
    splits_of : SplitFolders, optional
        Tell the folders of this data set's splits from others.

    Raises
    ------
    SourceError
        If a folder cannot be listed.
    """
    tree = Tree()
    pending: list[_Step] = [(top, trail)]
    while pending:
        folder, way = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise SourceError(f"{folder} cannot be listed: {reason_of(error)}") from error
        folders: dict[str, _Step] = {}
        missing: dict[str, str] = {}
        volumes: list[tuple[str, int]] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders[entry.name] = entry.path, way
                    continue
                status = entry.stat()
            except OSError as error:
                if _is_volume(entry):
                    volumes.append((entry.path, 0))
                    tree.missing.append(entry.path)
                elif not _FILE_NAME.search(entry.name):
                    target = f"a link to {os.readlink(entry.path)}" if entry.is_symlink() else None
                    missing[entry.name] = target or reason_of(error)
                else:
                    _log.warning("%s is left out: %s", entry.path, reason_of(error))
                continue
            if stat.S_ISDIR(status.st_mode):
                places = (*way, os.path.realpath(folder))
                target = os.path.realpath(entry.path)
                if not any(f"{place}/".startswith(f"{target}/") for place in places):
                    folders[entry.name] = entry.path, places
            elif stat.S_ISREG(status.st_mode) and _is_volume(entry):
                volumes.append((entry.path, status.st_size))
            elif entry.name.lower().endswith(DICOM_SUFFIXES):
                tree.dicom.append(entry.path)
        if splits_of is not None:
            for name in splits_of.among(
                {*folders, *missing},
                parent=os.path.basename(folder),
                at_top=at_top and folder == top,
            ):
                tree.split_folders.append(os.path.join(folder, name))
                folders.pop(name, None)
                missing.pop(name, None)
        tree.missing_folders.update((os.path.join(folder, n), why) for n, why in missing.items())
        pending.extend(folders.values())
        tree.volumes.extend(volumes)
        if volumes:
            tree.tables.extend(_tables_among(entries))
    return tree


def tables_in(folder: str) -> list[str]:
    """The tables directly in a folder; none where it cannot be listed."""
    try:
        return _tables_among(list(os.scandir(folder)))
    except OSError:
        return []


def _tables_among(entries: Sequence[os.DirEntry[str]]) -> list[str]:
    """Paths of the tables; a volume's own JSON is none."""
    own = {f"{strip_volume_suffix(entry.name)}.json" for entry in entries if _is_volume(entry)}
    return [
        entry.path
        for entry in entries
        if entry.name.lower().endswith(_TABLE_SUFFIXES)
        and not entry.name.startswith(".")
        and entry.name not in own
    ]


def _is_volume(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(VOLUME_SUFFIXES)
