"""The types that a volume is stored as, and what their numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.spec import Dtype, Spec

if TYPE_CHECKING:
    import torch

#: What the voxels of a volume are, in the order of ``ctgpu::Stored``: a type, or float16 of the
#: multiples of a precision.
Stored = Literal["float16", "bfloat16", "int16", "uint8", "float16_grid10", "float16_grid11"]

_ON_GRID: Mapping[str, Stored] = {"2^-10": "float16_grid10", "2^-11": "float16_grid11"}

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


def stored_as(spec: Spec) -> Stored:
    """What the voxels of a volume of this contract are."""
    return _ON_GRID.get(spec.precision, spec.dtype)


def on_grid(values: npt.NDArray[np.float32], step: float) -> npt.NDArray[np.float32]:
    """Values as multiples of a step, by step 8 of ``preprocess_math.h``.

    Parameters
    ----------
    values : numpy.ndarray
        float32 of any shape, on the scale of the output; no NaN.
    step : float
        As :attr:`ctgpu.spec.Spec.precision_step`.

    Returns
    -------
    numpy.ndarray
        float32 of that shape: of two multiples as near the even one, and no -0.
    """
    with np.errstate(over="ignore"):  # infinite, as every engine has it
        multiples: npt.NDArray[np.float32] = np.rint(values * np.float32(1 / step))
    return multiples * np.float32(step) + np.float32(0)


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
