"""Volumes and masks as `.ctz`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.buffers import Bytes
from ctgpu.codec.ctz import Coding, Head, Kind, Shape, empty_table, head_bytes
from ctgpu.spec import Layout, Spec


def compressed_limit_bytes(shape_dhw: Shape, voxel_bytes: int) -> int:
    """The most that a volume takes, compressed: that of which nothing can be compressed."""
    depth, height, width = shape_dhw
    return head_bytes(shape_dhw) + voxel_bytes * depth * height * width


def kind_of(spec: Spec) -> tuple[Kind, int | None]:
    """How volumes of a contract are taken: their kind, and the grid that they are on, if any."""
    if spec.dtype == "uint8" or spec.dtype == "int16":
        return spec.dtype, 0
    if spec.precision_step is not None:
        return "grid", round(-math.log2(spec.precision_step))
    return spec.dtype, None


def compress(
    stored: npt.NDArray[Any],
    *,
    kind: Kind,
    grid: int | None,
    layout: Layout,
    coding: Coding,
    xxh3_128: str,
    out: Bytes,
    variant: str = "",
) -> int:
    """Write a volume, or a mask, as a `.ctz`; the same bytes on every processor.

    Parameters
    ----------
    stored : numpy.ndarray
        Axes in the order of `layout`, any strides; of 8 or 16 bits, as `kind` has them.
    kind : str
        As :attr:`Head.kind`.
    grid : int or None
        As :attr:`Head.grid`; None takes the one that gives the fewest bytes.
    layout : {"DHW", "HWD"}
        Order of the axes of `stored`.
    coding : {"pack", "rice"}
        How residuals are coded.
    xxh3_128 : str
        Of the volume, as its record has it.
    out : numpy.ndarray
        uint8, at least :func:`compressed_limit_bytes` long.
    variant : str
        Which instructions to use; empty for the best that this CPU can run.

    Returns
    -------
    int
        Bytes of the `.ctz`, from the beginning of `out`.
    """
    from ctgpu import _native

    dhw = stored if layout == "DHW" else stored.transpose(2, 0, 1)
    shape_dhw: Shape = dhw.shape
    voxels = dhw.view(np.uint8 if dhw.itemsize == 1 else np.uint16)
    table = empty_table(shape_dhw)
    begin = head_bytes(shape_dhw)
    grid, weights, first = _native.ctz_encode(
        voxels=voxels,
        kind=kind,
        coding=coding,
        grid=grid,
        table=table.view(np.uint32).reshape(-1, 6),
        out=out[begin:],
        variant=variant,
    )
    end = begin
    for entry in table:
        start, end = end, end + int(entry["size"])
        entry["xxh3_64"] = xxhash.xxh3_64_intdigest(out[start:end].data)
    head = Head(kind, coding, grid, layout, shape_dhw, weights, first, xxh3_128, table)
    out[:begin] = np.frombuffer(head.to_bytes(), np.uint8)
    return end
