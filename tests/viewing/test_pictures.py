"""Slices as JPEG, outlines as PNG."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from ctgpu.errors import UsageError
from ctgpu.viewing.pictures import COLOURS, colour_of, jpeg, outlines, require_pillow

Image = pytest.importorskip("PIL.Image")


def test_a_slice_is_a_grey_jpeg_of_the_wanted_size() -> None:
    grey = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[None], 64, 0)
    picture = Image.open(io.BytesIO(jpeg(grey, (48, 32))))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (48, 32))
    wanted = grey[:32, ::2].astype(int)
    assert np.abs(np.asarray(picture).astype(int) - wanted).mean() < 3


def test_an_outline_runs_along_the_border_of_a_label_and_is_transparent_elsewhere() -> None:
    labels = np.zeros((12, 10), np.uint16)
    labels[2:7, 3:8] = 1
    labels[7:9, 3:8] = len(COLOURS) + 2
    picture = Image.open(io.BytesIO(outlines(labels, (10, 12)))).convert("RGBA")
    shown = np.asarray(picture)
    drawn = shown[..., 3] > 0
    wanted = labels > 0
    wanted[3:6, 4:7] = False  # the inner voxels
    assert np.array_equal(drawn, wanted)
    first, second = (tuple(bytes.fromhex(colour_of(n)[1:])) for n in (1, len(COLOURS) + 2))
    assert tuple(shown[2, 3, :3]) == first
    assert tuple(shown[8, 3, :3]) == second
    assert second == tuple(bytes.fromhex(COLOURS[1][1:]))


def test_a_label_at_the_edge_is_closed_there() -> None:
    picture = Image.open(io.BytesIO(outlines(np.ones((4, 5), np.uint8), (5, 4)))).convert("RGBA")
    drawn = np.asarray(picture)[..., 3] > 0
    assert drawn.sum() == 20 - 6
    assert not drawn[1:3, 1:4].any()


def test_outlines_are_resampled_by_nearest_neighbour() -> None:
    labels = np.kron([[0, 3], [0, 0]], np.ones((8, 8), np.uint8))
    picture = Image.open(io.BytesIO(outlines(labels, (4, 4)))).convert("RGBA")
    assert np.asarray(picture)[..., 3].tolist() == [[0, 0, 255, 255]] * 2 + [[0] * 4] * 2


def test_where_there_is_no_label_there_is_no_picture() -> None:
    assert outlines(np.zeros((4, 4), np.uint8), (4, 4)) == b""


def test_colours_are_all_different() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
    assert colour_of(1) == COLOURS[0] == colour_of(1 + len(COLOURS))


def test_without_pillow_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_pillow()
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"need Pillow: install it with `pip .*view\]'`, or leave"):
        require_pillow()
