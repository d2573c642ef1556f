"""Where the voxels of a file lie: what every decoder finds out before anything is allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Buffer, Bytes
from ctgpu.decode.inflate import MAX_RATIO
from ctgpu.errors import DecodeError
from ctgpu.volume.orientation import is_usable, settle_spacing
from ctgpu.volume.raw import RawVolume, Rescale, Spacing

#: More than any CT scan: 1024 × 1024 × 2048 voxels of float64.
MAX_VOLUME_BYTES = 1 << 34
_LONGEST_AXIS = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """One volume inside one file.

    Attributes
    ----------
    shape : tuple of int
        (H, W, D).
    dtype : numpy.dtype
        Of the voxels as stored, byte order included.
    order : {"C", "F"}
        Which axis is fastest.
    offset : int
        First voxel, in bytes, within the inflated bytes or, where nothing is inflated, the file.
    inflated_bytes : int
        Memory that inflating needs; 0 where the voxels are used as they lie in the file.
    unpack : callable
        Fills that memory and verifies it, or verifies the voxels where they lie.
    facts : dict
        What else the file states: the remaining fields of :class:`ctgpu.volume.raw.RawVolume`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int
    inflated_bytes: int
    unpack: Callable[[Bytes], None]
    facts: dict[str, Any] = field(default_factory=dict)

    def volume(self, buffer: Buffer) -> RawVolume:
        """The voxels as they lie in `buffer`, which the volume takes over."""
        voxels = buffer.array(self.shape, self.dtype, order=self.order, offset=self.offset)
        return RawVolume(voxels, buffer=buffer, **self.facts)


def check_voxels(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Size in bytes of an array that can be a volume.

    Parameters
    ----------
    name : str
        What messages call the array.
    shape : tuple of int
        As declared.
    dtype : numpy.dtype
        As declared.

    Raises
    ------
    DecodeError
        If the array is not three axes of 1 to 2^20 voxels, or its dtype is not an integer of at
        most 64 bits or float16, float32 or float64.
    """
    if len(shape) != 3 or min(shape) < 1 or max(shape) > _LONGEST_AXIS:
        raise DecodeError(
            f"{name} has shape {str(shape)[:60]}; wanted three axes of 1 to {_LONGEST_AXIS} "
            "voxels: save one scan a file, without batch or channel axes"
        )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DecodeError(
            f"{name} holds {dtype}; wanted an integer of at most 64 bits or float16, float32 or "
            "float64: save the scan as int16"
        )
    return math.prod(shape) * dtype.itemsize


def check_plausible(name: str, size_bytes: int, stored_bytes: int, limit_bytes: int) -> None:
    """Refuse a declared size before memory is allocated for it.

    Raises
    ------
    DecodeError
        If `size_bytes` exceeds `limit_bytes`, or what `stored_bytes` of deflate can hold.
    """
    check_limit(name, size_bytes, limit_bytes)
    if size_bytes > MAX_RATIO * stored_bytes:
        raise DecodeError(
            f"{name} declares {size_bytes:,} bytes, which {stored_bytes:,} stored bytes cannot "
            "hold: fetch the file again"
        )


def check_limit(name: str, size_bytes: int, limit_bytes: int) -> None:
    """Refuse a volume that is too large.

    Raises
    ------
    DecodeError
        If `size_bytes` exceeds `limit_bytes`.
    """
    if size_bytes > limit_bytes:
        raise DecodeError(
            f"{name} declares {size_bytes:,} bytes; at most {limit_bytes:,} are accepted: the "
            "header is damaged, or the scan must be split"
        )


def check_end(name: str, size_bytes: int, found_bytes: int, slice_bytes: int) -> None:
    """Refuse a file that holds less than its header declares, or more than some padding.

    nibabel and ITK pass over whatever follows the voxels.  A slice may be one that the header
    forgot.

    Raises
    ------
    DecodeError
    """
    if found_bytes < size_bytes:
        raise DecodeError(
            f"{name} has {found_bytes:,} bytes and its header declares {size_bytes:,}: it is "
            "cut short or its header is damaged; fetch it again"
        )
    if found_bytes - size_bytes >= slice_bytes:
        raise DecodeError(
            f"{name} declares {size_bytes:,} bytes and goes on behind them for a slice "
            f"({slice_bytes:,} bytes) or more: its header names too few slices, so correct it, or "
            "cut the file to the size that it declares"
        )


def metadata_facts(name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Spacing and affine out of JSON-ready metadata, as fields of a ``RawVolume``.

    Parameters
    ----------
    name : str
        What messages call the file.
    metadata : dict
        ``XYSpacing`` (two numbers, also as text like ``"[0.7, 0.7]"``) and ``ZSpacing``, or
        ``spacing_mm`` or ``spacing`` (three numbers: H, W, D), and ``affine`` (4 × 4, (H, W, D)
        index to RAS+ millimetres) are used.  Without a spacing, the affine's serves.

    Raises
    ------
    DecodeError
        If one of them is there but is not numbers of that shape, or the affine is none.
    """
    facts: dict[str, Any] = {"metadata": metadata}
    xy, z = metadata.get("XYSpacing"), metadata.get("ZSpacing")
    if xy is not None and z is not None:
        # XYSpacing[0] belongs to axis i.
        facts["spacing_mm"] = _spacing(
            [*_numbers(name, "XYSpacing", xy, (2,)), *_numbers(name, "ZSpacing", [z], (1,))]
        )
    for key in ("spacing_mm", "spacing"):
        if "spacing_mm" not in facts and metadata.get(key) is not None:
            facts["spacing_mm"] = _spacing(_numbers(name, key, metadata[key], (3,)))
    if metadata.get("affine") is not None:
        affine = _numbers(name, "affine", metadata["affine"], (4, 4))
        facts["affine"] = check_affine(name, affine)
        stated_mm = facts.get("spacing_mm", (math.nan,) * 3)
        facts["spacing_mm"], facts["spacing_contradiction"] = settle_spacing(
            name, stated_mm, affine
        )
        # What ctgpu itself wrote about a volume that states no orientation.
        source = metadata.get("source")
        if isinstance(source, dict) and source.get("affine_source") == "spacing":
            facts["affine_source"] = "spacing"
    return facts


def metadata_rescale(name: str, metadata: dict[str, Any]) -> Rescale:
    """``RescaleSlope`` and ``RescaleIntercept`` of JSON-ready metadata; identity where missing.

    Raises
    ------
    DecodeError
        If one of them is there but is not a finite number, or the slope is zero.
    """
    slope, intercept = (
        default
        if metadata.get(key) is None
        else float(_numbers(name, key, [metadata[key]], (1,))[0])
        for key, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise DecodeError(
            f"the metadata of {name} has RescaleSlope {slope} and RescaleIntercept {intercept}; "
            "wanted finite numbers and a slope other than zero: correct the metadata"
        )
    return Rescale() if (slope, intercept) == (1, 0) else Rescale(slope, intercept, "metadata")


def affine_facts(
    name: str, steps: npt.NDArray[np.float64], origin: Sequence[float], space: str
) -> dict[str, Any]:
    """Spacing and affine of a header that states them, as fields of a ``RawVolume``.

    Parameters
    ----------
    name : str
        What messages call the file.
    steps : numpy.ndarray
        3 × 3: in its columns the steps of H, W and D, in millimetres.
    origin : sequence of float
        Centre of the first voxel.
    space : {"RAS", "LAS", "LPS"}
        Where the axes of the world lead in the patient.

    Raises
    ------
    DecodeError
        If they map no volume.
    """
    signs = [1.0 if found == wanted else -1.0 for found, wanted in zip(space, "RAS", strict=True)]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, origin
    affine = np.diag([*signs, 1.0]) @ affine + 0.0  # no zero keeps a sign
    if not is_usable(affine):
        raise DecodeError(
            f"{name} states an orientation that cannot be read ({steps.tolist()}): correct its "
            "header"
        )
    return {
        "affine": affine,
        "spacing_mm": _spacing(np.linalg.norm(affine[:3, :3], axis=0)),
    }


def check_affine(name: str, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Refuse what is no affine; else return it.

    Raises
    ------
    DecodeError
        If it holds a number that is not finite, its axes span no volume, or its last row is not
        that of an affine.
    """
    if not is_usable(affine) or affine[3].tolist() != [0, 0, 0, 1]:
        raise DecodeError(
            f"the metadata of {name} has an affine that maps no volume, {affine.tolist()}; wanted "
            "4 × 4 finite numbers, the steps of H, W and D in its columns and 0, 0, 0, 1 in the "
            "last row: correct the metadata"
        )
    return affine


def _spacing(values: Any) -> Spacing:
    h, w, d = (float(v) for v in values)
    return (h, w, d)


def _numbers(name: str, key: str, value: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    try:
        result = np.asarray(json.loads(value) if isinstance(value, str) else value, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        result = np.empty(0)
    if result.shape != shape:
        raise DecodeError(
            f"the metadata of {name} has {key} {str(value)[:80]!r}; wanted numbers of shape "
            f"{shape}: correct the metadata"
        )
    return result
