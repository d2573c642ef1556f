"""What holds for every format."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ctgpu.decode import decode, inflated_size
from ctgpu.errors import DecodeError


@pytest.mark.parametrize("name", ["a.NPZ", "a.Nii.GZ", "a.NII"])
def test_suffixes_in_any_case(name, make_nifti, make_npz, load):
    voxels = np.arange(24, dtype="i2").reshape(2, 3, 4)
    data = make_npz(volume=voxels) if "NPZ" in name else make_nifti(voxels)
    np.testing.assert_array_equal(load(name, data).voxels, voxels)


@pytest.mark.parametrize("name", ["a.dcm", "a.gz", "npz", ""])
def test_other_files_are_refused(name, load):
    with pytest.raises(DecodeError, match="wanted a name in"):
        load(name, b"anything")
    assert inflated_size(name, np.zeros(9, np.uint8)) == 0


def test_the_stored_bytes_go_back_once_they_are_inflated(make_nifti, fill, pool):
    buffer = fill(make_nifti(np.zeros((8, 8, 8), "i2"), compress=True))
    volume = decode("a.nii.gz", buffer, pool)
    with pytest.raises(ValueError, match="released"):
        _ = buffer.bytes
    volume.release()
    assert pool.lent_bytes == 0
    again = pool.acquire(352 + 1024)
    assert pool.idle_bytes < 1 << 20
    again.release()


def test_an_interruption_gives_everything_back(make_nifti, fill, pool, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctgpu.decode.nifti.gzip_into", interrupt)
    buffer = fill(make_nifti(np.zeros((8, 8, 8), "i2"), compress=True))
    with pytest.raises(KeyboardInterrupt):
        decode("a.nii.gz", buffer, pool)
    assert pool.lent_bytes == 0


def test_importing_the_package_does_not_import_nibabel():
    import subprocess

    code = "import sys, ctgpu.decode; print('nibabel' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.split() == [b"False"]
