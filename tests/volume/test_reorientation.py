"""``Spec.orientation`` from a file to its output: one patient, however stored, is one volume."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

import ctgpu
from ctgpu.engines import Engine, open_engine
from ctgpu.errors import GeometryError
from ctgpu.spec import Spec
from ctgpu.volume.on_scan import Geometry
from stored import chest_as, rotated, save
from support.phantoms import SPACING_MM

#: Axes to the left, back and head: three unequal ones.
SHAPE = (24, 30, 21)
TURNED = Spec(target_spacing_mm=(4.0, 3.5, 6.0), shape_hwd=(18, 28, 16), orientation="LPS")


@pytest.fixture(scope="module")
def cpu() -> Engine:
    return open_engine("cpu")


def preprocess(source: Any, spec: Spec, engine: Engine, **options: Any) -> tuple[Any, Geometry]:
    found: tuple[Any, Geometry] = ctgpu.preprocess(
        source, spec=spec, device=engine, return_geometry=True, threads=1, **options
    )
    return found


def askew(codes: str, axis: int = 0, degrees: float = 12) -> nibabel.Nifti1Image:
    """The chest, stored as these codes say and turned in the scanner."""
    image = chest_as(codes, SHAPE)
    return nibabel.Nifti1Image(np.asanyarray(image.dataobj), rotated(degrees, axis) @ image.affine)


def bits(volume: npt.NDArray[Any]) -> bytes:
    return volume.tobytes()


@pytest.mark.parametrize("order", list(itertools.permutations(("LR", "AP", "SI"))))
def test_one_scan_gives_one_output_however_it_is_stored(
    tmp_path: Path, cpu: Engine, order: tuple[str, ...]
) -> None:
    expected, geometry = preprocess(
        save(tmp_path / "LPS.nii", askew("LPS")), replace(TURNED, orientation="stored"), cpu
    )
    assert len(np.unique(expected)) > 100
    for codes in map("".join, itertools.product(*order)):
        path = save(tmp_path / f"{codes}.nii", askew(codes))
        found, turned = preprocess(path, TURNED, cpu)
        assert bits(found) == bits(expected)
        # The header's affine is of float32.
        np.testing.assert_allclose(turned.affine, geometry.affine, atol=1e-4)
        assert turned.orientation is not None
        assert turned.orientation.codes == codes
        image = nibabel.load(path)
        assert turned.source_shape == image.shape
        assert turned.spacing_mm == pytest.approx(image.header.get_zooms())


@pytest.mark.parametrize("wanted", ["RAS", "PLS", "SLP", "IAR"])
@pytest.mark.parametrize("stored", ["LPS", "RAI", "PLS"])
def test_turning_is_what_nibabel_does_before(
    tmp_path: Path, cpu: Engine, stored: str, wanted: str
) -> None:
    spec = replace(TURNED, orientation=wanted, layout="DHW")
    image = askew(stored)
    turn = ornt_transform(axcodes2ornt(tuple(stored)), axcodes2ornt(tuple(wanted)))
    before = save(tmp_path / "before.nii", image.as_reoriented(turn))
    expected, geometry = preprocess(before, replace(spec, orientation="stored"), cpu, axes="stored")
    found, turned = preprocess(save(tmp_path / "scan.nii", image), spec, cpu)
    assert bits(found) == bits(expected)
    np.testing.assert_allclose(turned.affine, geometry.affine, atol=1e-4)


def test_the_letters_are_of_h_w_and_d_in_this_order(tmp_path: Path, cpu: Engine) -> None:
    image = chest_as("LPS", SHAPE)
    voxels = np.array(image.dataobj)
    at = (7, 18, 13)  # to the left, back and head
    voxels[at] = 3000
    scan = save(tmp_path / "scan.nii", nibabel.Nifti1Image(voxels, image.affine))
    spec = Spec(
        target_spacing_mm=(SPACING_MM[1], SPACING_MM[0], SPACING_MM[2]),
        shape_hwd=(SHAPE[1], SHAPE[0], SHAPE[2]),
        hu_window=(-1000, 3000),
        orientation="PLS",
        layout="DHW",
    )
    found, _ = preprocess(scan, spec, cpu)
    # An array whose axes are S, P, L.
    assert found.shape == SHAPE[::-1]
    assert np.unravel_index(found.argmax(), found.shape) == at[::-1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_an_oblique_scan_the_nearest_axes_are_taken(
    tmp_path: Path, cpu: Engine, axis: int
) -> None:
    spec = replace(TURNED, orientation="RAS")
    scan = save(tmp_path / "scan.nii", askew("PLI", axis, 29))
    found, geometry = preprocess(scan, spec, cpu)
    expected, _ = preprocess(save(tmp_path / "aligned.nii", chest_as("PLI", SHAPE)), spec, cpu)
    assert bits(found) == bits(expected)
    assert geometry.orientation is not None
    assert geometry.orientation.codes == "PLI"
    assert geometry.orientation.tilt_degrees == pytest.approx(29, abs=0.01)
    assert nibabel.aff2axcodes(geometry.affine) == ("R", "A", "S")
    scan = save(tmp_path / "further.nii", askew("PLI", axis, 31))
    with pytest.raises(GeometryError, match=r"up to 31°.*--max-tilt-degrees"):
        preprocess(scan, spec, cpu)


@pytest.mark.parametrize("axes", ["checked", "stored"])
def test_a_scan_that_is_stored_in_two_ways_is_not_turned(
    tmp_path: Path, cpu: Engine, axes: str
) -> None:
    half_a_turn = {"qform_code": 1, "quatern_b": 1, "quatern_d": 0}
    scan = save(tmp_path / "scan.nii", chest_as("LPS", SHAPE), **half_a_turn)
    with pytest.raises(GeometryError, match=r"as LPS by its sform and as RPI by its qform"):
        preprocess(scan, TURNED, cpu, axes=axes)
    preprocess(scan, replace(TURNED, orientation="stored"), cpu, axes="stored")


@pytest.mark.parametrize("kind", ["array", "file"])
def test_a_scan_that_states_no_affine_is_turned_only_as_one_assumes(
    tmp_path: Path, cpu: Engine, kind: str
) -> None:
    image = chest_as("RAI", SHAPE)
    expected, geometry = preprocess(save(tmp_path / "stated.nii", image), TURNED, cpu)
    bare = save(tmp_path / "bare.nii", image, sform_code=0, qform_code=0)
    scan = bare if kind == "file" else np.asanyarray(image.dataobj)
    options = {"spacing_mm": image.header.get_zooms()}
    with pytest.raises(
        GeometryError, match=r"to be turned to LPS: say how with assume_orientation"
    ):
        preprocess(scan, TURNED, cpu, **options)
    found, assumed = preprocess(scan, TURNED, cpu, assume_orientation="RAI", **options)
    assert bits(found) == bits(expected)
    assert assumed.affine_source == "assumed"
    np.testing.assert_allclose(assumed.affine[:3, :3], geometry.affine[:3, :3], atol=1e-6)


def test_a_stated_orientation_outweighs_an_assumed_one(tmp_path: Path, cpu: Engine) -> None:
    scan = save(tmp_path / "scan.nii", chest_as("RAI", SHAPE))
    expected, _ = preprocess(scan, TURNED, cpu)
    found, geometry = preprocess(scan, TURNED, cpu, assume_orientation="LPS")
    assert bits(found) == bits(expected)
    assert geometry.affine_source == "header"


def test_real_ct_is_turned(tmp_path: Path, cpu: Engine, real_ct: Path) -> None:
    scan = nibabel.load(real_ct / "ts_example_ct_sm.nii.gz")
    codes = nibabel.aff2axcodes(scan.affine)
    assert codes == ("R", "A", "S")
    path = real_ct / "ts_example_ct_sm.nii.gz"
    found, geometry = preprocess(path, TURNED, cpu)
    turn = ornt_transform(axcodes2ornt(codes), axcodes2ornt(tuple("LPS")))
    before = save(tmp_path / "before.nii", scan.as_reoriented(turn))
    expected, _ = preprocess(before, replace(TURNED, orientation="stored"), cpu)
    assert bits(found) == bits(expected)
    assert nibabel.aff2axcodes(geometry.affine) == ("L", "P", "S")
