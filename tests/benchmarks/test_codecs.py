"""The codecs that ``.ctz`` is held against give back what they were given."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers.codecs import OPENERS, installed


@pytest.mark.parametrize("name", OPENERS)
def test_a_codec_loses_nothing(name: str) -> None:
    opened, not_run = installed()
    if name in not_run:
        pytest.skip(not_run[name])
    voxels = (np.arange(5 * 7 * 300) % 97).astype(np.float16).reshape(5, 7, 300)
    member, out = opened[name].encode(voxels), np.empty_like(voxels)
    opened[name].decode(member, out)
    assert len(member) < voxels.nbytes
    assert np.array_equal(out, voxels)
    opened[name].decode(np.frombuffer(member, np.uint8), out)
    assert np.array_equal(out, voxels)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.codecs.find_spec", lambda name: None)
    opened, not_run = installed()
    assert opened == {}
    assert not_run.keys() == OPENERS.keys()
    assert not_run["zstd 3"] == "zstandard is not installed"
