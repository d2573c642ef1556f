"""Volumes in two files, ``.mhd`` and ``.nhdr``: a header, and beside it the voxels."""

from __future__ import annotations

import os
from pathlib import Path

from ctgpu.buffers import Allocate, Buffer
from ctgpu.decode import MOST_HEADER_BYTES, data_file
from ctgpu.errors import DecodeError, FetchError, reason_of
from ctgpu.shards.untrusted import FileChanged, read_file, read_unchanged

_SUFFIXES = (".mhd", ".nhdr")


def voxels_path(path: Path) -> Path:
    """The file that holds the voxels of a volume: mostly the volume's own.

    Raises
    ------
    DecodeError
        If the header is none, or names a file that does not lie beside it.
    OSError
        If it cannot be read.
    """
    if not path.name.lower().endswith(_SUFFIXES):
        return path
    name = data_file(path.name, read_file(path, MOST_HEADER_BYTES))
    return path if name is None else path.with_name(name)


def size_of(path: Path, size_bytes: int) -> int:
    """Size in bytes of a volume whose listed file has `size_bytes`: of both, where there are two.

    What cannot be read counts nothing here; it fails when it is fetched.
    """
    try:
        voxels = voxels_path(path)
        return size_bytes if voxels == path else size_bytes + os.stat(voxels).st_size
    except (DecodeError, OSError):
        return size_bytes


def read_volume(
    path: Path, allocate: Allocate, size_bytes: int | None = None
) -> tuple[bytes | None, Buffer]:
    """The header of a volume that has a file for it, and the bytes that hold the voxels.

    Parameters
    ----------
    path : Path
        The volume's file.
    allocate : callable
        Lends a buffer of so many bytes; it has been released if anything is raised.
    size_bytes : int, optional
        How many bytes there must be, as :func:`size_of` counts them.

    Raises
    ------
    DecodeError
        As :func:`voxels_path`.
    FetchError
        If the file of the voxels is not there.
    OSError
        As :func:`ctgpu.shards.untrusted.read_unchanged`.
    """
    voxels = voxels_path(path)
    if voxels == path:
        return None, read_unchanged(path, allocate, size_bytes)
    header = read_file(path, MOST_HEADER_BYTES)
    try:
        expected = None if size_bytes is None else size_bytes - len(header)
        return header, read_unchanged(voxels, allocate, expected)
    except FileChanged:
        raise
    except OSError as error:
        raise FetchError(
            f"{path.name} says that its voxels lie in {voxels.name} beside it, which cannot be "
            f"read ({reason_of(error)}); bring it back, or correct the header"
        ) from error
