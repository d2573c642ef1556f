"""Scans with masks on disk, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from ctgpu.data_sets import named
from ctgpu.testing.masks import LABELS, labels_of, lay_out_with_masks, write_nifti


def test_labels_are_those_of_the_densities() -> None:
    hu = np.array([-1000, -850, -700, -500, -100, 40, 700]).reshape(1, 1, 7)
    assert labels_of(hu).ravel().tolist() == [0, 2, 2, 0, 1, 1, 7]
    assert set(LABELS.values()) == {1, 2, 7}


def test_files_lie_where_the_description_says(tmp_path: Path) -> None:
    hu = np.linspace(-1000, 900, 24).reshape(2, 3, 4).astype(np.int16)
    for binary in (False, True):
        root = tmp_path / str(binary)
        data_set = named(
            lay_out_with_masks(root, {"a": hu, "b": hu - 50}, (1, 2, 3), binary=binary)
        )
        assert data_set.masks is not None
        volumes = sorted(root.rglob("ct.nii.gz" if binary else "images/*.nii.gz"))
        assert len(volumes) == 2
        for name, volume, scan in zip("ab", volumes, (hu, hu - 50), strict=True):
            files = data_set.mask_files(volume.relative_to(root).as_posix(), name)
            labels = np.zeros_like(labels_of(scan))
            for number, path in files:
                image: Any = nibabel.load(root / path)
                assert image.header.get_zooms() == (1, 2, 3)
                labels += np.asarray(image.dataobj) * np.uint8(number or 1)
            assert np.array_equal(labels, labels_of(scan))


def test_an_affine_is_that_of_every_file(tmp_path: Path) -> None:
    affine = np.array([[0, 2.0, 0, 5], [-1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "a" / "b.nii.gz", np.ones((2, 3, 4), np.uint8), affine)
    image: Any = nibabel.load(path)
    assert np.allclose(image.affine, affine)
