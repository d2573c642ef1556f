"""In which order samples come, and which rank gets which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of all samples in each epoch; it knows nothing of ranks.

    Parameters
    ----------
    shard_samples : sequence of int
        Samples of each shard.
    sample_bytes : int
        Of one volume.
    shuffle : bool
        False keeps the order of the data set.
    seed : int
        From 0; another order for another seed.
    window_bytes : int or None
        Shards are drawn at random, as many at a time as have this many bytes of volumes together,
        one at least, and the samples of these are mixed.  None mixes the whole data set.
    numbers : array of int, optional
        Number of each sample, shard by shard; default those that count them in that order.
    weights : array of float, optional
        Of each sample, by its number.  If it shuffles, an epoch then draws as many samples as there
        are, with replacement, from the whole data set.
    """

    shard_samples: Sequence[int]
    sample_bytes: int
    shuffle: bool
    seed: int
    window_bytes: int | None
    numbers: Indices | None = None
    weights: Weights | None = None

    def of(self, epoch: int) -> Indices:
        """Numbers of the samples of `epoch`, in its order: each once, or drawn by weight."""
        total = sum(self.shard_samples)
        if not self.shuffle:
            return np.arange(total)
        if self.weights is not None:
            return _drawn(self.weights, self.seed, epoch)
        # Raw draws of a counter-based generator: the same in every version of NumPy.
        draws = np.random.Philox(key=[self.seed, epoch])
        ends = np.cumsum(self.shard_samples)
        shards = np.argsort(draws.random_raw(len(ends)), kind="stable")
        mixed = []
        for group in self._groups(shards):
            samples = np.concatenate(
                [np.arange(ends[s] - self.shard_samples[s], ends[s]) for s in group]
            )
            mixed.append(samples[np.argsort(draws.random_raw(len(samples)), kind="stable")])
        places = np.concatenate(mixed)
        return places if self.numbers is None else self.numbers[places]

    def _groups(self, shards: npt.NDArray[Any]) -> Iterator[list[int]]:
        group: list[int] = []
        room = self.window_bytes
        for shard in shards.tolist():
            size_bytes = self.shard_samples[shard] * self.sample_bytes
            if group and room is not None and size_bytes > room:
                yield group
                group, room = [], self.window_bytes
            group.append(shard)
            if room is not None:
                room -= size_bytes
        yield group


def _drawn(weights: Weights, seed: int, epoch: int) -> Indices:
    """As many numbers as there are weights, each drawn by them."""
    draws = np.random.Philox(key=[seed, epoch], counter=[0, 0, 2, 0]).random_raw(len(weights))
    # Divided first, so that no sum overflows; and added up one after the other, as anywhere.
    ends = np.cumsum(weights / weights.max())
    # 53 bits, below 1, so their product is below the sum; a weight of 0 has no room before its end.
    places = (draws >> np.uint64(11)) * 2.0**-53 * ends[-1]
    drawn: Indices = np.searchsorted(ends, places, side="right")
    return drawn


@dataclass(frozen=True, slots=True)
class Share:
    """How the steps of an epoch are dealt out to ranks.

    A step takes the next `batch_size` × `world_size` samples of the order; each rank has a block of
    them, and all ranks have blocks of the same size.  What is left in the end is either dropped,
    or makes one more step with smaller batches, for which as few samples as make them equal (fewer
    than there are ranks) are taken again from the beginning of the order.
    """

    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @property
    def step_samples(self) -> int:
        """Samples of one step, of all ranks together."""
        return self.batch_size * self.world_size

    def steps(self, left: int) -> int:
        """Steps that `left` samples of the order make."""
        return left // self.step_samples if self.drop_last else -(-left // self.step_samples)

    def batch(self, total: int, position: int) -> range:
        """Positions in the order, modulo its `total`, of this rank's batch of the next step."""
        size = -(-min(self.step_samples, total - position) // self.world_size)
        first = position + self.rank * size
        return range(first, first + size)

    def after(self, total: int, position: int) -> int:
        """The position after a step."""
        return min(total, position + self.step_samples)
