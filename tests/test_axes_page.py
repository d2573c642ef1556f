"""What docs/axes.md shows is true: its code, its picture, its words."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from ctgpu.spec import Spec
from ctgpu.volume.orientation import DEFAULT_MAX_TILT_DEGREES, Orientation
from stored import chest_as, rotated, save
from support.pages import python_blocks

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "axes.md").read_text()


#: A mark in the scan, three voxels wide.
MARK = (20, 31, 37)
GRID: dict[str, Any] = {"target_spacing_mm": (4.0, 3.5, 5.0), "shape_hwd": (70, 64, 60)}


def build_marked(folder: Path, codes: str, spec: Spec) -> nibabel.Nifti1Image:
    """A marked scan that lies askew, and a data set of it."""
    image = chest_as(codes)
    affine = rotated(7) @ image.affine
    affine[:3, 3] += (11, -22, 33)
    voxels = np.array(image.dataobj)
    voxels[tuple(slice(m - 1, m + 2) for m in MARK)] = 3000
    scan = nibabel.Nifti1Image(voxels, affine)
    save(folder / "source/valid_1_a_1.nii", scan)
    ctgpu.build(folder / "shards/valid", source=folder / "source", spec=spec, device="cpu")
    return scan


def run_code_after(heading: str) -> dict[str, Any]:
    """The names that the code of a section leaves behind."""
    section = PAGE.partition(heading)[2].partition("\n## ")[0]
    (code,) = python_blocks(section)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("codes", ["LPS", "RAI", "PLS"])
def test_its_code_finds_a_mark_of_the_patient_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    layout: str,
    codes: str,
) -> None:
    scan = build_marked(tmp_path, codes, Spec(**GRID, layout=layout))
    monkeypatch.chdir(tmp_path)
    found = run_code_after("## From a batch back to the patient")
    expected_mm = (scan.affine @ [*MARK, 1])[:3]
    # The mark is three voxels wide, and so is a voxel of the output, nearly.
    apart_mm = np.linalg.norm([found["x"], found["y"], found["z"]] - expected_mm)
    assert apart_mm < 7, (found["x"], found["y"], found["z"], expected_mm)
    assert "mm to the head" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("orientation", ["stored", "RAS", "PLS"])
def test_its_code_writes_a_prediction_onto_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, orientation: str
) -> None:
    # Only the mark is above the middle of this window.
    spec = Spec(**GRID, layout=layout, orientation=orientation, hu_window=(-1000, 4000))
    scan = build_marked(tmp_path, "LPI", spec)
    monkeypatch.chdir(tmp_path)
    run_code_after("## Back onto the scan")
    image = nibabel.load("pred.nii.gz")
    np.testing.assert_array_equal(image.affine, scan.affine.astype(np.float32))
    found = np.asanyarray(image.dataobj)
    assert found.shape == scan.shape
    # At most one voxel too many or too few on each side.
    assert found[MARK] == 1
    assert 8 <= found.sum() <= 64
    assert np.abs(np.argwhere(found) - MARK).max() <= 2


@pytest.mark.slow
def test_its_picture_is_small_and_made_by_its_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (DOCS / "axes.png").stat().st_size < 200_000
    made = runpy.run_path(str(DOCS / "axes.py"))
    views = made["stored_views"]()
    for view in views:
        assert view.title.startswith(Orientation.of(view.affine).codes)
    made["draw"](views, tmp_path / "axes.png", dots_per_inch=20)
    assert (tmp_path / "axes.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_its_picture_shows_one_patient(tmp_path: Path) -> None:
    from ctgpu.checking.sheet import as_displayed

    first, *others = runpy.run_path(str(DOCS / "axes.py"))["stored_views"]()
    for other in others:
        assert np.array_equal(as_displayed(other)[0], as_displayed(first)[0])
        assert not np.array_equal(other.hu, first.hu)


def test_it_states_the_default_limit() -> None:
    assert f"| `--max-tilt-degrees` | {DEFAULT_MAX_TILT_DEGREES:g} |" in PAGE
