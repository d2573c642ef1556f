"""Folders that nobody has described, and what is made of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ctgpu.data_sets import Description
from support.data_set_copies import marked, write_nifti


def scans(root: Path, *names: str) -> Path:
    """A folder of small volumes."""
    for seed, name in enumerate(names):
        write_nifti(root / f"{name}.nii.gz", marked(seed), codes="LPS")
    return root


def named(root: Path, *paths: str) -> Path:
    """Files of which nothing but the name is looked at."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"a volume")
    return root


def named_scans(root: Path, *names: str) -> Path:
    """NIfTI files likewise."""
    return named(root, *(f"{name}.nii.gz" for name in names))


def found(text: str) -> Description:
    """What it says to a build."""
    return Description.of(tomllib.loads(text))


def remarks(text: str) -> str:
    """What the comments say, in one line."""
    lines = (line[1:] for line in text.splitlines() if line.startswith("#"))
    return " ".join(" ".join(lines).split())


def with_all_offered(text: str) -> Description:
    """What it says once the # is taken away from every field and section that is offered."""
    offered = re.sub(r"^# (?=\[[\w.\[\]]+\]$|\w+ = [\[\"'])", "", text, flags=re.MULTILINE)
    assert offered != text
    return found(offered)
