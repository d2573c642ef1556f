"""What callers pass as arrays: NumPy's own, tensors of a CPU or GPU, nested lists."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import shown
from ctgpu.errors import UsageError
from ctgpu.spec import Dtype
from ctgpu.volume.raw import Spacing
from ctgpu.volume.stored import numpy_dtype

# Of memory that no engine can write to as it is, by the flag that is not set.
_FAULTS: Mapping[Literal["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"], str] = {
    "C_CONTIGUOUS": "not C-contiguous",
    "ALIGNED": "not aligned",
    "WRITEABLE": "read-only",
}
_WANTED_VOXELS = "wanted an integer or floating dtype of at most 64 bits"


def voxels_of(value: Any) -> npt.NDArray[Any]:
    """Voxels that an engine takes, without a copy where NumPy can look at them in place.

    Parameters
    ----------
    value : array-like
        A NumPy array, a torch or CuPy one on any device, or nested sequences of numbers.

    Raises
    ------
    UsageError
        If it is something else, or its dtype is not an integer or floating one of at most 64 bits.
    """
    voxels = on_host(value, "the volume")
    if voxels.dtype.kind not in "iuf" or voxels.dtype.itemsize > 8:
        kind = "array" if isinstance(value, np.ndarray) else type(value).__name__
        hint = "" if voxels.ndim else ": pass the path of a file, or an array of its voxels"
        raise UsageError(f"the {kind} has dtype {voxels.dtype}; {_WANTED_VOXELS}{hint}")
    return voxels


def spacing_of(value: Any) -> Spacing:
    """A voxel size out of any sequence, array or tensor of three numbers.

    Parameters
    ----------
    value : array-like
        Shape (3,): H, W, D in millimetres.

    Raises
    ------
    UsageError
        If it is something else.
    """
    try:
        if isinstance(value, str | bytes | Mapping | Set):
            raise ValueError
        numbers = on_host(value, "spacing_mm")
        if numbers.dtype.kind not in "iufO":
            raise ValueError
        h, w, d = numbers.astype(np.float64).tolist()
        return float(h), float(w), float(d)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"spacing_mm is {shown(value)}; wanted three numbers, H, W and D in millimetres"
        ) from error


def output_of(value: Any, shape: tuple[int, ...], dtype: Dtype) -> npt.NDArray[Any]:
    """The array to write a volume into: a NumPy one, or the memory of a torch tensor of the CPU.

    Parameters
    ----------
    value : numpy.ndarray or torch.Tensor
        What the caller passes.
    shape : tuple of int
        What it has to be.
    dtype : str
        As ``Spec.dtype``; a NumPy array for bfloat16 is one of uint16.

    Raises
    ------
    UsageError
        If it is something else, or memory that an engine cannot write to as it is.
    """
    of = f"{dtype} (in NumPy uint16)" if dtype == "bfloat16" else dtype
    wanted = f"wanted a NumPy array, or a torch tensor on the CPU, of {of} and shape {shape}"
    torch, array = sys.modules.get("torch"), value
    found = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            # NumPy has no bfloat16, but can look at its bits.
            is_bfloat = value.dtype == torch.bfloat16
            array = value.view(torch.int16).numpy().view("u2") if is_bfloat else value.numpy()
        except (TypeError, RuntimeError) as error:
            raise UsageError(
                f"out is a tensor of {value.dtype} on {value.device} that NumPy cannot look at "
                f"({_first_line(error)}); {wanted}"
            ) from error
        fits = found == dtype
    else:
        fits = isinstance(value, np.ndarray) and value.dtype == numpy_dtype(dtype)
    if not isinstance(array, np.ndarray):
        raise UsageError(f"out is a {type(value).__name__}; {wanted}")
    if array.shape != shape or not fits:
        raise UsageError(f"out is {found} {array.shape}; {wanted}")
    if faults := [what for name, what in _FAULTS.items() if not array.flags[name]]:
        raise UsageError(f"out is {' and '.join(faults)}; {wanted}, as numpy.empty makes one")
    return array


def on_host(value: Any, name: str) -> npt.NDArray[Any]:
    """A NumPy array of the same numbers; a library never imported can have made no array."""
    if isinstance(value, np.ndarray):
        return value
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            # NumPy has no bfloat16; float32 holds its every value.
            known = value.float() if value.dtype == torch.bfloat16 else value
            host: npt.NDArray[Any] = known.numpy(force=True)
        elif cupy is not None and isinstance(value, cupy.ndarray):
            host = cupy.asnumpy(value)
        else:
            host = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name} is a {type(value).__name__} that NumPy cannot look at ({_first_line(error)}); "
            "wanted an array, a tensor or nested lists of numbers"
        ) from error
    return host


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
