"""Looking at samples: facts and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import ctgpu
from ctgpu.errors import UsageError
from ctgpu.inspect import View, as_displayed, cuts, draw_originals, draw_sheet, inspect_samples
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

SPACING_MM = (3.5, 3.0, 5.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = {
        f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
        for n in (1, 2)
    }
    lay_out_ct_rate(root, volumes)
    return root


def build(folder: Path, source: Path, layout: str = "HWD") -> Path:
    spec = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40), layout=layout)
    ctgpu.build(folder, source=source, spec=spec, device="cpu")
    return folder


def test_facts_of_a_preprocessed_sample(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    (facts, view), (second, _) = inspect_samples(folder)
    assert (facts.key, facts.file, second.key) == (
        *("valid_1_a_1", "shard-000000.tar"),
        "valid_2_a_1",
    )
    assert (facts.shape, facts.layout, facts.dtype) == ((80, 72, 40), "HWD", "float16")
    assert facts.members["bin"] == 2 * 80 * 72 * 40
    assert facts.preprocessed
    assert -1 <= facts.lowest < facts.mean < facts.highest <= 1
    assert facts.spacing_mm == pytest.approx((4.0, 4.0, 6.0), rel=0.03)
    assert facts.labels is not None
    assert len(facts.labels) == 18
    assert "Trachea" in facts.report
    assert facts.source["spacing_mm"] == list(SPACING_MM)
    assert facts.engine is not None
    assert '"cpu"' in facts.engine
    assert -1000 <= view.hu.min() < -800 < 500 < view.hu.max() <= 1000
    assert view.positive_labels == tuple(name for name, v in facts.labels.items() if v > 0)
    assert json.dumps(facts.to_dict())


def test_either_layout_is_drawn_the_same(tmp_path: Path, source: Path) -> None:
    views = [
        next(inspect_samples(build(tmp_path / layout, source, layout)))[1]
        for layout in ("HWD", "DHW")
    ]
    assert np.array_equal(views[0].hu, views[1].hu)
    assert views[0].spacing_mm == views[1].spacing_mm


@pytest.mark.parametrize("where", ["{out}/shard-000000.tar", "{out}/shard-*.tar", "{out}"])
def test_tars_patterns_and_folders_are_found(tmp_path: Path, source: Path, where: str) -> None:
    folder = build(tmp_path / "out", source)
    assert len(list(inspect_samples(where.format(out=folder), num_samples=1))) == 1


def test_a_volume_file_is_looked_at_as_it_is(source: Path) -> None:
    (path,) = source.rglob("valid_1_a_1.nii.gz")
    ((facts, view),) = inspect_samples(path)
    assert (facts.shape, facts.dtype, facts.preprocessed) == ((90, 80, 60), "int16", False)
    assert view.hu.shape == (90, 80, 60)
    assert facts.labels is None


def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "x-*.tar"):
        with pytest.raises(UsageError, match="names no tar"):
            list(inspect_samples(where))


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


def test_a_sheet_has_a_row_for_result_and_source(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    views = [view for _, view in inspect_samples(folder, num_samples=1)]
    views += draw_originals(folder, source, [views[0].title])
    assert views[1].hu.shape == (90, 80, 60)
    draw_sheet(views, tmp_path / "sheet.png")
    from matplotlib.image import imread

    height, width = imread(tmp_path / "sheet.png").shape[:2]
    assert (width, height) == (1120, 512)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    views = [view for _, view in inspect_samples(build(tmp_path / "out", source), num_samples=1)]
    with pytest.raises(UsageError, match=r"pip install 'ctgpu\[preview\]'"):
        draw_sheet(views, tmp_path / "sheet.png")
