"""The box of the patient, without the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from crop_cases import BODY, FOREGROUND, SPACING_MM, crop, holds, largest_component, on_a_table


@pytest.mark.parametrize("gap_mm", [5, 12, 30])
def test_the_body_is_the_patient_without_the_table(gap_mm: float) -> None:
    voxels = on_a_table(gap_mm, margin=30)
    patient = largest_component(voxels > -500)
    box, all_of_it = crop(voxels, BODY), crop(voxels, FOREGROUND)
    assert holds(box, patient)
    assert holds(all_of_it, box)
    # The table is wider, and lies below.
    assert all_of_it.start[0] < box.start[0]
    assert all_of_it.stop[1] > patient.stop[1] + gap_mm / SPACING_MM[1]
    assert holds(patient.widened((2, 2, 2), voxels.shape), box)


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.8, 1.0), (1.0, 0.6, 5.0), (3.0, 3.0, 3.0)], ids=str)
def test_a_round_body_is_cut_nowhere(spacing_mm: tuple[float, float, float]) -> None:
    """At every place between the voxels that are looked at."""
    random = np.random.default_rng(5)
    shape = [int(110 / s) for s in spacing_mm]
    axes = [np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)]
    for _ in range(30):
        centre, radii = 55 + random.uniform(-8, 8, 3), random.uniform(8, 44, 3)
        near = [((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)]
        inside = near[0][:, None, None] + near[1][:, None] + near[2] < 1
        voxels = np.where(inside, 40, -1000).astype(np.int16)
        box, body = crop(voxels, BODY, spacing_mm), largest_component(inside)
        assert holds(box, body)
        assert holds(body.widened((1, 1, 1), shape), box)


@pytest.mark.slow
@pytest.mark.parametrize("hu", [-500.0, -300.0])
def test_real_bodies_are_cut_nowhere(real_ct: Path, hu: float) -> None:
    for path in sorted(real_ct.glob("*.nii.gz")):
        image: Any = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        h, w, d = map(float, image.header.get_zooms())
        box = crop(voxels, replace(BODY, foreground_hu=hu), (h, w, d))
        body = largest_component(voxels > hu)
        assert holds(box, body), path.name
        assert holds(crop(voxels, replace(FOREGROUND, foreground_hu=hu), (h, w, d)), box)
        assert holds(body.widened((3, 3, 3), voxels.shape), box), path.name


def test_the_table_of_a_real_chest_is_left_out(real_ct: Path) -> None:
    image: Any = nibabel.load(real_ct / "qin_QIN-LSC-0028.nii.gz")
    voxels = np.asarray(image.dataobj)
    h, w, d = map(float, image.header.get_zooms())
    assert crop(voxels, FOREGROUND, (h, w, d)).stop[1] == 484
    assert crop(voxels, BODY, (h, w, d)).stop[1] == 415


def test_of_two_bodies_of_one_size_the_same_is_taken_in_any_memory() -> None:
    voxels = np.full((40, 40, 40), -1000, np.int16)
    voxels[5:15, 25:35, 5:15] = voxels[25:35, 5:15, 25:35] = 0
    boxes = {crop(np.array(voxels, order=order), BODY, (1, 1, 1)) for order in ("C", "F")}
    assert len(boxes) == 1
