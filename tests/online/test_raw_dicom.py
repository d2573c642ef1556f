"""Series of DICOM, raw: their keys are those that a data set's folder keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from online_cases import OPTIONS, same, studies

import ctgpu
from ctgpu.errors import UsageError
from ctgpu.loading import RawDataset, make_loader
from support.dicom_series import uid_of, write_series
from support.phantoms import SPACING_MM, chest

NAMES = ("A/CT", "B/CT", "C/CT")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pacs")
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    for seed, name in enumerate(NAMES):
        hu = chest((60, 56, 40), seed).voxels.astype(np.int16)
        write_series(root / name, hu, affine, series=name, study=name[0])
    return root


def test_of_a_folder_that_was_begun_it_is_what_the_shards_are(pacs: Path, tmp_path: Path) -> None:
    ctgpu.build(tmp_path / "shards", source=pacs, **OPTIONS)
    (tmp_path / "begun").mkdir()
    for name in ("plan.json", "private"):
        (tmp_path / "shards" / name).rename(tmp_path / "begun" / name)
    raw = RawDataset(pacs, plan=tmp_path / "begun", spec=OPTIONS["spec"], device="cpu")
    for name in ("plan.json", "private"):
        (tmp_path / "begun" / name).rename(tmp_path / "shards" / name)
    made, stored = make_loader(raw, 2), make_loader(tmp_path / "shards", 2)
    assert all(same(a, b) for a, b in zip(made, stored, strict=True))
    assert made.state_dict().keys() == stored.state_dict().keys()


def test_without_one_it_is_refused_but_by_uids(pacs: Path) -> None:
    with pytest.raises(UsageError, match="series of DICOM are called by keys that a data set's"):
        RawDataset(pacs, **OPTIONS)
    raw = RawDataset(pacs, keep_uids=True, **OPTIONS)
    assert studies(make_loader(raw, 2)) == sorted(uid_of(name) for name in NAMES)
