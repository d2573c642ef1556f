"""Samples compressed, and as they were: the same sample in other members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.codec.compress import compress, kind_of
from ctgpu.codec.ctz import CtzError, Kind
from ctgpu.codec.whole import decompress_whole
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.volume.stored import numpy_dtype


def compress_sample(sample: PackedSample, plan: Plan, *rooms: Bytes) -> PackedSample:
    """A sample as a plan with compression has it.

    Parameters
    ----------
    sample : PackedSample
        As it is without; its volume and mask stay as they are.
    plan : Plan
        Whose `compression` it is.
    *rooms : numpy.ndarray
        uint8, page-aligned, of the :attr:`Plan.payload_limits_bytes`; the result lies in them.
    """
    if plan.compression is None:
        raise ValueError("the plan compresses nothing")
    found = []
    for (kind, grid, dtype), (payload, digest), room in zip(
        _kinds(plan), _payloads(sample), rooms, strict=True
    ):
        size_bytes = compress(
            payload.view(dtype).reshape(plan.spec.stored_shape),
            kind=kind,
            grid=grid,
            layout=plan.spec.layout,
            coding=plan.compression,
            xxh3_128=digest,
            out=room,
        )
        found.append(room[:size_bytes])
    return _with_payloads(sample, found, compressed=True)


def restore_sample(
    sample: PackedSample, plan: Plan, members: list[Bytes], *rooms: Bytes
) -> PackedSample:
    """A compressed sample as it is in a plan without compression.

    Parameters
    ----------
    sample : PackedSample
        Compressed.
    plan : Plan
        Of its contract.
    members : list of numpy.ndarray
        uint8: its volume, and its mask if it has one, each with
        :data:`~ctgpu.codec.ctz.SLACK_BYTES` more behind it.
    *rooms : numpy.ndarray
        uint8, page-aligned, for these as they were; the result lies in them.

    Raises
    ------
    CtzError
        If one is damaged, or not of the plan's contract.
    """
    for (kind, _, dtype), (payload, _), member, room in zip(
        _kinds(plan), _payloads(sample), members, rooms, strict=True
    ):
        stored = room.view(dtype).reshape(plan.spec.stored_shape)
        head = decompress_whole(member, len(payload), stored, plan.spec.layout)
        if head.kind != kind:
            raise CtzError(f"it holds {head.kind}, and {kind} was wanted")
    return _with_payloads(sample, list(rooms), compressed=False)


def _kinds(plan: Plan) -> Iterator[tuple[Kind, int | None, np.dtype[Any]]]:
    """Kind, grid and type of the volume, and of the mask if there is one."""
    kind, grid = kind_of(plan.spec)
    yield kind, grid, numpy_dtype(plan.spec.dtype)
    if plan.masks is not None:
        yield "uint8" if plan.masks.dtype == "uint8" else "int16", 0, plan.masks.numpy_dtype


def _payloads(sample: PackedSample) -> Iterator[tuple[Bytes, str]]:
    yield sample.volume, sample.volume_xxh3_128
    if sample.mask is not None and sample.mask_xxh3_128 is not None:
        yield sample.mask, sample.mask_xxh3_128


def _with_payloads(
    sample: PackedSample, payloads: list[npt.NDArray[np.uint8]], *, compressed: bool
) -> PackedSample:
    volume, *masks = payloads
    return replace(
        sample,
        volume=volume,
        volume_xxh3_128=checksum(volume.data),
        mask=masks[0] if masks else None,
        mask_xxh3_128=checksum(masks[0].data) if masks else None,
        volume_file=None,
        compressed=compressed,
    )
