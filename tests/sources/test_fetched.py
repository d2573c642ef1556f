"""The bytes of one volume, and what decodes them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ctgpu.buffers import BufferPool
from ctgpu.data_sets.fields import ArrayRule
from ctgpu.errors import DecodeError, UsageError
from ctgpu.sources.fetched import fetch_file
from support.data_set_copies import marked, write_nifti

VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """A bare array, whose axes are (D, H, W)."""
    np.savez_compressed(tmp_path / "a.npz", scan=VOXELS.transpose(2, 0, 1), other=np.zeros(3))
    return tmp_path / "a.npz"


def test_a_file_is_fetched_as_it_is_stored_and_decoded_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.nii.gz"
    write_nifti(path, marked(0), codes="LPS")
    pool = BufferPool()
    fetched = fetch_file(path, pool.acquire)
    assert fetched.path == "a.nii.gz"
    assert fetched.size_bytes == path.stat().st_size
    assert bytes(fetched.buffer.bytes) == path.read_bytes()
    assert fetched.inflated_bytes >= len(gzip.decompress(path.read_bytes()))
    raw = fetched.decode(pool)
    assert np.array_equal(raw.voxels, marked(0))
    raw.release()
    assert pool.lent_bytes == 0


def test_a_rule_says_what_a_bare_array_does_not(array: Path) -> None:
    pool = BufferPool()
    rule = ArrayRule(member="scan", axes="DHW", spacing_mm=(1.0, 2.0, 3.0))
    fetched = fetch_file(array, pool.acquire)
    raw = type(fetched)(fetched.path, fetched.buffer, rule).decode(pool)
    assert np.array_equal(raw.voxels, VOXELS)
    raw.release()
    assert pool.lent_bytes == 0


def test_what_is_not_decoded_is_given_back(array: Path) -> None:
    pool = BufferPool()
    fetched = fetch_file(array, pool.acquire)
    assert pool.lent_bytes > 0
    fetched.release()
    assert pool.lent_bytes == 0


def test_what_is_no_volume_gives_its_buffer_back_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    pool = BufferPool()
    fetched = fetch_file(tmp_path / "a.npz", pool.acquire)
    with pytest.raises(DecodeError, match=r"a\.npz"):
        fetched.decode(pool)
    assert pool.lent_bytes == 0


def test_no_more_is_inflated_than_is_allowed(array: Path) -> None:
    pool = BufferPool()
    with pytest.raises(DecodeError):
        fetch_file(array, pool.acquire).decode(pool, limit_bytes=10)
    assert pool.lent_bytes == 0


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pool = BufferPool()
    with pytest.raises(UsageError, match=r"none\.npz cannot be read: No such file"):
        fetch_file(tmp_path / "none.npz", pool.acquire)
    with pytest.raises(UsageError, match="cannot be read"):
        fetch_file(tmp_path, pool.acquire)
    assert pool.lent_bytes == 0
