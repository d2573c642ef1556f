"""Other ways to train on raw volumes: each makes CT-RATE's contract of files, batch by batch.

A contender takes the files and the cores, and gives what can be iterated again and again.  MONAI's
and TorchIO's grids follow from the spacing, as their users would have them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import old_way
from ctgpu.spec import CT_RATE
from ctgpu.volume.raw import Spacing

Opener = Callable[[Sequence[Path], Spacing, int], Iterable[Any]]


class OldWay:
    """Files, each read and preprocessed in the old way; a torch data set."""

    def __init__(self, files: Sequence[Path], spacing_mm: Spacing) -> None:
        self._files = files
        self._spacing_mm = spacing_mm

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Any:
        import torch

        torch.set_num_threads(1)  # one process per core
        made = old_way.preprocess(old_way.read(self._files[number]), self._spacing_mm)
        return torch.from_numpy(made)[None]


def old_workers(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """The old way in the workers of a torch DataLoader, one a core."""
    from torch.utils.data import DataLoader

    dataset: Any = OldWay(files, spacing_mm)
    return DataLoader(
        dataset, num_workers=cores, multiprocessing_context="spawn", persistent_workers=True
    )


def monai_threads(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """MONAI's ThreadDataLoader, a thread a core."""
    warnings.simplefilter("ignore")  # of torch and MONAI, about each other
    data = importlib.import_module("monai.data")
    transforms = importlib.import_module("monai.transforms")
    key, (lo, hi) = ("image",), (-1000.0, 1000.0)
    chain = transforms.Compose(
        [
            transforms.LoadImaged(key),
            transforms.EnsureChannelFirstd(key),
            transforms.ScaleIntensityRanged(key, lo, hi, -1.0, 1.0, clip=True),
            transforms.Spacingd(key, CT_RATE.target_spacing_mm, mode="bilinear"),
            transforms.ResizeWithPadOrCropd(key, CT_RATE.shape_hwd, constant_values=-1.0),
            transforms.CastToTyped(key, importlib.import_module("torch").float16),
        ]
    )
    dataset = data.Dataset([{"image": str(file)} for file in files], chain)
    return data.ThreadDataLoader(dataset, num_workers=cores, use_thread_workers=True)  # type: ignore[no-any-return]


def torchio_subjects(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """TorchIO's SubjectsLoader, a worker a core."""
    tio = importlib.import_module("torchio")
    chain = tio.Compose(
        [
            tio.Clamp(-1000, 1000),
            tio.RescaleIntensity((-1, 1), in_min_max=(-1000, 1000)),
            tio.Resample(CT_RATE.target_spacing_mm),
            tio.CropOrPad(CT_RATE.shape_hwd, padding_mode=-1),
        ]
    )
    subjects = [tio.Subject(image=tio.ScalarImage(str(file))) for file in files]
    dataset = tio.SubjectsDataset(subjects, transform=chain)
    return tio.SubjectsLoader(dataset, num_workers=cores, persistent_workers=True)  # type: ignore[no-any-return]


#: By name; those that read `.npz` as CT-RATE has it.
OPENERS: dict[str, Opener] = {
    "old way, DataLoader workers": old_workers,
    "MONAI, ThreadDataLoader": monai_threads,
    "TorchIO, SubjectsLoader": torchio_subjects,
}
#: Of these, what reads CT-RATE's ``.npz``, which state no spacing.
READ_NPZ = ("old way, DataLoader workers",)
