"""Real CT, written as series of DICOM: the bytes that their NIfTI files become."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from built import read_samples
from ctgpu.sources.dicom.private import Pseudonyms
from ctgpu.spec import Spec
from support.building import builds
from support.dicom_series import uid_of, write_series

build = builds(spec=Spec(target_spacing_mm=(1.5, 1.5, 2.0), shape_hwd=(240, 240, 120)))

# In turn, so that each way of writing is that of some scans.
WAYS = [
    *(("explicit", "single"), ("implicit", "enhanced"), ("jpeg-lossless", "single")),
    *(("jpeg-ls", "enhanced"), ("big", "single"), ("jpeg2000", "single"), ("rle", "enhanced")),
]


@pytest.mark.slow
def test_the_bytes_are_those_of_the_nifti_files(real_ct: Path, tmp_path: Path) -> None:
    paths = sorted(real_ct.glob("*.nii.gz"), key=lambda path: path.stat().st_size, reverse=True)
    nifti_folder = tmp_path / "nifti"
    nifti_folder.mkdir()
    for number, path in enumerate(paths):
        nifti, name = nibabel.load(path), path.name.removesuffix(".nii.gz")
        (nifti_folder / path.name).symlink_to(path)
        syntax, form = WAYS[number % len(WAYS)]
        write_series(
            tmp_path / "pacs" / name,
            np.asanyarray(nifti.dataobj).astype(np.int16),
            nifti.affine,
            transfer_syntax=syntax,
            form=form,
            intercept=-4096,
            series=name,
            study=name,
        )
    # Two of them are no chests: their volumes are held against each other all the same.
    options = {"axes": "stored"}
    build(tmp_path / "from_nifti", nifti_folder, **options)
    build(tmp_path / "from_dicom", tmp_path / "pacs", **options)
    register = Pseudonyms(tmp_path / "from_dicom").load()
    assert register is not None
    key_of = {series.series_uid: key for key, series in register.series.items()}
    wanted, found = read_samples(tmp_path / "from_nifti"), read_samples(tmp_path / "from_dicom")
    assert len(wanted) == len(found) == len(paths) > 0
    for name, sample in wanted.items():
        same = found[key_of[uid_of(name)]]
        assert same.volume == sample.volume, name
        np.testing.assert_allclose(same.metadata["affine"], sample.metadata["affine"], atol=1e-4)
        assert same.metadata["source"]["orientation"] == sample.metadata["source"]["orientation"]
