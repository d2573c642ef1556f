"""What tells Lightning that a loader does not shuffle."""

from __future__ import annotations

from torch.utils.data import SequentialSampler

from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.iteration import Progress


class InOrder(SequentialSampler):
    """torch's sampler of the samples of a loader that keeps their order.

    Nothing is drawn from it, and its epoch is the loader's.
    """

    def __init__(self, dataset: VolumeDataset, progress: Progress) -> None:
        super().__init__(dataset)
        self._progress = progress

    def set_epoch(self, epoch: int) -> None:
        """As the loader's."""
        self._progress.set_epoch(epoch)
