"""What an affine says about stored axes, and what is refused for it."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from ctgpu.errors import GeometryError, UsageError
from ctgpu.volume.orientation import (
    AS_STORED,
    AxisRules,
    Orientation,
    Reorientation,
    assumed_affine,
    axis_lengths_mm,
    is_usable,
    orientation_of,
    settle_spacing,
)
from ctgpu.volume.raw import RawVolume
from stored import rotated

ALIGNED = np.diag([-0.7, -0.7, 1.5, 1.0])
#: Every way to store a volume.
ALL_CODES = [
    "".join(letters)
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*pairs)
]


def raw(affine: np.ndarray | None, **facts: object) -> RawVolume:
    return RawVolume(np.zeros((4, 4, 4), np.int16), affine=affine, **facts)  # type: ignore[arg-type]


def affine_of(codes: str) -> np.ndarray:
    """Axes of 1, 2 and 3 mm that lead where the codes say."""
    affine = np.eye(4) * [0, 0, 0, 1]
    for column, code in enumerate(codes):
        affine["RLAPSI".index(code) // 2, column] = (column + 1) * (1 if code in "RAS" else -1)
    return affine


@pytest.mark.parametrize("codes", ALL_CODES)
def test_every_aligned_orientation_has_its_codes(codes: str) -> None:
    orientation = Orientation.of(affine_of(codes))
    assert orientation == Orientation(codes, 0.0, 0.0)
    assert codes == "".join(nibabel.aff2axcodes(affine_of(codes)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [0.1, 8.0, 20.0, 44.0])
def test_a_turned_volume_is_tilted_and_not_sheared(axis: int, degrees: float) -> None:
    orientation = Orientation.of(rotated(degrees, axis) @ ALIGNED)
    assert orientation.codes == "LPS"
    assert orientation.tilt_degrees == pytest.approx(degrees, abs=0.002)
    assert orientation.shear_degrees == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("degrees", [1.0, 20.0, 30.0])
def test_slices_tilted_and_stacked_along_the_table_are_sheared(degrees: float) -> None:
    affine = ALIGNED.copy()
    affine[:3, 1] = rotated(degrees)[:3, :3] @ affine[:3, 1]
    orientation = Orientation.of(affine)
    assert orientation.codes == "LPS"
    assert orientation.tilt_degrees == pytest.approx(degrees, abs=0.002)
    assert orientation.shear_degrees == pytest.approx(degrees, abs=0.002)


@given(st.lists(st.floats(-3, 3), min_size=9, max_size=9))
def test_any_usable_affine_has_codes_and_angles(entries: list[float]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(entries, (3, 3))
    if not is_usable(affine):
        return
    orientation = Orientation.of(affine)
    assert sorted("RLAPSI".index(code) // 2 for code in orientation.codes) == [0, 1, 2]
    assert 0 <= orientation.tilt_degrees <= 90
    assert 0 <= orientation.shear_degrees <= 90


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.diag([1.0, np.nan, 1, 1]),
        np.diag([1.0, np.inf, 1, 1]),
        np.diag([1e300, 1, 1, 1]),
        np.array([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]),
        np.array([[1.0, 0, 0, np.nan], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["zero", "flat", "nan", "inf", "huge", "coplanar", "offset"],
)
def test_an_affine_without_a_volume_is_not_usable(affine: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        assert not is_usable(affine)


def test_a_bare_spacing_is_no_orientation() -> None:
    assert orientation_of(raw(None)) is None
    assert orientation_of(raw(ALIGNED, affine_source="spacing")) is None
    assert orientation_of(raw(ALIGNED)) == Orientation("LPS", 0.0, 0.0)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LPI", "PLS", "ARI"])
def test_a_third_axis_along_the_patient_is_taken(codes: str) -> None:
    AxisRules().check(raw(affine_of(codes)), Orientation.of(affine_of(codes)))


@pytest.mark.parametrize(
    ("codes", "leads"), [("SLP", "back"), ("PSR", "right"), ("LSA", "front"), ("SPL", "left")]
)
def test_a_third_axis_across_the_patient_is_refused_unless_stored_is_asked_for(
    codes: str, leads: str
) -> None:
    volume, orientation = raw(affine_of(codes)), Orientation.of(affine_of(codes))
    with pytest.raises(GeometryError, match=f"stored as {codes}.*patient's {leads}.*--axes stored"):
        AxisRules().check(volume, orientation)
    AxisRules("stored").check(volume, orientation)


def test_nothing_is_refused_without_an_orientation() -> None:
    AxisRules(max_tilt_degrees=0).check(raw(None), None)


def test_two_orientations_are_refused_unless_stored_is_asked_for() -> None:
    volume = raw(ALIGNED, orientation_contradiction="a.nii is both")
    with pytest.raises(GeometryError, match="is both"):
        AxisRules().check(volume, Orientation.of(ALIGNED))
    AxisRules("stored").check(volume, Orientation.of(ALIGNED))


@pytest.mark.parametrize("axes", ["checked", "stored"])
@pytest.mark.parametrize("kind", ["tilt", "shear"])
def test_an_angle_beyond_the_limit_is_refused_whatever_the_axes(axes: str, kind: str) -> None:
    affine = rotated(20) @ ALIGNED
    if kind == "shear":
        affine[:3, 2] = ALIGNED[:3, 2]
    orientation = Orientation.of(affine)
    AxisRules(axes, 20.01).check(raw(affine), orientation)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match=r"up to 20°.*at most 19\.9°.*--max-tilt-degrees"):
        AxisRules(axes, 19.9).check(raw(affine), orientation)  # type: ignore[arg-type]


def test_shear_counts_where_it_is_more_than_the_tilt() -> None:
    affine = np.eye(4)
    affine[:3, 1] = rotated(20)[:3, 1]
    affine[:3, 2] = rotated(-20)[:3, 2]
    orientation = Orientation.of(affine)
    assert (orientation.tilt_degrees, orientation.shear_degrees) == (20.0, 40.0)
    with pytest.raises(GeometryError, match="sheared by 40°"):
        AxisRules().check(raw(affine), orientation)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": "RAS"}, "axes is 'RAS'; it is checked or stored"),
        ({"axes": 3}, "axes is 3"),
        ({"max_tilt_degrees": -1}, "max_tilt_degrees is -1"),
        ({"max_tilt_degrees": 90.5}, "max_tilt_degrees is 90.5"),
        ({"max_tilt_degrees": float("nan")}, "max_tilt_degrees is nan"),
        ({"max_tilt_degrees": "20"}, "max_tilt_degrees is '20'"),
        ({"max_tilt_degrees": True}, "max_tilt_degrees is True"),
    ],
)
def test_rules_that_mean_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AxisRules.of_selection(values)


def test_what_a_selection_does_not_state_is_the_default() -> None:
    assert AxisRules.of_selection({"recon": "all"}) == AxisRules()
    assert AxisRules.of_selection({"axes": None, "max_tilt_degrees": None}) == AxisRules()
    assert AxisRules.of_selection({"axes": "stored"}) == AxisRules("stored", 30.0)


@pytest.mark.parametrize("factor", [1.0, 1.0099, 0.9901])
def test_a_spacing_that_agrees_stands_to_the_bit(factor: float) -> None:
    stated = tuple(float(np.float32(s * factor)) for s in (0.7, 0.7, 1.5))
    assert settle_spacing("a.nii", stated, ALIGNED) == (stated, None)


@pytest.mark.parametrize(
    "stated",
    [(1, 1, 1), (0, 0.7, 1.5), (-0.7, 0.7, 1.5), (np.nan, 0.7, 1.5), (0.7, np.inf, 1.5), (0, 0, 0)],
)
def test_the_affine_serves_where_the_spacing_is_unset_or_no_length(
    stated: tuple[float, ...],
) -> None:
    spacing_mm, contradiction = settle_spacing("a.nii", stated, ALIGNED)
    assert contradiction is None
    assert spacing_mm == pytest.approx((0.7, 0.7, 1.5))


@pytest.mark.parametrize(
    "stated", [(0.7, 0.7, 3.0), (1.5, 0.7, 0.7), (0.7, 0.7, 1.52), (1.0, 1.0, 1.5)]
)
def test_two_lengths_that_differ_are_told_of_both(stated: tuple[float, ...]) -> None:
    spacing_mm, contradiction = settle_spacing("a.nii", stated, ALIGNED)
    assert spacing_mm == stated
    assert contradiction is not None
    assert "a.nii" in contradiction
    for triple in (stated, (0.7, 0.7, 1.5)):
        assert " × ".join(f"{s:g}" for s in triple) in contradiction


def test_the_distance_between_sheared_slices_is_no_contradiction() -> None:
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])
    affine[1, 2] = 3.0 * np.tan(np.radians(20))
    spacing_mm, contradiction = settle_spacing("a.nii", (0.7, 0.7, 3.0), affine)
    assert contradiction is None
    # Spacing is the distance along the axes.
    assert spacing_mm == tuple(axis_lengths_mm(affine))
    assert spacing_mm[2] == pytest.approx(3.0 / np.cos(np.radians(20)))


@pytest.mark.parametrize("wanted", ["LPS", "RAS", "PLS", "SLP", "IAR"])
def test_every_orientation_is_turned_as_nibabel_turns_it(wanted: str) -> None:
    voxels = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    for stored in ALL_CODES:
        # Askew, sheared, and away from the origin.
        affine = rotated(9) @ rotated(-6, 2) @ affine_of(stored)
        affine[:3, 2] *= 1.1
        affine[:3, :] += np.reshape([0.05, 0, -0.1], (3, 1)) * [1, 0, 0, 300]
        assert nibabel.aff2axcodes(affine) == tuple(stored)
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(wanted)))
        expected_affine = affine @ inv_ornt_aff(turn, voxels.shape)

        turned = Reorientation.between(stored, wanted)
        view = turned.view(voxels)
        assert np.array_equal(view, apply_orientation(voxels, turn))
        assert np.shares_memory(view, voxels)
        np.testing.assert_allclose(
            turned.oriented_affine(affine, view.shape), expected_affine, rtol=0, atol=1e-10
        )
        assert turned.along(voxels.shape) == view.shape
        assert turned.stored(view.shape) == voxels.shape
        assert Orientation.of(expected_affine).codes == wanted


@pytest.mark.parametrize("codes", ALL_CODES)
def test_a_volume_that_lies_right_is_left_alone(codes: str) -> None:
    assert Reorientation.between(codes, codes) == AS_STORED


@pytest.mark.parametrize("codes", ALL_CODES)
def test_an_assumed_affine_leads_where_it_is_assumed_to(codes: str) -> None:
    affine = assumed_affine(codes, (0.7, 0.8, 1.5))
    assert nibabel.aff2axcodes(affine) == tuple(codes)
    assert tuple(axis_lengths_mm(affine)) == (0.7, 0.8, 1.5)
    assert not affine[:3, 3].any()


@pytest.mark.parametrize("facts", [{"affine": None}, {"affine": ALIGNED, "bare": True}])
def test_an_orientation_is_assumed_where_none_is_stated(facts: dict[str, object]) -> None:
    bare = {"affine_source": "spacing"} if facts.pop("bare", False) else {}
    volume = raw(facts["affine"], **bare)  # type: ignore[arg-type]
    AxisRules().assume(volume, (0.7, 0.8, 1.5))
    assert orientation_of(volume) is None
    AxisRules(assume_orientation="PLI").assume(volume, (0.7, 0.8, 1.5))
    assert orientation_of(volume) == Orientation("PLI", 0.0, 0.0)
    assert volume.affine_source == "assumed"


def test_a_stated_orientation_is_not_assumed_to_be_another() -> None:
    volume = raw(ALIGNED)
    AxisRules(assume_orientation="RAS").assume(volume, (0.7, 0.7, 1.5))
    assert (volume.affine is ALIGNED, volume.affine_source) == (True, "header")


def test_what_states_no_orientation_cannot_be_turned() -> None:
    with pytest.raises(GeometryError, match=r"to be turned to RAS.*--assume-orientation"):
        AxisRules().check(raw(None), None, "RAS")


@pytest.mark.parametrize("axes", ["checked", "stored"])
def test_two_orientations_cannot_be_turned(axes: str) -> None:
    volume = raw(ALIGNED, orientation_contradiction="a.nii is both")
    with pytest.raises(GeometryError, match="is both"):
        AxisRules(axes).check(volume, Orientation.of(ALIGNED), "RAS")  # type: ignore[arg-type]


@pytest.mark.parametrize("codes", ["SLP", "PSR", "LSA"])
def test_a_volume_that_is_turned_may_be_stored_with_any_axis_last(codes: str) -> None:
    AxisRules().check(raw(affine_of(codes)), Orientation.of(affine_of(codes)), "LPS")


def test_an_angle_beyond_the_limit_is_refused_of_what_is_turned_too() -> None:
    affine = rotated(20) @ ALIGNED
    with pytest.raises(GeometryError, match=r"up to 20°.*at most 19°"):
        AxisRules(max_tilt_degrees=19).check(raw(affine), Orientation.of(affine), "RAS")


@pytest.mark.parametrize("assumed", ["LPX", "LLS", "LP", "stored", 3])
def test_an_assumption_that_is_no_orientation_is_refused(assumed: object) -> None:
    with pytest.raises(UsageError, match=r"assume_orientation is .*such as LPS"):
        AxisRules(assume_orientation=assumed)  # type: ignore[arg-type]
