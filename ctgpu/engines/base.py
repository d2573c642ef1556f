"""What every engine is: something that turns voxels and a plan into a stored volume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy.typing as npt

from ctgpu.buffers import Bytes, allocate_pages
from ctgpu.volume.geometry import VolumePlan
from ctgpu.volume.raw import Rescale


@dataclass(slots=True)
class Job:
    """One volume to make.

    Attributes
    ----------
    voxels : numpy.ndarray
        Source, along the axes of the output, so of the plan's source shape; any integer or floating
        dtype, any strides, either byte order; every voxel finite.
    rescale : Rescale
        How voxels become HU.
    plan : VolumePlan
        Where every output voxel comes from.
    out : numpy.ndarray
        C-contiguous, of ``plan.spec.stored_shape`` and of the spec's type, as
        :func:`ctgpu.volume.stored.numpy_dtype` has it; written completely.
    """

    voxels: npt.NDArray[Any]
    rescale: Rescale
    plan: VolumePlan
    out: npt.NDArray[Any]


class Engine(ABC):
    """Makes output volumes.  Safe to call from `concurrency` threads at a time.

    Attributes
    ----------
    arithmetic : str
        Enters the fingerprint: engines with the same value give the same bits.
    takes_hu : bool
        Whether rescaled voxels must be HU; else they are volumes that were made already.
    """

    arithmetic: ClassVar[str] = "ctgpu"
    takes_hu: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """As ``--device`` names it, such as ``"cpu"`` or ``"cuda:0"``."""

    @property
    @abstractmethod
    def concurrency(self) -> int:
        """Threads of a pipeline that may usefully call :meth:`run` at a time."""

    #: Volumes a pipeline should hand over at a time, where that many are ready.
    batch_size: int = 1

    @abstractmethod
    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        """Fill every job's `out`.

        Parameters
        ----------
        jobs : sequence of Job
            Volumes of any mix of shapes, dtypes and strides.
        threads : int
            Threads inside one volume, where the engine has such.

        Raises
        ------
        DeviceError
            If the device fails.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for a shard's record: name, variant, versions, device."""

    def allocate(self, size_bytes: int) -> Bytes:
        """Page-aligned host memory that this engine transfers fastest from and to."""
        return allocate_pages(size_bytes)

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Give device resources back."""
