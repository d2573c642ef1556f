"""Chests, their names and contracts, of which many tests build."""

from __future__ import annotations

from collections.abc import Iterable

from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom

#: Of a chest, whose axes lead to the left, back and head; no two are alike.
SPACING_MM = (3.5, 3.0, 5.0)

#: A chest of (90, 80, 60) voxels, resampled, and padded along H and W.
SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(90, 90, 50))
#: The same contract on a command line.
SPEC_FLAGS = ("--shape", "90,90,50", "--spacing", "4,4,6")
#: Of smaller outputs, which are faster to make.
COARSE_SPEC = Spec(target_spacing_mm=(6.0, 6.0, 8.0), shape_hwd=(60, 56, 30))


def study_ids(count: int) -> list[str]:
    """The first names of CT-RATE's split ``valid``."""
    return [f"valid_{n}_a_1" for n in range(1, count + 1)]


def chest(shape_hwd: tuple[int, int, int] = (90, 80, 60), seed: int = 0) -> Volume:
    """A chest as a source holds it."""
    return Volume(chest_phantom(shape_hwd, SPACING_MM, seed), SPACING_MM)


def chests(
    names: Iterable[str], shape_hwd: tuple[int, int, int] = (90, 80, 60), first_seed: int = 0
) -> dict[str, Volume]:
    """A chest for each name, no two of them alike."""
    return {name: chest(shape_hwd, seed) for seed, name in enumerate(names, first_seed)}
