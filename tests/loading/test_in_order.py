"""The sampler by which Lightning tells that nothing is shuffled."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.iteration import Progress

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_epoch_of_its_sampler_is_the_loaders(hwd: Path, shuffle: bool) -> None:
    loader = make_loader(hwd, 2, shuffle=shuffle)
    loader.sampler.set_epoch(5)
    assert loader.epoch == 5
    assert isinstance(loader.sampler, torch.utils.data.SequentialSampler) is not shuffle
    assert loader.sampler is loader.sampler
    with pytest.raises(UsageError, match="epochs count from 0"):
        loader.sampler.set_epoch(-1)
    if not shuffle:
        assert list(loader.sampler) == list(range(11))
    # It goes at once with its memory, not when cycles are collected.
    left = weakref.ref(loader)
    del loader
    assert left() is None


def test_it_is_torchs_own_and_counts_in_the_progress_that_it_was_given(hwd: Path) -> None:
    from ctgpu.loading.in_order import InOrder

    dataset, progress = VolumeDataset(hwd).take([4, 4, 2]), Progress()
    sampler = InOrder(dataset, progress)
    assert isinstance(sampler, torch.utils.data.SequentialSampler)
    assert list(sampler) == [0, 1, 2]  # places in what is taken, not in the whole
    assert len(sampler) == 3
    sampler.set_epoch(7)
    assert progress.place.epoch == 7
    assert list(sampler) == [0, 1, 2]
