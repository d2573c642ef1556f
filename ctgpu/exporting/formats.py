"""One volume as a file that others read: NumPy's and NIfTI; complete, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from isal import igzip

from ctgpu.errors import StorageError, reason_of
from ctgpu.shards.disk import remove, rename, sync_folder, temporary_beside
from ctgpu.volume.orientation import Orientation

Floats = npt.NDArray[np.float64]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Types that NIfTI lacks.
_IN_NIFTI: Mapping[str, str] = {"float16": "float32"}


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name, durably, once all of it is written; it replaces an old one.

    Raises
    ------
    StorageError
        If it cannot be written; an old one stays as it is.
    """
    temporary = temporary_beside(path)
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
            sync_folder(path.parent)
        finally:
            remove(temporary)
    except OSError as error:
        way_out = "; free some, or choose another folder" if error.errno in _NO_SPACE else ""
        raise StorageError(f"{path} cannot be written: {reason_of(error)}{way_out}") from error


def write_npy(path: Path, voxels: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy``, in C order.

    Parameters
    ----------
    path : Path
        The file.
    voxels : numpy.ndarray
        Of any shape, strides and numeric dtype.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    array = np.ascontiguousarray(voxels)
    header = np.lib.format.header_data_from_array_1_0(array)
    with new_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        # `numpy.save` says of a full disk only how many items it has written.
        file.write(array.data)


def write_nifti(
    path: Path, voxels_hwd: npt.NDArray[Any], affine: Floats, *, stated: bool = True
) -> None:
    """Write a volume as ``.nii.gz``, where it lies in the patient.

    Parameters
    ----------
    path : Path
        The file.
    voxels_hwd : numpy.ndarray
        Shape (H, W, D), any strides; float16 is written as float32, every other dtype stays.
    affine : numpy.ndarray
        4 × 4, index (H, W, D) to millimetres, RAS+.
    stated : bool
        Whether the scan states how it lies; else its affine is that of the bare spacing, or
        assumed, and the file says that it is no place in a scanner.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    import nibabel

    dtype = np.dtype(_IN_NIFTI.get(voxels_hwd.dtype.name, voxels_hwd.dtype.newbyteorder("=")))
    # Said that it is wanted, a dtype of 64 bits is not warned of.
    image: Any = nibabel.Nifti1Image(voxels_hwd.astype(dtype, copy=False), affine, dtype=dtype)  # type: ignore[no-untyped-call]
    code = "scanner" if stated else "aligned"
    image.set_sform(affine, code)
    # A quaternion cannot state a shear.
    image.set_qform(affine, "unknown" if Orientation.of(affine).shear_degrees > 0 else code)
    image.header.set_xyzt_units("mm")
    # Neither a name nor a time, so that the same voxels are the same bytes.
    with (
        new_file(path) as file,
        igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as stream,  # type: ignore[no-untyped-call]
    ):
        image.to_stream(stream)
