"""Where CT-RATE keeps things, and what a path says about its voxels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

from ctgpu.volume.ref import Provenance, Split

#: What the CSVs call a split; the volumes' folders say ``valid``.
_TABLE_SPLIT: dict[Split, str] = {"train": "train", "valid": "validation"}
#: What CT-RATE has a table for.
TABLES = ("metadata", "labels", "reports", "no_chest")
_SPLITS: tuple[Split, Split] = ("train", "valid")
_TABLE_FOLDERS = frozenset({"multi_abnormality_labels", "radiology_text_reports"})
_VOLUME_NAME = re.compile(r"(train|valid)_\d+_[A-Za-z]+_\d+(?:\W.*|_.*)?", re.DOTALL)


def split_folders(split: Split) -> tuple[str, str]:
    """Folders of a split's volumes, best first: v2, whose voxels are HU, then v1."""
    return f"{split}_fixed", split


_FOLDER_SPLITS = {folder: split for split in _SPLITS for folder in split_folders(split)}


def split_folders_among(names: Collection[str], *, parent: str, at_top: bool) -> list[str]:
    """Which sub-folders of a folder hold CT-RATE's splits.

    ``train_fixed`` and ``valid_fixed`` do wherever they are.  ``train`` and ``valid`` alone are
    names of other data sets too: they do at the top of a source, in a folder ``dataset``, beside
    another of the four, and beside CT-RATE's folders of labels and reports.

    Parameters
    ----------
    names : collection of str
        The sub-folders.
    parent : str
        Name of the folder they are in.
    at_top : bool
        Whether that is the source itself.
    """
    found = [name for name in _FOLDER_SPLITS if name in names]
    if at_top or parent == "dataset" or len(found) > 1 or not _TABLE_FOLDERS.isdisjoint(names):
        return found
    return [name for name in found if name.endswith("_fixed")]


def split_of_folders(folders: Sequence[str]) -> Split | None:
    """The split that a path lies in by the names of its folders, the innermost first."""
    for place in reversed(range(len(folders))):
        split = _FOLDER_SPLITS.get(folders[place])
        is_fixed = folders[place].endswith("_fixed")
        if split is not None and (is_fixed or (place and folders[place - 1] == "dataset")):
            return split
    return None


def split_of_name(study_id: str) -> Split | None:
    """The split that CT-RATE's own volumes carry in their names (``train_1_a_1``); else None."""
    found = _VOLUME_NAME.fullmatch(study_id)
    return None if found is None else ("train" if found[1] == "train" else "valid")


def table_names(table: str, split: Split) -> tuple[str, ...]:
    """Paths under which a table of a split may be found, best first.

    Parameters
    ----------
    table : {"metadata", "labels", "reports", "no_chest"}
        Which one.
    split : {"train", "valid"}
        The split; the metadata and reports of ``valid`` are named ``validation``.
    """
    folder, names = {
        "metadata": ("metadata", (f"{_TABLE_SPLIT[split]}_metadata.csv", f"{split}_metadata.csv")),
        "labels": ("multi_abnormality_labels", (f"{split}_predicted_labels.csv",)),
        "reports": (
            "radiology_text_reports",
            (f"{_TABLE_SPLIT[split]}_reports.csv", f"{split}_reports.csv"),
        ),
        "no_chest": ("metadata", (f"no_chest_{split}.txt",)),
    }[table]
    unique = tuple(dict.fromkeys(names))
    return tuple(
        prefix + name for prefix in (f"dataset/{folder}/", f"{folder}/", "") for name in unique
    )


def all_table_names() -> frozenset[str]:
    """Paths of every table of either split that may be read."""
    return frozenset(
        name for table in TABLES for split in _SPLITS for name in table_names(table, split)
    )


def provenance_of(path: str) -> Provenance:
    """What a path with forward slashes says: ``…_fixed`` is v2, ``dataset/train`` is v1."""
    folders = path.split("/")[:-1]
    if any(f"{split}_fixed" in folders for split in _SPLITS):
        return "fixed"
    pairs = itertools.pairwise(folders)
    return "v1" if any(a == "dataset" and b in _SPLITS for a, b in pairs) else "unknown"
