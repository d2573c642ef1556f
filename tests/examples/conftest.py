"""A small data set whose scans show what their labels and reports say."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import LABEL_NAMES, Volume, lay_out_ct_rate, table_names
from stored import rotated
from support.phantoms import SPACING_MM, chest, study_ids

STUDIES = study_ids(12)
#: The last one has no row in the table of labels, and the first one a blank in it.
LABELLED = STUDIES[:-1]


def scan_of(number: int) -> Volume:
    """How dense the lungs are tells the labels, and with the place of a dense block the report."""
    voxels = chest((60, 56, 40), number).voxels.copy()
    voxels[(voxels > -950) & (voxels < -700)] += 300 * (number % 3)
    h, w = 30 * (number // 6), 28 * (number // 3 % 2)
    voxels[h : h + 28, w : w + 26, 8:32] += 400
    affine = np.array([[-1, 0, 0, 90], [0, -1, 0, 70], [0, 0, 1, -30], [0, 0, 0, 1]], float)
    # Every other patient lies askew.
    askew = rotated(7, 1) @ rotated(9, 2) if number % 2 else np.eye(4)
    return Volume(voxels, SPACING_MM, askew @ affine @ np.diag([*SPACING_MM, 1]))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scans, laid out as CT-RATE's; not to be changed."""
    folder = tmp_path_factory.mktemp("examples") / "source"
    lay_out_ct_rate(folder, {study: scan_of(n) for n, study in enumerate(STUDIES)})
    table = folder / table_names("labels", "valid")[0]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][LABEL_NAMES[0]] = ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:-1])
    return folder


@pytest.fixture(scope="session")
def shards(source: Path) -> Path:
    """The same, built; not to be changed."""
    spec = Spec(target_spacing_mm=(5.0, 5.0, 6.0), shape_hwd=(48, 40, 36))
    folder = source.parent / "shards"
    report = ctgpu.build(folder, source=source, spec=spec, samples_per_shard=5, device="cpu")
    assert report.exit_code == 0
    return folder
