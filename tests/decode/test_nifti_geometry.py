"""Spacing and affine of NIfTI headers, nibabel's where the header is consistent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ctgpu.decode.nifti_geometry import geometry_facts
from ctgpu.errors import DecodeError
from ctgpu.volume.orientation import Orientation
from stored import rotated

SPACING_MM = tuple(float(np.float32(s)) for s in (0.7, 0.8, 1.5))
LPS = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80], [0, 0, 1.5, 30], [0, 0, 0, 1]])
KINDS = list(itertools.product((1, 2), "<>"))


def make_header(version: int = 1, order: str = "<", **fields: Any) -> Any:
    """A consistent header with an sform and a qform, both LPS, and then these fields."""
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    header = kind(endianness=order)
    header.set_data_shape((5, 4, 3))
    header.set_zooms((0.7, 0.8, 1.5))
    header.set_sform(LPS, code=1)
    header.set_qform(LPS, code=1)
    header.set_xyzt_units("mm")
    for name, value in fields.items():
        header[name] = value
    return header


@pytest.fixture(params=KINDS, ids=[f"{v}{'le' if o == '<' else 'be'}" for v, o in KINDS])
def kind(request: pytest.FixtureRequest) -> tuple[int, str]:
    """Version and byte order: every header goes the same way."""
    version, order = request.param
    return version, order


def spacing_of(header: Any) -> tuple[float, ...]:
    return tuple(float(s) for s in header["pixdim"][1:4])


@pytest.mark.parametrize("sform", [0, 1, 2])
@pytest.mark.parametrize("qfac", [-1, 1])
def test_any_consistent_header_has_nibabels_affine_to_the_bit(
    kind: tuple[int, str], sform: int, qfac: int
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        quaternion = rng.normal(size=4)
        quaternion /= np.linalg.norm(quaternion) * np.sign(quaternion[0])
        header = make_header(*kind)
        header["pixdim"][0:4] = [qfac, *rng.uniform(0.3, 5, 3)]
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion[1:]
        header["qoffset_x"] = rng.normal() * 100
        if sform:
            header.set_sform(header.get_qform(), code=sform)
        else:
            header["sform_code"] = 0
        facts = geometry_facts("a.nii", header)
        np.testing.assert_array_equal(facts["affine"], header.get_best_affine())
        assert facts["spacing_mm"] == spacing_of(header)
        assert facts["spacing_contradiction"] is None
        assert "orientation_contradiction" not in facts


@pytest.mark.parametrize(
    "pixdim",
    [(1, 1, 1), (0, 0.8, 1.5), (0, 0, 0), (-0.7, 0.8, 1.5), (0.7, 0.8, np.nan), (np.inf, 1, 1)],
)
def test_a_pixdim_that_is_unset_or_no_length_gives_way_to_the_sform(
    kind: tuple[int, str], pixdim: tuple[float, ...]
) -> None:
    facts = geometry_facts(
        "a.nii", make_header(*kind, qform_code=0, pixdim=[1, *pixdim, 1, 1, 1, 1])
    )
    assert facts["spacing_contradiction"] is None
    assert facts["spacing_mm"] == pytest.approx((0.7, 0.8, 1.5))
    np.testing.assert_allclose(facts["affine"], LPS, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"pixdim": [1, 1.5, 0.8, 0.7, 1, 1, 1, 1]}, "1.5 × 0.8 × 0.7"),
        ({"srow_z": [0, 0, 3.0, 30]}, "0.7 × 0.8 × 3"),
        ({"srow_x": [-1.4, 0, 0, 90]}, "1.4 × 0.8 × 1.5"),
    ],
    ids=["pixdim swapped", "third axis scaled", "first axis scaled"],
)
@pytest.mark.parametrize("qform_code", [0, 1])
def test_a_pixdim_that_contradicts_the_sform_is_told_of_both(
    kind: tuple[int, str], fields: dict[str, Any], found: str, qform_code: int
) -> None:
    facts = geometry_facts("a.nii", make_header(*kind, qform_code=qform_code, **fields))
    assert "0.7 × 0.8 × 1.5" in facts["spacing_contradiction"]
    assert found in facts["spacing_contradiction"]
    assert "a.nii" in facts["spacing_contradiction"]


@pytest.mark.parametrize(
    "rows",
    [
        {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4},
        {"srow_z": [0, 0, 0, 30]},
        {"srow_y": [-0.7, 0, 0, 90]},
        {"srow_x": [np.nan] * 4},
        {"srow_x": [-0.7, 0, 0, np.inf]},
    ],
    ids=["zero", "flat", "twice the same", "nan", "infinite offset"],
)
def test_an_sform_without_a_volume_gives_way_to_the_qform(
    kind: tuple[int, str], rows: dict[str, Any]
) -> None:
    header = make_header(*kind, **rows)
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_qform())
    assert facts["spacing_mm"] == spacing_of(header)
    header["qform_code"] = 0
    with pytest.raises(DecodeError, match=r"a\.nii states an orientation.*by sform"):
        geometry_facts("a.nii", header)
    header["qform_code"], header["quatern_b"] = 1, 3
    with pytest.raises(DecodeError, match="by sform and qform"):
        geometry_facts("a.nii", header)


def test_a_qform_that_cannot_be_read_gives_way_to_the_sform(kind: tuple[int, str]) -> None:
    header = make_header(*kind, quatern_b=9)
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_sform())


@pytest.mark.parametrize("pixdim", [(0, 0.8, 1.5), (-0.7, 0.8, 1.5), (np.nan, 0.8, 1.5)])
def test_a_qform_alone_needs_the_lengths(kind: tuple[int, str], pixdim: tuple[float, ...]) -> None:
    header = make_header(*kind, sform_code=0, pixdim=[1, *pixdim, 1, 1, 1, 1])
    with pytest.raises(DecodeError, match="by qform"):
        geometry_facts("a.nii", header)


def test_forms_that_lie_differently_but_lead_the_same_way_are_the_sforms(
    kind: tuple[int, str],
) -> None:
    header = make_header(*kind)
    header.set_qform(rotated(10) @ LPS, code=1)
    header["qoffset_x"] = -500
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_sform())
    assert "orientation_contradiction" not in facts


def test_forms_that_lead_elsewhere_are_told_of_both(kind: tuple[int, str]) -> None:
    header = make_header(*kind, srow_x=[0.7, 0, 0, 90])
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_sform())
    for word in ("a.nii", "RPS by its sform", "LPS by its qform", "--axes stored"):
        assert word in facts["orientation_contradiction"]


def test_a_qform_left_at_zero_contradicts_nothing(kind: tuple[int, str]) -> None:
    names = [f"quatern_{axis}" for axis in "bcd"] + [f"qoffset_{axis}" for axis in "xyz"]
    header = make_header(*kind, **dict.fromkeys(names, 0))
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_sform())
    assert "orientation_contradiction" not in facts
    header["qoffset_x"] = 1
    assert "RAS by its qform" in geometry_facts("a.nii", header)["orientation_contradiction"]


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (2, 1.0), (3, 0.001)])
@pytest.mark.parametrize("form", ["sform", "qform", "neither"])
@pytest.mark.parametrize("time_unit", [0, 8, 24])
def test_metres_and_micrometres_become_millimetres(
    kind: tuple[int, str], unit: int, factor: float, form: str, time_unit: int
) -> None:
    stored = LPS.copy()
    stored[:3] /= factor
    header = make_header(*kind, xyzt_units=unit + time_unit)
    header["pixdim"][1:4] = np.array((0.7, 0.8, 1.5)) / factor
    header.set_sform(stored, code=int(form == "sform"))
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = stored[:3, 3]
    header["qform_code"] = int(form == "qform")
    expected = LPS
    if form == "neither":
        expected = header.get_base_affine()
        expected[:3] *= factor
    facts = geometry_facts("a.nii", header)
    assert facts["spacing_mm"] == pytest.approx((0.7, 0.8, 1.5))
    np.testing.assert_allclose(facts["affine"], expected, rtol=1e-6)


def test_ninety_micrometres_are_not_ninety_millimetres() -> None:
    header = make_header(xyzt_units=3, sform_code=0, pixdim=[1, 90, 90, 90, 1, 1, 1, 1])
    assert geometry_facts("a.nii", header)["spacing_mm"] == (0.09, 0.09, 0.09)


@pytest.mark.parametrize("unit", [0, 4, 7])
def test_a_unit_that_is_not_known_is_millimetres(kind: tuple[int, str], unit: int) -> None:
    header = make_header(*kind, xyzt_units=unit)
    facts = geometry_facts("a.nii", header)
    assert facts["spacing_mm"] == spacing_of(header)
    np.testing.assert_array_equal(facts["affine"], header.get_sform())


@pytest.mark.parametrize("excess", [4.8e-7, 1e-5, 5e-3])
def test_a_quaternion_rounded_to_more_than_one_is_half_a_turn(
    kind: tuple[int, str], excess: float
) -> None:
    length = np.sqrt(1 + excess)
    header = make_header(*kind, sform_code=0)
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = 0, 0.6 * length, 0.8 * length
    with pytest.raises(ValueError, match="w2"):
        header.get_qform()
    affine = geometry_facts("a.nii", header)["affine"]
    header["quatern_c"], header["quatern_d"] = 0.6, 0.8
    np.testing.assert_allclose(affine, header.get_qform(), atol=1e-6)


def test_a_quaternion_far_longer_than_one_is_refused(kind: tuple[int, str]) -> None:
    with pytest.raises(DecodeError, match="by qform"):
        geometry_facts("a.nii", make_header(*kind, sform_code=0, quatern_b=0.5, quatern_c=1))


@pytest.mark.parametrize("qfac", [0, 2, np.nan])
def test_a_qfac_that_is_not_set_is_one(kind: tuple[int, str], qfac: float) -> None:
    header = make_header(*kind, sform_code=0)
    header["pixdim"][0] = 1
    expected = header.get_qform()
    header["pixdim"][0] = qfac
    np.testing.assert_array_equal(geometry_facts("a.nii", header)["affine"], expected)


def test_without_a_form_there_is_an_affine_and_no_orientation(kind: tuple[int, str]) -> None:
    header = make_header(*kind, sform_code=0, qform_code=0)
    facts = geometry_facts("a.nii", header)
    np.testing.assert_array_equal(facts["affine"], header.get_base_affine())
    assert facts["affine_source"] == "spacing"
    header["pixdim"][3] = 0
    assert "affine" not in geometry_facts("a.nii", header)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 1), (5, 4, 3, 1, 1)])
@pytest.mark.parametrize("compress", [False, True])
def test_a_whole_file_goes_the_same_way(
    make_nifti: Any, load: Any, kind: tuple[int, str], shape: tuple[int, ...], compress: bool
) -> None:
    version, order = kind
    voxels = np.zeros(shape, np.int16)
    options = {"version": version, "order": order, "compress": compress, "intent_code": 1001}
    unset = load("a.nii.gz", make_nifti(voxels, **options, pixdim=[1] * 8))
    assert unset.voxels.shape == (5, 4, 3)
    assert unset.spacing_mm == pytest.approx((0.7, 0.8, 1.5))
    assert unset.spacing_contradiction is None
    wrong = load("a.nii.gz", make_nifti(voxels, **options, pixdim=[1, 3, 0.8, 1.5, 1, 1, 1, 1]))
    assert "3 × 0.8 × 1.5" in wrong.spacing_contradiction


def test_real_volumes_are_taken_as_nibabel_has_them(real_ct: Path) -> None:
    found = set()
    for path in sorted(real_ct.glob("*.nii.gz")):
        header = nibabel.load(path).header
        facts = geometry_facts(path.name, header)
        np.testing.assert_array_equal(facts["affine"], header.get_best_affine())
        assert facts["spacing_mm"] == tuple(float(z) for z in header.get_zooms())
        assert facts.get("spacing_contradiction") is None
        assert "orientation_contradiction" not in facts
        found.add(Orientation.of(facts["affine"]).codes)
    assert found == {"LPS", "RAS"}
