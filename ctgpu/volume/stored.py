"""The types that a volume is stored as, and what their numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctgpu.spec import Dtype

if TYPE_CHECKING:
    import torch

# NumPy has no bfloat16: its bits.
_NUMPY: Mapping[Dtype, str] = {
    "float16": "<f2",
    "bfloat16": "<u2",
    "int16": "<i2",
    "uint8": "|u1",
}


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The type of arrays that hold a stored volume, little-endian; for bfloat16 of its bits."""
    return np.dtype(_NUMPY[dtype])


def numbers_of(stored: npt.NDArray[Any], dtype: Dtype) -> npt.NDArray[np.float32]:
    """The stored numbers as float32, which holds every one of them.

    Parameters
    ----------
    stored : numpy.ndarray
        Any shape, of :func:`numpy_dtype`.
    dtype : str
        As ``Spec.dtype``.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def tensor_of(stored: npt.NDArray[Any], dtype: Dtype) -> torch.Tensor:
    """A torch tensor of the stored numbers, in the memory of the array.

    Parameters
    ----------
    stored : numpy.ndarray
        Any shape, of :func:`numpy_dtype`; its memory may be written to.
    dtype : str
        As ``Spec.dtype``.
    """
    import torch

    if dtype == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)
