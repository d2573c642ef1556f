"""Compressed volumes of a batch, decoded for DALI, of which it needs nothing itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.codec import CtzError
from ctgpu.codec.whole import decode_member
from ctgpu.errors import DecodeError
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.region import dhw_order
from ctgpu.spec import Layout, Spec
from ctgpu.volume.stored import numpy_dtype


def decoder_of(
    dataset: VolumeDataset, threads: int, *, on_gpu: bool
) -> tuple[BatchDecoder | None, Layout]:
    """What decodes volumes for DALI, None where none is compressed, and the layout they then have.

    Parameters
    ----------
    dataset : VolumeDataset
        The samples.
    threads : int
        How many volumes are decoded at a time.
    on_gpu : bool
        Whether they go on to a GPU, where D, H, W is wanted; otherwise they stay as stored.
    """
    layout = dataset.memory_layout if on_gpu else dataset.spec.layout
    if not any(entry.is_compressed for entry in dataset.entries):
        return None, layout
    return BatchDecoder(dataset.spec, layout, threads), layout


class BatchDecoder:
    """Makes the volumes of a batch of what was read of it, for ``fn.python_function``.

    Parameters
    ----------
    spec : Spec
        What is stored.
    layout : {"DHW", "HWD"}
        Order of the axes that is wanted; that of `spec` where some are not compressed.
    threads : int
        How many volumes are decoded at a time.
    """

    def __init__(self, spec: Spec, layout: Layout, threads: int) -> None:
        self._spec, self._layout, self._threads = spec, layout, threads

    def __call__(
        self, plain: list[npt.NDArray[Any]], compressed: list[Bytes], metadata: list[Bytes]
    ) -> list[npt.NDArray[Any]]:
        """Of each sample its ``.bin`` and its ``.ctz``, one of them empty, and its ``.json``."""
        with ThreadPoolExecutor(self._threads, "ctgpu-decode") as pool:
            return list(pool.map(self._decode, plain, compressed, metadata))

    def _decode(
        self, plain: npt.NDArray[Any], compressed: Bytes, metadata: Bytes
    ) -> npt.NDArray[Any]:
        if not len(compressed):
            return plain.reshape(self._spec.stored_shape)
        spec = self._spec
        shape_dhw = dhw_order(spec.stored_shape, spec.layout)
        try:
            volume = decode_member(
                compressed, shape_dhw, spec.dtype, numpy_dtype(spec.dtype), self._layout
            )
        except CtzError as error:
            raise DecodeError(
                f"the volume of {_study_id(metadata)} cannot be decoded: {error}; `ctgpu verify` "
                "of its folder says what else is damaged"
            ) from error
        # As DALI hands them over.
        return volume.view(np.int16) if spec.dtype == "bfloat16" else volume


def _study_id(metadata: Bytes) -> str:
    try:
        return str(json.loads(metadata.tobytes())["study_id"])
    except (ValueError, KeyError, TypeError):
        return "a sample whose JSON is damaged, too,"
