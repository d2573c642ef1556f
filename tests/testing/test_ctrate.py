"""Laid-out sources and phantoms, read back by others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctgpu.sources.folder import FolderSource
from ctgpu.sources.selection import select
from ctgpu.sources.tables import Tables
from ctgpu.testing.ctrate import RESCALE_PAIR, Volume, chest_phantom, lay_out_ct_rate
from ctgpu.volume.intensity import HuEvidence, check_hu
from ctgpu.volume.raw import Rescale

SPACING = (4.0, 4.5, 5.0)


def volume(seed: int = 0) -> Volume:
    return Volume(chest_phantom((24, 20, 18), SPACING, seed), SPACING)


def test_the_phantom_is_hu_by_the_guard_and_not_when_rescaled_again() -> None:
    voxels = chest_phantom((96, 96, 64), (3.5, 3.5, 5.0))
    assert voxels.dtype == np.int16
    assert voxels.flags.f_contiguous
    check_hu(voxels, Rescale())
    evidence = HuEvidence.measure(voxels, Rescale())
    assert evidence is not None
    assert evidence.soft_tissue > 0.1
    assert evidence.air_and_lung > 0.2
    assert (voxels > 500).any()
    twice = voxels - 1024
    with pytest.raises(Exception, match="rescaled twice"):
        check_hu(twice.astype(np.int16), Rescale())
    raw = (voxels.astype(np.int32) + 1024).astype(np.int16)
    with pytest.raises(Exception, match="never rescaled"):
        check_hu(raw, Rescale())


def test_phantoms_are_decided_by_their_seed() -> None:
    one, again, other = (chest_phantom((24, 24, 16), SPACING, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("nested", [True, False])
def test_nifti_source(tmp_path: Path, nested: bool) -> None:
    volumes = {"valid_1_a_1": volume(1), "valid_1_a_2": volume(2), "valid_2_a_1": volume(3)}
    paths = lay_out_ct_rate(tmp_path, volumes, nested=nested, no_chest=["valid_2_a_1"])
    depth = "valid_1/valid_1_a/" if nested else ""
    assert paths["valid_1_a_2"] == tmp_path / f"dataset/valid_fixed/{depth}valid_1_a_2.nii.gz"
    for study_id, path in paths.items():
        image = nibabel.load(path)
        assert np.array_equal(np.asanyarray(image.dataobj), volumes[study_id].voxels)
        assert np.allclose(image.header.get_zooms(), SPACING)
        assert image.header.get_data_dtype() == np.int16
    source = FolderSource(tmp_path)
    tables = Tables.load(source, "valid")
    samples, counts = select(source.list_volumes("valid"), tables)
    assert [s.study_id for s in samples] == ["valid_1_a_1", "valid_1_a_2"]
    assert counts["without a chest"] == 1
    assert counts["without labels"] == counts["without a report"] == 0
    row = tables.row("valid_1_a_2")
    assert row.spacing_mm == SPACING
    assert row.rescale_pair == RESCALE_PAIR
    assert row.shape_hint == (24, 20, 18)
    assert set(row.labels.tolist()) == {0.0, 1.0}
    assert "case 1" in row.text


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("member", ["arr_0", "data", "volume"])
@pytest.mark.parametrize("compressed", [True, False])
def test_npz_source(tmp_path: Path, order: str, member: str, compressed: bool) -> None:
    paths = lay_out_ct_rate(
        tmp_path,
        {"train_1_a_1": volume()},
        split="train",
        format=".npz",
        order=order,  # type: ignore[arg-type]
        npz_member=member,  # type: ignore[arg-type]
        compressed=compressed,
    )
    with np.load(paths["train_1_a_1"], allow_pickle=False) as archive:
        voxels = archive[member]
        assert np.array_equal(voxels, volume().voxels)
        assert voxels.flags.f_contiguous == (order == "F")
        if member == "volume":
            assert json.loads(archive["metadata"].tobytes()) == {"spacing": list(SPACING)}
    assert Tables.load(FolderSource(tmp_path), "train").row("train_1_a_1").has_labels


def test_v1_voxels_need_the_pair_of_the_csv(tmp_path: Path) -> None:
    paths = lay_out_ct_rate(tmp_path, {"valid_1_a_1": volume()}, fixed=False, format=".nii")
    assert "dataset/valid/" in paths["valid_1_a_1"].as_posix()
    stored = np.asanyarray(nibabel.load(paths["valid_1_a_1"]).dataobj)
    slope, intercept = RESCALE_PAIR
    assert np.array_equal(stored * slope + intercept, volume().voxels)


def test_the_same_volume_is_laid_out_in_the_same_bytes(tmp_path: Path) -> None:
    for name, format in (("a", ".nii.gz"), ("b", ".npz")):
        one, two = (
            lay_out_ct_rate(tmp_path / name / str(k), {"v": volume()}, format=format)["v"]  # type: ignore[arg-type]
            for k in range(2)
        )
        assert one.read_bytes() == two.read_bytes()


def test_real_files_are_linked_or_converted(tmp_path: Path, real_ct: Path) -> None:
    given = real_ct / "ts_example_ct_sm.nii.gz"
    linked = lay_out_ct_rate(tmp_path / "nii", {"valid_1_a_1": given})["valid_1_a_1"]
    assert linked.samefile(given)
    packed = lay_out_ct_rate(tmp_path / "npz", {"valid_1_a_1": given}, format=".npz")
    with np.load(packed["valid_1_a_1"]) as archive:
        assert np.array_equal(archive["arr_0"], np.asanyarray(nibabel.load(given).dataobj))
    plain = lay_out_ct_rate(tmp_path / "plain", {"valid_1_a_1": given}, format=".nii")
    assert plain["valid_1_a_1"].stat().st_size > len(gzip.decompress(given.read_bytes())) * 0.9
    for root in ("nii", "npz", "plain"):
        row = Tables.load(FolderSource(tmp_path / root), "valid").row("valid_1_a_1")
        assert row.spacing_mm == (3.0, 3.0, 3.0)
