"""What the tests of loading share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from built import read_samples
from support.phantoms import study_ids

STUDIES = study_ids(11)
#: Of these, in ``part_labelled``.
UNLABELLED = [STUDIES[n - 1] for n in (3, 7, 8)]
#: Of these, in ``with_failures``: files that are no volumes.
FAILED = tuple(STUDIES[n - 1] for n in (5, 6, 8))


def studies(batches: Iterable[Mapping[str, Any]]) -> list[str]:
    """The study ids of batches, one after the other."""
    return [study_id for batch in batches for study_id in batch["study_id"]]


def volumes(folder: Path) -> dict[str, Any]:
    """(1, D, H, W) of each sample, as a plain tar reader finds it."""
    import torch

    axes = (2, 0, 1) if folder.name == "HWD" else (0, 1, 2)
    return {
        study_id: torch.from_numpy(sample.array.transpose(axes)[None].copy())
        for study_id, sample in read_samples(folder).items()
    }


def flip_byte(tar: Path, offset: int) -> None:
    """Damage one byte of a file."""
    with tar.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))
