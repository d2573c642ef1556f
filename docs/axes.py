"""Draws docs/axes.png: one chest, stored in four ways, as ``ctgpu inspect --preview`` shows it.

::

    python docs/axes.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ctgpu.checking.sheet import View, draw_sheet
from ctgpu.testing.ctrate import chest_phantom

#: Axes to the left, back and head, as the phantom has them, and how else it may be stored.
STORED = {
    "LPS, as CT-RATE": lambda lps: lps,
    "RAS": lambda lps: lps[::-1, ::-1],
    "PLS": lambda lps: lps.transpose(1, 0, 2),
    "SLP: refused": lambda lps: lps.transpose(2, 0, 1),
}
_SPACING_MM = (2.5, 2.5, 5.0)
_SHAPE = (160, 140, 60)
_TISSUES_HU = np.array([-1000, -850, -100, 40, 700], np.float32)


def stored_views() -> list[View]:
    """The same patient in every row."""
    # Where each voxel of the phantom is, RAS+: the affine of any view follows from three of them.
    lps = np.diag([-_SPACING_MM[0], -_SPACING_MM[1], _SPACING_MM[2], 1.0])
    index = np.indices(_SHAPE)
    # Noise would be most of the picture's bytes: every voxel becomes the nearest tissue.
    noisy = chest_phantom(_SHAPE, _SPACING_MM).astype(np.float32)
    hu = _TISSUES_HU[np.abs(noisy[..., None] - _TISSUES_HU).argmin(axis=-1)]
    hu[20:36, 60:70, 45:] = 1000  # at the patient's right, above
    views = []
    for title, view in STORED.items():
        where = np.stack([view(axis) for axis in index], axis=-1)
        affine = np.eye(4)
        affine[:3, 3] = lps[:3, :3] @ where[0, 0, 0]
        for axis, step in enumerate(np.eye(3, dtype=int)):
            affine[:3, axis] = lps[:3, :3] @ (where[tuple(step)] - where[0, 0, 0])
        h, w, d = np.linalg.norm(affine[:3, :3], axis=0)
        views.append(View(title, view(hu), (h, w, d), affine, None))
    return views


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")
    draw_sheet(stored_views(), out, dots_per_inch=55)
