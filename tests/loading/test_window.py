"""HU windows that are chosen when a batch is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import volumes

from ctgpu.errors import UsageError
from ctgpu.loading import WINDOWS, make_loader
from ctgpu.loading.window import Scaling, apply_scalings, rewindow
from ctgpu.spec import Spec

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("window", ["lung", "soft_tissue", (-500.0, 700.0)])
def test_a_window_maps_hu_anew_with_one_rounding(folder: Path, window: Any) -> None:
    lo, hi = WINDOWS[window] if isinstance(window, str) else window
    expected = volumes(folder)
    for batch in make_loader(folder, 4, window=window):
        for row, study_id in enumerate(batch["study_id"]):
            hu = expected[study_id].double() * 1000
            wanted = ((hu - (lo + hi) / 2) / ((hi - lo) / 2)).clamp(-1, 1)
            apart = (batch["volume"][row].double() - wanted).abs().max()
            # Half of what separates float16 values below 1, and the float32 arithmetic.
            assert apart <= 2**-12 + 1e-6


@pytest.mark.parametrize("voxels", [1, 2, 3, 1001])
@pytest.mark.parametrize("part_voxels", [1, 7, 1 << 18])
def test_codes_in_the_last_half_of_the_room_are_read_before_they_are_written_over(
    voxels: int, part_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.loading.window._PART_VOXELS", part_voxels)
    codes = np.random.default_rng(voxels).integers(0, 256, voxels, np.uint8)
    room = torch.zeros(voxels, dtype=torch.float16)
    read = room.view(torch.uint8)[voxels:]
    read.copy_(torch.from_numpy(codes))
    apply_scalings(read[None], [Scaling(2 / 255, -1.0, "float16")], room[None])
    expected = codes.astype(np.float32) * np.float32(2 / 255) + np.float32(-1)
    assert np.array_equal(room.numpy(), expected.astype(np.float16))


@pytest.mark.parametrize("stored_window", [(-1000.0, 1000.0), (-1350.0, 150.0), (-73.5, 411.25)])
@pytest.mark.parametrize("window", [(-160.0, 240.0), (-450.0, 1050.0)])
def test_the_first_format_is_mapped_by_the_very_numbers_of_the_first_release(
    stored_window: tuple[float, float], window: tuple[float, float]
) -> None:
    half, middle = (stored_window[1] - stored_window[0]) / 2, sum(stored_window) / 2
    scale = 1 / ((window[1] - window[0]) / 2)
    offset = -(sum(window) / 2 / ((window[1] - window[0]) / 2))
    found = rewindow(Spec(hu_window=stored_window), window)
    assert found == Scaling(scale * half, scale * middle + offset, "float16")


def test_hu_that_were_not_clipped_have_every_window() -> None:
    spec = Spec(dtype="int16", hu_window=None)
    assert rewindow(spec, (2500.0, 3000.0)) == Scaling(1 / 250, -11.0, "float16")
    with pytest.raises(UsageError, match="holds -32768 to 32767 HU only"):
        rewindow(spec, (40_000.0, 50_000.0))
    with pytest.raises(UsageError, match="holds -900 to 700 HU only; choose a window within"):
        rewindow(Spec(dtype="int16", hu_window=(-900, 700)), (700.0, 800.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"normalise": "minmax"},
        {"normalise": "zscore"},
        {"normalise": "percentiles", "percentiles": (1.0, 99.0), "hu_window": None},
        {"normalise": "minmax", "dtype": "uint8"},
    ],
    ids=["minmax", "zscore", "percentiles", "uint8"],
)
def test_volumes_with_scales_of_their_own_have_no_window(fields: dict[str, Any]) -> None:
    message = (
        f"window is 'lung', and the data set was built with normalise='{fields['normalise']}', so "
        "each volume has a scale of its own; build with dtype='int16'"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        rewindow(Spec(**fields), "lung")


def test_the_named_windows_are_those_of_the_field() -> None:
    assert dict(WINDOWS) == {
        "lung": (-1350.0, 150.0),
        "soft_tissue": (-160.0, 240.0),
        "mediastinum": (-125.0, 225.0),
        "bone": (-450.0, 1050.0),
    }
    spec = Spec(dtype="int16", hu_window=None)
    assert [rewindow(spec, name) for name in WINDOWS] == [
        rewindow(spec, window) for window in WINDOWS.values()
    ]
