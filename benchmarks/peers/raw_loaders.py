"""Other ways to train on raw volumes: each makes CT-RATE's contract of files, batch by batch.

A contender takes the files and the cores, and gives what can be iterated again and again.  MONAI's
and TorchIO's grids follow from the spacing, as their users would have them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import old_way
from benchmarks.peers.volumes import monai_steps, torchio_steps
from ctgpu.spec import CT_RATE
from ctgpu.volume.raw import Spacing

Opener = Callable[[Sequence[Path], Spacing, int], Iterable[Any]]


def old_volume(file: Path, spacing_mm: Spacing) -> Any:
    """A file, read and preprocessed in the old way, as a batch of one."""
    import torch

    torch.set_num_threads(1)  # one process per core
    return torch.from_numpy(old_way.preprocess(old_way.read(file), spacing_mm))[None, None]


def old_workers(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """The old way in the workers of a torch DataLoader, one a core."""
    from torch.utils.data import DataLoader

    dataset: Any = files
    how: Any = {"batch_size": None, "collate_fn": partial(old_volume, spacing_mm=spacing_mm)}
    how |= {"multiprocessing_context": "spawn", "persistent_workers": True}
    return DataLoader(dataset, num_workers=cores, **how)


def monai_threads(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """MONAI's ThreadDataLoader, a thread a core."""
    warnings.simplefilter("ignore")  # of torch and MONAI, about each other
    data = importlib.import_module("monai.data")
    transforms = importlib.import_module("monai.transforms")
    half = transforms.CastToType(importlib.import_module("torch").float16)
    read = transforms.LoadImage(ensure_channel_first=True)
    chain = transforms.Compose([read, *monai_steps(CT_RATE), half])
    dataset = data.Dataset(list(map(str, files)), chain)
    return data.ThreadDataLoader(dataset, num_workers=cores, use_thread_workers=True)  # type: ignore[no-any-return]


def torchio_subjects(files: Sequence[Path], spacing_mm: Spacing, cores: int) -> Iterable[Any]:
    """TorchIO's SubjectsLoader, a worker a core."""
    tio = importlib.import_module("torchio")
    subjects = [tio.Subject(image=tio.ScalarImage(str(file))) for file in files]
    dataset = tio.SubjectsDataset(subjects, transform=torchio_steps(CT_RATE))
    return tio.SubjectsLoader(dataset, num_workers=cores, persistent_workers=True)  # type: ignore[no-any-return]


#: By name; those that read `.npz` as CT-RATE has it.
OPENERS: dict[str, Opener] = {
    "old way, DataLoader workers": old_workers,
    "MONAI, ThreadDataLoader": monai_threads,
    "TorchIO, SubjectsLoader": torchio_subjects,
}
#: Of these, what reads CT-RATE's ``.npz``, which state no spacing.
READ_NPZ = ("old way, DataLoader workers",)
