"""The slots of an epoch: one for each planned sample, also for those that have failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ctgpu.loading.catalogue import Shard
from ctgpu.loading.order import EpochOrder, Weights

Indices = npt.NDArray[np.int64]

#: In :attr:`Slots.sample_of`: the planned sample has failed.
HOLE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """What an order is made of: it is the same whatever has become of the samples.

    Attributes
    ----------
    study_ids : sequence of str
        Of each slot.
    shard_of : numpy.ndarray
        Which shard each is planned for.
    shards : int
        How many there are.
    sample_of : numpy.ndarray
        Number of the sample in its data set, or :data:`HOLE`.
    """

    study_ids: Sequence[str]
    shard_of: Indices
    shards: int
    sample_of: Indices

    def __len__(self) -> int:
        return len(self.sample_of)

    @property
    def holes(self) -> int:
        """How many have no sample."""
        return int(np.count_nonzero(self.sample_of == HOLE))

    def without_holes(self) -> Slots:
        """The samples alone, as they were ordered before holes were counted."""
        good = np.flatnonzero(self.sample_of != HOLE)
        study_ids = [self.study_ids[slot] for slot in good.tolist()]
        return Slots(study_ids, self.shard_of[good], self.shards, self.sample_of[good])

    def spread(self, weights: Weights | None) -> Weights | None:
        """The weights of the slots, of those of the samples: a hole is never drawn."""
        if weights is None:
            return None
        return np.where(self.sample_of == HOLE, 0.0, weights[self.sample_of])

    def arrange(self, order: EpochOrder) -> EpochOrder:
        """The order of these slots.

        Parameters
        ----------
        order : EpochOrder
            How, of no shards; its weights are those of the samples.
        """
        return replace(
            order,
            shard_samples=np.bincount(self.shard_of, minlength=self.shards).tolist(),
            numbers=np.argsort(self.shard_of, kind="stable"),
            weights=self.spread(order.weights),
        )

    @classmethod
    def of_samples(cls, study_ids: Sequence[str], shard_of: Indices, shards: int) -> Slots:
        """A slot for each sample, and no other."""
        return cls(study_ids, shard_of, shards, np.arange(len(study_ids)))

    @classmethod
    def of_shards(cls, shards: Sequence[Shard]) -> Slots:
        """Those of whole shards, whose samples are counted from the first shard to the last."""
        study_ids: list[str] = []
        shard_of: list[int] = []
        sample_of: list[int] = []
        first = 0
        for number, shard in enumerate(shards):
            slots = list(enumerate((entry.study_id for entry in shard.samples), first))
            # From the last one on, so that places before it stay.
            for place, study_id in reversed(shard.holes):
                slots.insert(place, (HOLE, study_id))
            sample_of += [sample for sample, _ in slots]
            study_ids += [study_id for _, study_id in slots]
            shard_of += [number] * len(slots)
            first += len(shard.samples)
        return cls(
            study_ids, np.array(shard_of, np.int64), len(shards), np.array(sample_of, np.int64)
        )
