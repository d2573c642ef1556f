"""Masks of raw volumes: those of the shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from online_cases import same

import ctgpu
from ctgpu.errors import UsageError
from ctgpu.loading import RawDataset, make_loader
from ctgpu.spec import Spec
from ctgpu.testing.masks import lay_out_with_masks
from support.phantoms import SPACING_MM, chest

SPEC = Spec(target_spacing_mm=(6.0, 7.0, 9.0), shape_hwd=(44, 36, 30))
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module", params=[False, True], ids=["numbers", "a file each"])
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masked") / "scans"
    scans = {name: chest((60, 56, 40), n).voxels.astype(np.int16) for n, name in enumerate(NAMES)}
    return lay_out_with_masks(root, scans, SPACING_MM, binary=request.param)


def options(described: Path, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"source": described.parent / "scans", "dataset": described}
    return asked | {"spec": SPEC, "device": "cpu", "samples_per_shard": 2} | more


def alike(raw: RawDataset, shards: Path, **loading: Any) -> bool:
    made, stored = make_loader(raw, 2, **loading), make_loader(shards, 2, **loading)
    pairs = list(zip(made, stored, strict=True))
    return len(pairs) > 1 and all(same(a, b) and a["mask"].equal(b["mask"]) for a, b in pairs)


@pytest.mark.parametrize("crop", ["centre", "mask"])
def test_they_are_those_of_the_shards(described: Path, tmp_path: Path, crop: Any) -> None:
    asked = options(described)
    asked["spec"] = spec = Spec(
        target_spacing_mm=SPEC.target_spacing_mm, shape_hwd=SPEC.shape_hwd, crop=crop
    )
    ctgpu.build(tmp_path / "shards", **asked)
    raw = RawDataset(**asked)
    assert raw.mask_labels
    assert alike(raw, tmp_path / "shards", shuffle=True, seed=3)
    # Boxes in the volume, in its padding, and over its edge.
    for box in ((9, 8, 7), (2, 3, 4), spec.shape_hwd):
        assert alike(raw, tmp_path / "shards", random_crop_hwd=box, seed=5)
    one, other = raw[2], ctgpu.loading.VolumeDataset(tmp_path / "shards")[2]
    assert one["mask"].any()
    assert np.array_equal(one["mask"], other["mask"])
    assert raw.metadata(1) == ctgpu.loading.VolumeDataset(tmp_path / "shards").metadata(1)


def test_those_that_are_finished_are_read(described: Path, tmp_path: Path) -> None:
    asked = options(described)
    ctgpu.build(tmp_path / "whole", **asked)
    ctgpu.build(tmp_path / "part", **asked, shards=range(1))
    raw = RawDataset(**asked, shards=tmp_path / "part")
    assert alike(raw, tmp_path / "whole")


def test_without_them_nothing_is_read_of_them(described: Path, tmp_path: Path) -> None:
    source = tmp_path / "scans"
    shutil.copytree(described.parent / "scans", source)
    raw = RawDataset(**options(described, source=source, masks=False))
    assert raw.masks is None
    assert "mask" not in next(iter(make_loader(raw, 2)))


def test_what_is_written_through_has_none(described: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write_shards keeps volumes alone, and this data set"):
        RawDataset(**options(described), write_shards=tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    RawDataset(**options(described), masks=False, write_shards=tmp_path / "shards")
