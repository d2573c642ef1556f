"""Draws docs/contracts.png: what each step of a contract does to a made-up chest.

::

    python docs/contracts.py [OUT.png]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import numbers_of

_SPACING_MM = (2.5, 2.5, 5.0)
_SHAPE = (160, 140, 60)
# Any engine draws the same picture.
_DEVICE = "reference"
_TISSUES_HU = np.array([-1000, -850, -100, 40, 700], np.int16)
#: What the panels start from: near the scan's own size, HU, all of it.
BASE = Spec(
    target_spacing_mm=(2.5, 2.5, 2.5),
    shape_hwd=(160, 140, 120),
    orientation="LPS",
    hu_window=None,
    dtype="int16",
)
#: By row: the step, and the contracts that it is shown with.
STEPS: dict[str, dict[str, Spec]] = {
    "1. orient": {
        "as stored (RAS)": replace(BASE, orientation="stored"),
        "orientation LPS": BASE,
        "orientation LPI": replace(BASE, orientation="LPI"),
    },
    "3. clip": {
        "none": BASE,
        "−1000 … 1000 HU": replace(BASE, hu_window=(-1000, 1000)),
        "−160 … 240 HU": replace(BASE, hu_window=(-160, 240)),
    },
    "4. resample": {
        "fit spacing, 5 × 5 × 5 mm": replace(
            BASE, target_spacing_mm=(5, 5, 5), shape_hwd=(80, 70, 60)
        ),
        "fit contain, 100³": replace(
            BASE, fit="contain", target_spacing_mm=(1, 1, 1), shape_hwd=(100, 100, 100)
        ),
        "fit stretch, 100³": Spec(
            **{**BASE.facts(), "target_spacing_mm": (0.75, 0.75, 1.5), "pad_value": None}
            | {"fit": "stretch", "shape_hwd": (100, 100, 100)}
        ),
    },
    "6. crop and pad": {
        "shape 160 × 140 × 120": BASE,
        "cropped, 100 × 100 × 80": replace(BASE, shape_hwd=(100, 100, 80)),
        "padded, 200 × 180 × 150": replace(BASE, shape_hwd=(200, 180, 150), pad_value=500),
    },
}
_ON_A_TABLE = replace(BASE, shape_hwd=(220, 200, 120), pad_value=500)
#: Of the scan on its table, seen from the feet.
BOXES: dict[str, Spec] = {
    "crop centre": _ON_A_TABLE,
    "crop foreground": replace(_ON_A_TABLE, crop="foreground"),
    "crop body, margin 10 mm": replace(_ON_A_TABLE, crop="body", margin_mm=10),
}


def stored_scan() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """The chest as HU of a few tissues, stored as RAS, and its spacing."""
    lps = chest_phantom(_SHAPE, _SPACING_MM).astype(np.float32)
    hu = _TISSUES_HU[np.abs(lps[..., None] - _TISSUES_HU).argmin(axis=-1)]
    hu[20:36, 60:80, 45:] = 1000  # at the patient's right, above
    return hu[::-1, ::-1], np.array(_SPACING_MM)


def scan_on_a_table() -> npt.NDArray[np.int16]:
    """The chest with air around it, and a table at its back."""
    hu, _ = stored_scan()
    wide = np.full((220, 200, hu.shape[2]), -1000, np.int16)
    wide[30:190, 50:190] = hu
    wide[10:210, 30:34] = wide[10:14, 30:60] = wide[206:210, 30:60] = -200
    return wide


def volume_of(hu: npt.NDArray[np.int16], spec: Spec) -> npt.NDArray[Any]:
    return np.asarray(
        ctgpu.preprocess(hu, _SPACING_MM, spec, _DEVICE, assume_orientation="RAS", hu_guard="warn")
    )


def made(spec: Spec) -> npt.NDArray[Any]:
    """The coronal slice in the middle of the output, feet down where D leads to the head."""
    volume = volume_of(stored_scan()[0], spec)
    return np.asarray(volume[:, volume.shape[1] // 2].T[::-1])


def draw(out: Path, dots_per_inch: int = 75) -> None:
    """Draw all panels into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(map(len, STEPS.values()))
    figure, rows = pyplot.subplots(len(STEPS) + 4, columns, figsize=(10, 18.5))
    image_rows = [rows[0], rows[1], rows[2], rows[6]]
    for panels, (step, specs) in zip(image_rows, STEPS.items(), strict=True):
        for panel, (title, spec) in zip(panels, specs.items(), strict=True):
            _draw_slice(panel, made(spec), f"{step}: {title}" if panel is panels[0] else title)
    for panel, (title, spec) in zip(rows[5], BOXES.items(), strict=True):
        volume = volume_of(scan_on_a_table(), spec)
        axial = volume[..., volume.shape[2] // 2].T
        _draw_slice(panel, axial, f"6. {title}" if panel is rows[5, 0] else title)
    for row, draw_panel in ((3, _draw_grids), (4, _draw_values), (7, _draw_rounding)):
        grid = rows[row, 0].get_gridspec()
        for panel in rows[row]:
            panel.remove()
        draw_panel(figure.add_subplot(grid[row, :]))
    figure.tight_layout()
    figure.savefig(out, dpi=dots_per_inch)
    pyplot.close(figure)


def _draw_slice(panel: Any, hu: npt.NDArray[Any], title: str) -> None:
    panel.imshow(hu, cmap="gray", vmin=-1000, vmax=1000, interpolation="nearest")
    panel.set_title(title, fontsize=9)
    panel.tick_params(labelsize=7)


def _draw_grids(panel: Any) -> None:
    """Where output voxels have their centres, of six source voxels at 1 mm."""
    n, target_mm = 6, 1.6
    spec = Spec(target_spacing_mm=(target_mm,) * 3, shape_hwd=(4, 4, 4))
    lines = {"source, 6 voxels at 1 mm": np.arange(n, dtype=float)}
    for grid in ("extent", "origin"):
        axis = plan_volume((n,) * 3, (1.0,) * 3, replace(spec, grid=grid)).axes[0]
        valid = np.arange(axis.pad_before, axis.pad_before + axis.n_valid)
        lines[f"grid {grid}, 1.6 mm"] = axis.step * valid + axis.first
    for height, (name, centres) in enumerate(reversed(lines.items())):
        panel.plot(centres, np.full(len(centres), height), "o-", label=name)
        for edge in centres:
            panel.annotate(f"{edge:.2f}", (edge, height + 0.15), fontsize=7, ha="center")
    panel.set_yticks(range(len(lines)), list(reversed(lines)), fontsize=8)
    panel.axvspan(-0.5, n - 0.5, color="0.92")
    panel.set_ylim(-0.5, len(lines) - 0.3)
    panel.set_title(
        "4. resample: where the centres of the voxels are, in source voxels", fontsize=9
    )
    panel.tick_params(axis="x", labelsize=7)


def _draw_values(panel: Any) -> None:
    """What becomes of HU, for several ways to normalise the same chest."""
    hu, spacing_mm = stored_scan()
    float16 = replace(BASE, dtype="float16", hu_window=(-1000, 1000), orientation="stored")
    own = replace(float16, hu_window=None, normalise="minmax")
    specs = {
        "window −1000 … 1000 to −1 … 1": float16,
        "to 0 … 1": replace(float16, output_range=(0, 1)),
        "window −160 … 240": replace(float16, hu_window=(-160, 240)),
        "percentiles 40 … 99.5": replace(own, normalise="percentiles", percentiles=(40, 99.5)),
        "z-score": replace(own, normalise="zscore"),
    }
    x = np.linspace(-1200, 1200, 400)
    for name, spec in specs.items():
        statistics = statistics_of(hu, Rescale(), spec) if spec.needs_statistics else None
        values = plan_volume(hu.shape, spacing_mm, spec, statistics=statistics).values
        clipped = np.clip(x, values.clip_lo, values.clip_hi)
        panel.plot(x, clipped * values.scale + values.offset, label=name)
    panel.legend(fontsize=7)
    panel.set_title("5. normalise: what HU become", fontsize=9)
    panel.tick_params(labelsize=7)


def _draw_rounding(panel: Any) -> None:
    """How far each type's numbers are from the HU that they stand for."""
    hu = np.linspace(-1000, 1000, 3000, dtype=np.float32)
    for dtype in ("uint8", "bfloat16", "int16", "float16"):
        spec = Spec(
            target_spacing_mm=(1, 1, 1), shape_hwd=(len(hu), 1, 1), dtype=dtype, clip="after"
        )
        stored = ctgpu.preprocess(
            hu[:, None, None], (1, 1, 1), spec, _DEVICE, intensity="hu", hu_guard="warn"
        )
        scale, offset = spec.scale_offset
        back = (numbers_of(stored, dtype).ravel().astype(float) - offset) / scale
        panel.plot(hu, np.abs(back - hu), label=dtype, linewidth=0.7)
    panel.set_yscale("log")
    panel.set_ylim(1e-2, 10)
    panel.legend(fontsize=7, loc="lower left")
    panel.set_title(
        "7. store: how far the stored number is from HU, window −1000 … 1000", fontsize=9
    )
    panel.tick_params(labelsize=7)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
