"""Cases as nnU-Net v2 keeps what it has preprocessed: Blosc2 arrays, and what is beside them."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import SampleError, UsageError
from ctgpu.exporting.formats import new_file
from ctgpu.installation import install_command

# What nnU-Net takes where it does not know the patches that will be read.
_PATCH = 128
_BLOCK_BYTES = 128 << 10
_CHUNK_BYTES = 6 << 20
# A chunk holds a patch and a half along each axis.
_CHUNK_VOXELS = _PATCH * 3 // 2
_LEVEL = 5

# Voxels of a label that patches are centred on: so many, or a hundredth of them.
_LOCATIONS = 10_000
_LOCATIONS_SHARE = 0.01
_SEED = 1234


def require_blosc2() -> ModuleType:
    """The library.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        import blosc2
    except ImportError as error:
        raise UsageError(
            f"Blosc2 files need blosc2, which cannot be imported ({error}); install it with "
            f"`{install_command('export')}`, or export as npy or nifti"
        ) from error
    library: ModuleType = blosc2
    return library


def blocks_and_chunks(
    shape: Sequence[int], item_bytes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How nnU-Net 2.8 divides a volume for patches of 128 voxels a side.

    Parameters
    ----------
    shape : sequence of int
        Of the volume, three axes.
    item_bytes : int
        Of one voxel.

    Returns
    -------
    (tuple of int, tuple of int)
        Shapes of blocks, which are decompressed as one, and of chunks, which are read as one.
    """
    wanted = [min(n, _CHUNK_VOXELS) for n in shape]
    blocks = [min(n, _PATCH) for n in shape]
    while math.prod(blocks) * item_bytes > _BLOCK_BYTES:
        axis = max((k for k in range(3) if blocks[k] > 1), key=lambda k: (blocks[k] / wanted[k], k))
        blocks[axis] = 1 << ((blocks[axis] - 1).bit_length() - 1)
    chunks = list(blocks)
    while larger := [
        grown
        for axis in range(3)
        if chunks[axis] < wanted[axis]
        and math.prod(grown := _grown(chunks, axis, blocks, wanted)) * item_bytes <= _CHUNK_BYTES
    ]:
        chunks = min(larger, key=lambda grown: _coverage(chunks, grown, wanted, shape))
    return tuple(blocks), tuple(chunks)


def _grown(
    chunks: Sequence[int], axis: int, blocks: Sequence[int], wanted: Sequence[int]
) -> list[int]:
    grown = list(chunks)
    grown[axis] = min(chunks[axis] + blocks[axis], wanted[axis])
    return grown


def _coverage(
    chunks: Sequence[int], grown: Sequence[int], wanted: Sequence[int], shape: Sequence[int]
) -> tuple[float, int, int]:
    """Least for the axis that is covered least so far; of two alike for the longer one."""
    axis = next(k for k in range(3) if grown[k] != chunks[k])
    return chunks[axis] / wanted[axis], -shape[axis], axis


def in_nnunet_type(mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A mask in the type that nnU-Net stores it in: int8 where its labels fit, else int16.

    Raises
    ------
    SampleError
        If a label is larger.
    """
    largest = int(mask.max(initial=0))
    if largest > np.iinfo(np.int16).max:
        raise SampleError(
            f"its mask has the label {largest}, and nnU-Net keeps labels up to "
            f"{np.iinfo(np.int16).max}; export it as npy or nifti"
        )
    return mask.astype(np.int8 if largest <= np.iinfo(np.int8).max else np.int16)


def class_locations(
    seg: npt.NDArray[Any], labels: Sequence[int]
) -> dict[int, npt.NDArray[np.int64]]:
    """Some voxels of each label, on which nnU-Net centres patches of the foreground.

    Parameters
    ----------
    seg : numpy.ndarray
        Shape (1, D, W, H), the number of each voxel's label.
    labels : sequence of int
        Which numbers.

    Returns
    -------
    dict of int to numpy.ndarray
        Shape (n, 4): indices into `seg`, in ascending order and the same for the same mask; none
        where there is no such voxel.
    """
    found = {}
    for label in labels:
        voxels = np.flatnonzero(seg == label)
        most = max(min(_LOCATIONS, len(voxels)), math.ceil(_LOCATIONS_SHARE * len(voxels)))
        if most < len(voxels):
            chosen = np.random.default_rng(_SEED).choice(len(voxels), most, replace=False)
            voxels = voxels[np.sort(chosen)]
        found[label] = np.stack(np.unravel_index(voxels, seg.shape), axis=1).astype(np.int64)
    return found


def write_array(path: Path, array: npt.NDArray[Any], *, shuffled: bool) -> None:
    """Write an array as ``.b2nd``, compressed as nnU-Net does.

    Parameters
    ----------
    path : Path
        The file.
    array : numpy.ndarray
        Shape (1, D, W, H).
    shuffled : bool
        Whether bytes of one place in their numbers are brought together, which helps with numbers
        that are no labels.

    Raises
    ------
    UsageError
        If blosc2 is not installed.
    StorageError
        If it cannot be written.
    """
    blosc2 = require_blosc2()
    blocks, chunks = blocks_and_chunks(array.shape[1:], array.itemsize)
    compression = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": _LEVEL,
        "filters": [blosc2.Filter.SHUFFLE if shuffled else blosc2.Filter.NOFILTER],
        # The same bytes on every machine.
        "nthreads": 1,
    }
    made = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, *chunks),
        blocks=(1, *blocks),
        cparams=compression,
        contiguous=True,
    )
    with new_file(path) as file:
        file.write(made.to_cframe())


def write_case(
    folder: Path,
    key: str,
    volume_hwd: npt.NDArray[Any],
    mask_hwd: npt.NDArray[Any] | None,
    spacing_mm: tuple[float, float, float],
    labels: Mapping[str, int],
) -> list[Path]:
    """Write a case: ``KEY.b2nd``, and with a mask ``KEY_seg.b2nd`` and ``KEY.pkl``.

    nnU-Net's axes are those of SimpleITK's arrays: D, W, H, behind one channel.

    Parameters
    ----------
    folder, key
        Where, and what the case is called.
    volume_hwd : numpy.ndarray
        Shape (H, W, D); written as float32.
    mask_hwd : numpy.ndarray or None
        The number of each voxel's label, as large.
    spacing_mm : tuple of float
        Along H, W and D.
    labels : mapping of str to int
        Which numbers there may be; where none is named, those that there are.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    SampleError
        If nnU-Net's types do not hold a label.
    UsageError
        If blosc2 is not installed.
    StorageError
        If a file cannot be written.
    """
    seg = None if mask_hwd is None else in_nnunet_type(mask_hwd.transpose(2, 1, 0)[None])
    files = [folder / f"{key}.b2nd"]
    data = volume_hwd.transpose(2, 1, 0)[None].astype(np.float32, copy=False)
    write_array(files[0], data, shuffled=True)
    if seg is not None:
        numbers = sorted(labels.values()) or [n for n in np.unique(seg).tolist() if n]
        properties = {
            "spacing": list(spacing_mm[::-1]),
            "class_locations": class_locations(seg, numbers),
        }
        files += [folder / f"{key}_seg.b2nd", folder / f"{key}.pkl"]
        write_array(files[1], seg, shuffled=False)
        with new_file(files[2]) as file:
            pickle.dump(properties, file)
    return files
