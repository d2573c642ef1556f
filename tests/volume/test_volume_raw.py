"""RawVolume and Rescale: small, and relied on by everything."""

from __future__ import annotations

import numpy as np

from ctgpu.buffers import BufferPool
from ctgpu.volume.raw import RawVolume, Rescale


def test_release_gives_the_memory_back_and_the_voxels_away():
    pool = BufferPool()
    buffer = pool.acquire(48)
    volume = RawVolume(buffer.array((2, 3, 4), "<i2"), buffer=buffer)
    assert volume.size_bytes == 48
    volume.release()
    assert pool.lent_bytes == 0
    assert volume.voxels.shape == (0, 0, 0)
    assert volume.buffer is None
    volume.release()
    assert pool.lent_bytes == 0


def test_a_volume_without_a_buffer_is_the_callers():
    voxels = np.zeros((2, 3, 4), np.float32)
    volume = RawVolume(voxels)
    assert volume.size_bytes == voxels.nbytes
    volume.release()
    assert voxels.shape == (2, 3, 4)


def test_which_rescale_is_the_identity():
    assert Rescale().is_identity
    assert Rescale(1, 0, "csv").is_identity
    assert not Rescale(1, -1024).is_identity
    assert not Rescale(-1, 0).is_identity


def test_volumes_do_not_share_their_metadata():
    first, second = (RawVolume(np.zeros((1, 1, 1))) for _ in range(2))
    first.metadata["a"] = 1
    assert second.metadata == {}
