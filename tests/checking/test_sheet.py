"""Pictures of samples and files, and what is refused before one is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from checking_cases import build, raw_tar
from typer.testing import CliRunner

from ctgpu.checking.facts import inspect_samples
from ctgpu.checking.sheet import View, as_displayed, cuts, draw_originals, draw_sheet, label_words
from ctgpu.cli.commands import app
from ctgpu.errors import UsageError
from stored import chest_as, save


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_the_patient_is_shown_the_same_however_it_is_stored(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    # A mark at the patient's right, front and head, in an array of any orientation.
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    sizes, spacing_ras = (12, 14, 16), (1.0, 2.0, 3.0)
    shape, spacing, corner = [0] * 3, [0.0] * 3, [0] * 3
    for world, axis in enumerate(axes):
        affine[world, axis] = signs[world] * spacing_ras[world]
        shape[axis], spacing[axis] = sizes[world], spacing_ras[world]
        corner[axis] = sizes[world] - 1 if signs[world] > 0 else 0
    hu = np.zeros(shape, np.float32)
    hu[tuple(corner)] = 1000
    view = View("", hu, (spacing[0], spacing[1], spacing[2]), affine, None)
    shown, spacing_mm, known = as_displayed(view)
    assert known
    assert (shown.shape, spacing_mm) == (sizes, spacing_ras)
    # Axes lead to the left, back and head: right and front are their low ends.
    assert np.argwhere(shown == 1000).tolist() == [[0, 0, 15]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn, in place of files."""
    figures: list[Any] = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


@pytest.mark.slow
def test_five_ways_of_storing_a_scan_look_different_and_show_one_patient(
    tmp_path: Path, drawn: list[Any]
) -> None:
    codes = ("LPS", "RAS", "LPI", "PLS", "SLP")
    looked_at = [next(inspect_samples(save(tmp_path / f"{c}.nii", chest_as(c)))) for c in codes]
    draw_sheet([view for _, view in looked_at], tmp_path / "sheet.png")
    rows = np.reshape(drawn[0].axes, (5, 6))
    for code, (facts, view), (stored, axial, coronal, *_) in zip(
        codes, looked_at, rows, strict=True
    ):
        assert facts.orientation.codes == code
        assert stored.get_title() == f"as stored ({code}): H down, W across, middle D"
        # Rows of the picture are H, columns W, of the array as it lies in the file.
        voxels = np.asanyarray(chest_as(code).dataobj)
        assert np.array_equal(stored.images[0].get_array(), voxels[:, :, voxels.shape[2] // 2])
        left, right, bottom, top = stored.images[0].get_extent()
        size_mm = np.multiply(voxels.shape, view.spacing_mm)
        assert (bottom - top, right - left) == pytest.approx(tuple(size_mm[:2]))
        for shown, first in ((axial, rows[0][1]), (coronal, rows[0][2])):
            assert shown.images[0].get_array().shape == first.images[0].get_array().shape
    stored_arrays = {row[0].images[0].get_array().tobytes() for row in rows}
    assert len(stored_arrays) == 5
    # PLS and LPS have the same middle slice of the head's axis: turned alike, it is one picture.
    axial = [row[1].images[0].get_array() for row in rows]
    assert np.array_equal(axial[0], axial[3])


def test_what_states_no_orientation_is_drawn_without_sides(
    tmp_path: Path, drawn: list[Any]
) -> None:
    path = save(tmp_path / "a.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    ((facts, view),) = inspect_samples(path)
    assert facts.orientation is None
    draw_sheet([view], tmp_path / "sheet.png")
    stored, axial, *_ = drawn[0].axes
    assert "as stored (orientation not stated)" in stored.get_title()
    assert axial.get_title() == "axial, orientation not stated"
    assert len(axial.texts) == 0


def test_cuts_have_front_and_head_at_the_top() -> None:
    volume = np.zeros((4, 6, 8), np.float32)
    volume[:, 0, :] += 1  # front
    volume[:, :, -1] += 2  # head
    axial, coronal, sagittal = cuts(volume)
    assert axial.shape == (6, 4)
    assert np.all(axial[0] == 1)
    assert coronal.shape == (8, 4)
    assert np.all(coronal[0] == 2)
    assert sagittal.shape == (8, 6)
    assert sagittal[0, 0] == 3


@pytest.mark.slow
def test_a_sheet_has_a_row_for_result_and_source(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    views = [view for _, view in inspect_samples(folder, num_samples=1)]
    views += draw_originals(folder, source, [views[0].title])
    assert views[1].hu.shape == (90, 80, 60)
    draw_sheet(views, tmp_path / "sheet.png")
    from matplotlib.image import imread

    height, width = imread(tmp_path / "sheet.png").shape[:2]
    assert (width, height) == (1360, 512)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    views = [view for _, view in inspect_samples(build(tmp_path / "out", source), num_samples=1)]
    with pytest.raises(UsageError, match=r"pip install .*\[preview\]'"):
        draw_sheet(views, tmp_path / "sheet.png")


def write_labels(path: Path, values: list[float]) -> Path:
    return raw_tar(path, np.array(values, "<f4").tobytes())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan] * 3, ["not known"]),
        ([0, 0, 0], ["none is positive"]),
        ([1, np.nan, 0], ["class 0", "1 of 3 not known"]),
        ([0, np.nan, 0], ["none is positive", "1 of 3 not known"]),
    ],
)
def test_labels_that_are_not_known_are_never_called_negative(
    tmp_path: Path, values: list[float], words: list[str]
) -> None:
    path = write_labels(tmp_path / "a.tar", values)
    ((facts, view),) = inspect_samples(path)
    assert facts.labels is not None
    assert label_words(facts.labels) == words
    assert ", ".join(words) in CliRunner().invoke(app, ["inspect", str(path)]).stdout
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        text = axes.text
        patch.setattr(
            axes,
            "text",
            lambda self, x, y, s, **options: (drawn.append(s), text(self, x, y, s, **options))[1],
        )
        draw_sheet([view], tmp_path / "sheet.png")
    assert "\n".join(["labels:", *words]) in drawn


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLP"])
def test_a_mask_is_outlined_where_it_lies(code: str, tmp_path: Path, drawn: list[Any]) -> None:
    shape, spacing_mm = (20, 30, 40), (1.0, 2.0, 3.0)
    mask = np.zeros(shape, np.uint8)
    mask[4:12, 10:21, 15:33] = 1
    mask[0:5, 0:9, 18:22] = 200  # as far as the edges
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(tuple("LPS")),
        nibabel.orientations.axcodes2ornt(tuple(code)),
    )
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    affine = affine @ nibabel.orientations.inv_ornt_aff(turn, shape)
    stored = nibabel.orientations.apply_orientation(mask, turn)
    view = View(
        "a",
        np.where(stored, 100, -1000).astype(np.float32),
        tuple(np.sqrt((affine[:3, :3] ** 2).sum(0))),
        affine,
        None,
        stored,
    )
    assert view.spacing_mm == tuple(spacing_mm[int(axis)] for axis in np.argsort(turn[:, 0]))
    draw_sheet([view], tmp_path / "sheet.png")
    _, axial, coronal, sagittal, *_ = drawn[0].axes
    # Left to right of the picture, and from its top, which is the head or the front.
    for ax, wanted in (
        (axial, [(4, 12, 20, 42), (0, 5, 0, 18)]),
        (coronal, [(4, 12, 120 - 99, 120 - 45)]),
        (sagittal, [(20, 42, 120 - 99, 120 - 45)]),
    ):
        lines = [line for line in ax.collections if line.get_paths()[0].vertices.size]
        assert len(lines) == len(wanted)
        for line, (left, right, top, bottom) in zip(lines, wanted, strict=True):
            (path,) = line.get_paths()
            low, high = path.vertices.min(0), path.vertices.max(0)
            assert (*low, *high) == pytest.approx((left, top, right, bottom))
        assert ax.get_xlim() == tuple(ax.images[0].get_extent()[:2])
        assert ax.get_ylim() == tuple(ax.images[0].get_extent()[2:])
    colours = {tuple(line.get_edgecolor()[0]) for line in axial.collections}
    assert len(colours) == 2


def test_an_empty_mask_and_none_are_drawn_without_outlines(
    tmp_path: Path, drawn: list[Any]
) -> None:
    hu = np.zeros((5, 6, 1), np.float32)
    for mask in (None, np.zeros(hu.shape, np.uint16)):
        draw_sheet([View("a", hu, (1.0, 1.0, 1.0), None, None, mask)], tmp_path / "sheet.png")
    assert not [ax for figure in drawn for ax in figure.axes if ax.collections]
