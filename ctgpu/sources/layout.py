"""Where CT-RATE keeps things, and what a path says about its voxels."""

from __future__ import annotations

import itertools

from ctgpu.sources.base import Provenance, Split

#: What the CSVs call a split; the volumes' folders say ``valid``.
_TABLE_SPLIT: dict[Split, str] = {"train": "train", "valid": "validation"}
_SPLITS: tuple[Split, Split] = ("train", "valid")


def split_folders(split: Split) -> tuple[str, str]:
    """Folders of a split's volumes, best first: v2, whose voxels are HU, then v1."""
    return f"{split}_fixed", split


#: Every folder name that marks a CT-RATE layout.
LAYOUT_FOLDERS = tuple(folder for split in _SPLITS for folder in split_folders(split))


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


def provenance_of(path: str) -> Provenance:
    """What a path with forward slashes says: ``…_fixed`` is v2, ``dataset/train`` is v1."""
    folders = path.split("/")[:-1]
    if any(f"{split}_fixed" in folders for split in _SPLITS):
        return "fixed"
    pairs = itertools.pairwise(folders)
    return "v1" if any(a == "dataset" and b in _SPLITS for a, b in pairs) else "unknown"
