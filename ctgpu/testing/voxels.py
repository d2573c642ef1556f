"""Random volumes of every dtype and memory layout that an engine must take."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

#: Kind and size of every voxel type of the contract, and the two 64-bit integers beyond it.
DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

#: Axes as they lie in memory, last fastest.
MEMORY_ORDERS = ("HWD", "HDW", "WHD", "WDH", "DHW", "DWH")


def random_voxels(
    seed: int,
    shape_hwd: tuple[int, int, int],
    dtype: str = "<i2",
    order: str = "HWD",
    *,
    flipped: Collection[int] = (),
    step: int = 1,
) -> npt.NDArray[Any]:
    """Voxels of about the range of HU, as far as the dtype holds it.

    Parameters
    ----------
    seed : int
        The same seed gives the same voxels.
    shape_hwd : tuple of int
        Shape of the result.
    dtype : str
        With byte order, such as ``">i2"``.
    order : str
        One of :data:`MEMORY_ORDERS`.
    flipped : collection of int
        Axes with a negative stride.
    step : int
        Only every `step`-th voxel along the fastest axis belongs to the view.

    Returns
    -------
    numpy.ndarray
        Shape `shape_hwd`; a view with the strides asked for.
    """
    axes = ["HWD".index(axis) for axis in order]
    held = [shape_hwd[axis] * (step if axis == axes[-1] else 1) for axis in axes]
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        memory = (random.standard_normal(held) * 900 - 200).astype(kind)
    else:
        limits = np.iinfo(kind)
        low, high = max(limits.min, -1500), min(limits.max, 3000)
        memory = random.integers(low, high, held, np.int64, endpoint=True).astype(kind)
    view = memory[..., ::step].transpose(np.argsort(axes))
    return view[tuple(slice(None, None, -1 if axis in flipped else 1) for axis in range(3))]
