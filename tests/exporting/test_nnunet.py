"""Cases as nnU-Net v2 reads them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting_cases import SPEC, contents, export

import ctgpu
from ctgpu.errors import SampleError, UsageError
from ctgpu.exporting.nnunet import (
    blocks_and_chunks,
    class_locations,
    in_nnunet_type,
    require_blosc2,
    write_case,
)
from ctgpu.loading import VolumeDataset
from ctgpu.testing.masks import LABELS
from stored import chest_as, save

BLOSC2 = "blosc2"


@pytest.mark.parametrize(
    ("shape", "item_bytes", "blocks", "chunks"),
    [
        # What `comp_blosc2_params` of nnU-Net 2.8.1 says, for patches of 128 voxels.
        ((240, 480, 480), 4, (32, 32, 32), (96, 128, 128)),
        ((240, 480, 480), 1, (64, 64, 32), (192, 192, 160)),
        ((700, 512, 512), 4, (32, 32, 32), (128, 128, 96)),
        ((50, 90, 90), 4, (32, 32, 32), (50, 90, 90)),
        ((30, 56, 60), 1, (30, 56, 60), (30, 56, 60)),
        ((3, 2000, 7), 2, (3, 128, 7), (3, 192, 7)),
        ((1, 1, 1), 4, (1, 1, 1), (1, 1, 1)),
    ],
)
def test_volumes_are_divided_as_nnunet_divides_them(
    shape: Any, item_bytes: int, blocks: Any, chunks: Any
) -> None:
    assert blocks_and_chunks(shape, item_bytes) == (blocks, chunks)


@pytest.mark.parametrize(("largest", "dtype"), [(127, np.int8), (128, np.int16), (32767, np.int16)])
def test_a_mask_takes_the_smallest_of_its_types(largest: int, dtype: Any) -> None:
    found = in_nnunet_type(np.array([[[0, largest]]], np.uint16))
    assert found.dtype == dtype
    assert found.max() == largest


def test_a_label_that_it_cannot_hold_is_refused() -> None:
    with pytest.raises(SampleError, match="the label 32768, and nnU-Net keeps labels up to 32767"):
        in_nnunet_type(np.array([[[0, 32768]]], np.uint16))


def test_locations_are_voxels_of_the_label_and_not_too_many() -> None:
    seg = np.zeros((1, 40, 30, 20), np.int8)
    seg[0, 5:35] = 1  # 18,000 voxels
    seg[0, 2, 3, 4] = 2
    found = class_locations(seg, [1, 2, 3])
    assert {label: len(places) for label, places in found.items()} == {1: 10_000, 2: 1, 3: 0}
    assert (seg[tuple(found[1].T)] == 1).all()
    assert len(np.unique(found[1], axis=0)) == 10_000
    assert found[2].tolist() == [[0, 2, 3, 4]]
    assert found[3].shape == (0, 4)
    np.testing.assert_array_equal(found[1], class_locations(seg, [1])[1])


def test_a_case_is_what_nnunet_opens(tmp_path: Path, made: Path) -> None:
    blosc2 = pytest.importorskip(BLOSC2)
    (exported,) = export(made, tmp_path, to="blosc2", samples=["a"])
    assert sorted(contents(tmp_path)) == ["a.b2nd", "a.json", "a.pkl", "a_seg.b2nd"]
    assert {path.name for path in exported.files} == contents(tmp_path).keys()
    # As nnUNetDatasetBlosc2.load_case opens them.
    options = {"mode": "r", "dparams": {"nthreads": 1}, "mmap_mode": "r"}
    data, seg = (
        blosc2.open(urlpath=str(tmp_path / name), **options) for name in ("a.b2nd", "a_seg.b2nd")
    )
    sample = VolumeDataset(made)["a"]
    # Its axes are those of SimpleITK's arrays: D, W, H.
    np.testing.assert_array_equal(
        data[:], sample["volume"].transpose(0, 1, 3, 2).astype(np.float32)
    )
    np.testing.assert_array_equal(seg[:], sample["mask"].transpose(0, 1, 3, 2))
    assert (data.dtype, seg.dtype) == (np.float32, np.int8)
    assert (data.chunks[1:], data.blocks[1:]) == blocks_and_chunks(data.shape[1:], 4)[::-1]
    properties = pickle.loads((tmp_path / "a.pkl").read_bytes())
    affine = np.array(VolumeDataset(made).metadata("a")["affine"])
    lengths_mm = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(properties["spacing"], lengths_mm[::-1])
    assert sorted(properties["class_locations"]) == sorted(LABELS.values())
    for label, places in properties["class_locations"].items():
        assert (seg[:][tuple(places.T)] == label).all()


def test_a_case_without_a_mask_is_its_volume_alone(tmp_path: Path) -> None:
    pytest.importorskip(BLOSC2)
    volume = np.zeros((4, 5, 6), np.int16)
    assert write_case(tmp_path, "x", volume, None, (1.0, 2.0, 3.0), {}) == [tmp_path / "x.b2nd"]


def test_a_name_that_nnunet_takes_for_a_mask_is_refused(tmp_path: Path) -> None:
    pytest.importorskip(BLOSC2)
    save(tmp_path / "scans/x_seg.nii", chest_as("LPS"))
    ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    with pytest.raises(UsageError, match=r"x_seg\.b2nd for the mask of another case; leave"):
        export(tmp_path / "out", tmp_path / "to", to="blosc2")
    assert len(export(tmp_path / "out", tmp_path / "to", to="npy")) == 1


def test_a_missing_library_is_one_sentence(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, BLOSC2, None)
    with pytest.raises(UsageError, match=r"need blosc2.*\[export\].*or export as npy or nifti"):
        require_blosc2()
    with pytest.raises(UsageError, match="need blosc2"):
        export(made, tmp_path / "to", to="blosc2")
    assert not (tmp_path / "to").exists()
