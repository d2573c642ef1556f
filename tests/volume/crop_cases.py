"""Chests on a table, and boxes found by other means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from ctgpu.volume.crop import crop_box
from ctgpu.volume.foreground import Box
from ctgpu.volume.raw import Rescale

Voxels = npt.NDArray[Any]

SPACING_MM = (1.6, 1.5, 2.5)
FOREGROUND, BODY = Spec(crop="foreground"), Spec(crop="body")


def on_a_table(gap_mm: float = 12, margin: int = 24) -> Voxels:
    """A chest (left, back, head) in air, and below it a table of two sheets, noise in all."""
    inner = chest_phantom((170, 130, 60), SPACING_MM)
    voxels = np.full([n + 2 * margin for n in inner.shape], -1000, np.int16)
    voxels[margin:-margin, margin:-margin, margin:-margin] = inner
    back = int(np.argwhere(voxels > -500)[:, 1].max())
    table = back + 1 + round(gap_mm / SPACING_MM[1])
    for row in (table, table + 6):
        voxels[8:-8, row, :] = -200
    voxels[4:8, table - 4 : table + 7, :] = -200
    noise = np.random.default_rng(7).normal(0, 12, voxels.shape)
    return np.asfortranarray(voxels + noise.astype(np.int16))


def largest_component(inside: npt.NDArray[np.bool_]) -> Box:
    """Of all voxels, by faces."""
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    (found,) = ndimage.find_objects((labels == sizes.argmax()).astype(np.int8))
    return Box(tuple(s.start for s in found), tuple(s.stop for s in found))


def holds(outer: Box, inner: Box) -> bool:
    return all(
        a <= b and d <= c
        for a, b, c, d in zip(outer.start, inner.start, outer.stop, inner.stop, strict=True)
    )


def crop(voxels: Voxels, spec: Spec, spacing_mm: Any = SPACING_MM, rescale: Any = None) -> Box:
    box = crop_box(voxels, rescale or Rescale(), spacing_mm, spec)
    assert box is not None
    return box
