"""Files that were put in the place of volumes."""

from __future__ import annotations

import codecs

import numpy as np
import pytest

from ctgpu.decode.mistaken import mistaken_for
from ctgpu.errors import DecodeError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 1234\n"

MISTAKEN = {
    "LFS": (LFS, "Git LFS pointer .* `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s99--4d7a21.nii.gz\n", "`git annex get`"),
    "HTML": (b"\n  <!DOCTYPE html><html><body>Log in</body></html>", "HTML page"),
    "HTML with a mark": (codecs.BOM_UTF8 + b"<HTML>", "HTML page"),
    "HTML in UTF-16": ("<html lang=en>".encode("utf-16"), "HTML page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML document"),
    "DICOM": (bytes(128) + b"DICM" + bytes(300), "DICOM"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.npz"])
@pytest.mark.parametrize("case", MISTAKEN)
def test_a_file_in_the_place_of_a_volume_is_called_what_it_is(case, name, load):
    content, message = MISTAKEN[case]
    with pytest.raises(DecodeError, match=f"^{name} .*{message}") as caught:
        load(name, content)
    assert str(caught.value).isprintable()


def test_what_a_volume_begins_with_is_never_mistaken(make_nifti, make_npz, load):
    voxels = np.arange(24, dtype="i2").reshape(2, 3, 4)
    cal_min = np.frombuffer(b"DICM", "<f4")[0]
    nifti = make_nifti(voxels, cal_min=cal_min)
    assert nifti[128:132] == b"DICM"
    np.testing.assert_array_equal(load("a.nii", nifti).voxels, voxels)
    for data in (make_nifti(voxels), make_nifti(voxels, compress=True), make_npz(volume=voxels)):
        assert mistaken_for(data[:512]) is None
