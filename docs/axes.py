"""Draws docs/axes.png: one chest, stored in four ways, as it lies and as the patient lies.

::

    python docs/axes.py [OUT.png]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ctgpu.checking.sheet import View, as_displayed, cut
from ctgpu.testing.ctrate import chest_phantom

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Axes to the left, back and head, as the phantom has them, and how else it may be stored.
STORED = {
    "LPS, as CT-RATE": lambda lps: lps,
    "RAS": lambda lps: lps[::-1, ::-1],
    "PLS": lambda lps: lps.transpose(1, 0, 2),
    "SLP: refused": lambda lps: lps.transpose(2, 0, 1),
}
_SPACING_MM = (2.5, 2.5, 5.0)
_SHAPE = (160, 140, 60)
_MARKED = 65
_INK = "#ffe14d"
_TISSUES_HU = np.array([-1000, -850, -100, 40, 700], np.float32)


def stored_views() -> list[View]:
    """The same patient in every row."""
    # Where each voxel of the phantom is, RAS+: the affine of any view follows from three of them.
    lps = np.diag([-_SPACING_MM[0], -_SPACING_MM[1], _SPACING_MM[2], 1.0])
    index = np.indices(_SHAPE)
    # Noise would be most of the picture's bytes: every voxel becomes the nearest tissue.
    noisy = chest_phantom(_SHAPE, _SPACING_MM).astype(np.float32)
    hu = _TISSUES_HU[np.abs(noisy[..., None] - _TISSUES_HU).argmin(axis=-1)]
    hu[20:36, 60:70, 45:] = 1000  # at the patient's right, above, in the coronal cut
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


def draw(views: Sequence[View], out: Path, *, dots_per_inch: int = 150) -> None:
    """A column for each: the middle slice of its third axis, and two cuts that its affine turns."""
    figure = Figure(figsize=(9, 6.1), layout="constrained")
    rows = figure.subplots(3, len(views))
    for view, (stored, axial, coronal) in zip(views, rows.T, strict=True):
        h_mm, w_mm = (n * s for n, s in zip(view.hu.shape[:2], view.spacing_mm, strict=False))
        _show(stored, view.hu[:, :, view.hu.shape[2] // 2], w_mm, h_mm)
        stored.set_title(view.title, fontsize=12)
        for name, x, y in (("W", 0.45, 0.92), ("H", 0.08, 0.45)):
            stored.annotate(
                "",
                xy=(x, y),
                xytext=(0.08, 0.92),
                xycoords="axes fraction",
                textcoords="axes fraction",
                arrowprops={"arrowstyle": "->", "color": _INK, "linewidth": 2, "shrinkA": 0},
            )
            _mark(stored, name, x + 0.06 * (name == "W"), y - 0.06 * (name == "H"))
        volume, (left_mm, back_mm, head_mm), _ = as_displayed(view)
        across, back, up = volume.shape
        _show(axial, cut(volume, 2, up // 2), across * left_mm, back * back_mm)
        _show(coronal, cut(volume, 1, _MARKED), across * left_mm, up * head_mm)
        for panel, top, bottom in ((axial, "A", "P"), (coronal, "S", "I")):
            for mark, x, y in (
                ("R", 0.04, 0.5),
                ("L", 0.96, 0.5),
                (top, 0.5, 0.93),
                (bottom, 0.5, 0.06),
            ):
                _mark(panel, mark, x, y)
    names = ("the array:\n[:, :, middle]", "axial", "coronal")
    for name, first in zip(names, rows[:, 0], strict=True):
        first.set_ylabel(name, fontsize=12)
    figure.savefig(out, dpi=dots_per_inch)


def _mark(panel: Axes, text: str, x: float, y: float) -> None:
    """A letter that can be read on black and on white."""
    panel.text(
        x,
        y,
        text,
        color=_INK,
        ha="center",
        va="center",
        fontsize=12,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="black")],
        transform=panel.transAxes,
    )


def _show(panel: Axes, image: npt.NDArray[np.float32], width_mm: float, height_mm: float) -> None:
    panel.imshow(
        image,
        cmap="gray",
        vmin=-1000,
        vmax=400,
        interpolation="nearest",  # half the bytes
        extent=(0, width_mm, height_mm, 0),
    )
    panel.set_facecolor("black")
    panel.set_xticks([])
    panel.set_yticks([])


if __name__ == "__main__":
    draw(stored_views(), Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_suffix(".png"))
