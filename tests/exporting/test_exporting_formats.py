"""Files that are whole, and say where a volume lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ctgpu.errors import StorageError
from ctgpu.exporting.formats import new_file, write_nifti, write_npy
from stored import rotated

AFFINE = rotated(12) @ np.diag([-0.8, -0.7, 2.0, 1.0])
AFFINE[:3, 3] = 100.0, 80.0, -300.0
VOXELS = np.arange(4 * 5 * 6).reshape(6, 5, 4).transpose(2, 1, 0)


def test_a_file_that_is_not_completed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"old")

    def stop_in_between() -> None:
        with new_file(path) as file:
            file.write(b"new")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        stop_in_between()
    assert [one.name for one in tmp_path.iterdir()] == ["x.npy"]
    assert path.read_bytes() == b"old"


def test_a_place_that_takes_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/x\.npy cannot be written: No such file"):
        write_npy(tmp_path / "none/x.npy", VOXELS)
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(StorageError, match=r"x\.npy cannot be written"):
        write_npy(tmp_path / "x.npy", VOXELS)
    assert [one.name for one in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path, mode: str) -> Any:
        path.touch()
        return open("/dev/full", "wb")

    monkeypatch.setattr(Path, "open", opened)
    # More than a buffer, so that it is writing that fails.
    voxels = np.zeros((64, 64, 64), np.float32)
    for write in (write_npy, lambda path, array: write_nifti(path, array, AFFINE)):
        with pytest.raises(StorageError, match=r"x cannot be written: No space left.*; free some"):
            write(tmp_path / "x", voxels)
        assert list(tmp_path.iterdir()) == []


def test_an_array_is_in_c_order(tmp_path: Path) -> None:
    write_npy(tmp_path / "x.npy", VOXELS)
    found = np.load(tmp_path / "x.npy")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, VOXELS)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("<f2", "f4"), ("<f4", "f4"), ("<i2", "i2"), ("|u1", "u1"), ("<u2", "u2")],
)
def test_a_nifti_has_voxels_type_and_place(tmp_path: Path, dtype: str, kept: str) -> None:
    paths = [tmp_path / name for name in ("one.nii.gz", "two.nii.gz")]
    for path in paths:
        write_nifti(path, VOXELS.astype(dtype), AFFINE)
    image: Any = nibabel.load(paths[0])
    assert image.get_data_dtype() == np.dtype(kept)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), VOXELS)
    for found, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(found, AFFINE, atol=1e-4)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_sheared_volume_has_its_affine_in_the_sform_alone(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[1, 2] += 0.4
    write_nifti(tmp_path / "x.nii.gz", VOXELS.astype(np.int16), affine)
    image: Any = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (1, 0)


def test_a_place_that_the_scan_does_not_state_is_not_called_one(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x.nii.gz", VOXELS.astype(np.int16), AFFINE, stated=False)
    image: Any = nibabel.load(tmp_path / "x.nii.gz")
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 2
