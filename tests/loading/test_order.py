"""The order of an epoch, and how it is dealt out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctgpu.loading.order import EpochOrder, Share

SHARDS = [5, 1, 7, 0, 5]
ORDER_3_0 = [6, 13, 0, 11, 1, 8, 5, 7, 10, 3, 4, 9, 15, 2, 17, 16, 12, 14]


def order(**options: object) -> EpochOrder:
    values = {"shuffle": True, "seed": 3, "window_bytes": None} | options
    return EpochOrder(SHARDS, 100, **values)  # type: ignore[arg-type]


def test_without_shuffling_it_is_the_order_of_the_data_set() -> None:
    assert order(shuffle=False).of(4).tolist() == list(range(18))


def test_seed_and_epoch_decide_the_order_in_every_version() -> None:
    # Written down: a resumed run must find it again, whatever NumPy it has.
    assert order().of(0).tolist() == ORDER_3_0
    others = [order(seed=4).of(0).tolist(), order().of(1).tolist()]
    assert all(other != ORDER_3_0 and sorted(other) == list(range(18)) for other in others)


@pytest.mark.parametrize("window_samples", [1, 6, 8, 18])
def test_a_window_mixes_only_shards_that_fit_it(window_samples: int) -> None:
    found = order(window_bytes=100 * window_samples).of(2)
    assert sorted(found.tolist()) == list(range(18))
    shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)[found]
    # At any time, the shards that are begun and not finished fit the window, or it is just one.
    for at in range(18):
        active = set(shard_of[: at + 1]) & set(shard_of[at + 1 :])
        size = sum(SHARDS[shard] for shard in active)
        assert len(active) <= 1 or size <= window_samples


def test_a_window_of_several_shards_does_mix_them() -> None:
    found = order(window_bytes=1200).of(0)
    shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)[found]
    changes = np.count_nonzero(np.diff(shard_of))
    assert changes > len(SHARDS)


@given(
    total=st.integers(1, 60),
    position=st.integers(0, 60),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 6),
    drop_last=st.booleans(),
)
def test_steps_are_equal_and_together_they_are_the_order(
    total: int, position: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    position = min(position, total)
    ranks = [Share(batch_size, rank, world_size, drop_last) for rank in range(world_size)]
    steps = ranks[0].steps(total - position)
    seen: list[int] = []
    at = position
    for _ in range(steps):
        batches = [rank.batch(total, at) for rank in ranks]
        assert len({len(batch) for batch in batches}) == 1
        assert 1 <= len(batches[0]) <= batch_size
        seen += itertools.chain(*batches)
        at = ranks[0].after(total, at)
    assert seen == list(range(position, position + len(seen)))
    repeated = len(seen) - (total - position)
    if drop_last:
        assert -world_size * batch_size < repeated <= 0
    else:
        assert 0 <= repeated < world_size
        assert at == total
