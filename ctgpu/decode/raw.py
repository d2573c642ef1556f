"""Raw arrays: little-endian, C order, shape and dtype stated beside them (raw WebDatasets)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctgpu.buffers import Buffer
from ctgpu.decode.stored import StoredVolume, check_voxels, metadata_facts
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import RawVolume


def decode_raw(
    buffer: Buffer,
    shape: Sequence[int],
    dtype: str,
    metadata: Mapping[str, Any],
    *,
    file_name: str = "the raw array",
) -> RawVolume:
    """The volume that a buffer of raw voxels holds, in place.

    Parameters
    ----------
    buffer : Buffer
        The voxels; owned by the returned volume, or released on an error.
    shape : sequence of int
        (H, W, D).
    dtype : str
        Such as ``"int16"``; little-endian where it does not say.
    metadata : mapping
        JSON-ready facts; spacing and affine are taken from it.  A rescale pair is not: it is the
        intensity source's to use.
    file_name : str
        For messages.

    Raises
    ------
    DecodeError
        If the bytes are not exactly such an array.
    """
    with buffer.released_on_error():
        try:
            wanted, shape_hwd = np.dtype(dtype), tuple(int(n) for n in shape)
        except (TypeError, ValueError) as error:
            raise DecodeError(
                f"{file_name} states shape {shape!r} and dtype {dtype!r}; wanted three whole "
                "numbers and a NumPy dtype: correct its JSON"
            ) from error
        if wanted.byteorder == "=":
            wanted = wanted.newbyteorder("<")
        size_bytes = check_voxels(file_name, shape_hwd, wanted)
        if size_bytes != buffer.size_bytes:
            raise DecodeError(
                f"{file_name} has {buffer.size_bytes:,} bytes and {wanted} {shape_hwd} takes "
                f"{size_bytes:,}: fetch it again or correct its JSON"
            )
        facts = metadata_facts(file_name, dict(metadata))
        stored = StoredVolume(
            shape_hwd, wanted, "C", 0, 0, lambda _: None, {"format": "raw", **facts}
        )
        return stored.volume(buffer)
