"""All that is decided of a volume before an engine has it, and in which order it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctgpu.errors import GeometryError, IntensityError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume, Rescale
from support.phantoms import SPACING_MM

SHAPE_HWD = (24, 20, 18)
AFFINE = np.diag([-3.5, -3.0, 5.0, 1.0])
SPEC = Spec(target_spacing_mm=(7.0, 6.0, 10.0), shape_hwd=(16, 10, 8))


@pytest.fixture(scope="module")
def hu() -> npt.NDArray[np.int16]:
    return chest_phantom(SHAPE_HWD, SPACING_MM)


def prepare(raw: RawVolume, **options: Any) -> PreparedVolume:
    defaults: dict[str, Any] = {
        "spec": SPEC,
        "spacing_mm": SPACING_MM,
        "spacing_source": "header",
        "intensity": "auto",
    }
    return prepare_volume(raw, **(defaults | options))


def test_a_plain_volume_is_taken_as_it_lies(hu: npt.NDArray[np.int16]) -> None:
    prepared = prepare(RawVolume(hu, spacing_mm=SPACING_MM, affine=AFFINE), spacing_source="csv")
    assert np.shares_memory(prepared.voxels, hu)
    assert prepared.voxels.shape == SHAPE_HWD
    assert prepared.rescale.is_identity
    assert prepared.spacing_source == "csv"
    assert prepared.orientation is not None
    assert prepared.orientation.codes == "LPS"
    assert prepared.hu_finding is None
    assert prepared.statistics is None  # nothing of this contract depends on them
    assert prepared.source_affine is AFFINE
    assert prepared.plan.spacing_mm == SPACING_MM


def test_without_an_affine_one_is_made_of_the_spacing(hu: npt.NDArray[np.int16]) -> None:
    prepared = prepare(RawVolume(hu))
    assert prepared.orientation is None
    assert np.array_equal(prepared.source_affine, np.diag([*SPACING_MM, 1.0]))


def test_a_contract_that_states_an_orientation_has_the_axes_turned(
    hu: npt.NDArray[np.int16],
) -> None:
    spec = Spec(target_spacing_mm=(7.0, 6.0, 10.0), shape_hwd=(16, 10, 8), orientation="RAS")
    prepared = prepare(RawVolume(hu, affine=AFFINE), spec=spec)
    assert np.array_equal(prepared.voxels, hu[::-1, ::-1])
    spec = Spec(shape_hwd=(8, 16, 10), orientation="SLP")
    prepared = prepare(RawVolume(hu, affine=AFFINE), spec=spec)
    assert np.array_equal(prepared.voxels, hu.transpose(2, 0, 1))
    assert prepared.plan.spacing_mm == (5.0, 3.5, 3.0)


def test_statistics_are_taken_where_the_output_depends_on_them(
    hu: npt.NDArray[np.int16],
) -> None:
    prepared = prepare(RawVolume(hu), spec=Spec(shape_hwd=(16, 10, 8), normalise="zscore"))
    assert prepared.statistics is not None


def test_the_files_own_pair_is_applied(hu: npt.NDArray[np.int16]) -> None:
    raw = RawVolume(hu + 1024, header_rescale=Rescale(1.0, -1024.0, "header"))
    assert prepare(raw).rescale is raw.header_rescale
    # A table's pair is applied where it is asked for, or to what needs one, and without it refused.
    for options in ({"intensity": "rescale"}, {"provenance": "v1"}):
        prepared = prepare(RawVolume(hu + 1024), csv_pair=(1.0, -1024.0), **options)
        assert (prepared.rescale.slope, prepared.rescale.intercept) == (1.0, -1024.0)
        with pytest.raises(IntensityError, match="states none"):
            prepare(RawVolume(hu + 1024), **options)


def test_what_is_not_hu_is_refused_taken_with_a_finding_or_not_looked_at(
    hu: npt.NDArray[np.int16],
) -> None:
    scaled = (np.clip(hu, -1000, 1000) / 1000).astype(np.float32)
    with pytest.raises(IntensityError, match="HU"):
        prepare(RawVolume(scaled))
    assert prepare(RawVolume(scaled), hu_guard="warn").hu_finding is not None
    assert prepare(RawVolume(scaled), hu_guard=None).hu_finding is None
    scaled[1, 2, 3] = np.inf
    for hu_guard in ("refuse", "warn", None):
        with pytest.raises(IntensityError, match="not finite"):
            prepare(RawVolume(scaled), hu_guard=hu_guard)


def test_two_voxel_sizes_of_one_header_need_somebody_to_decide(
    hu: npt.NDArray[np.int16],
) -> None:
    raw = RawVolume(hu, spacing_mm=SPACING_MM, spacing_contradiction="it states two")
    with pytest.raises(GeometryError, match="it states two"):
        prepare(raw)
    for decided in ("csv", "argument"):
        assert prepare(raw, spacing_source=decided).spacing_source == decided


@pytest.mark.parametrize(
    ("voxels", "spacing_mm"),
    [
        (np.zeros((4, 5), np.int16), SPACING_MM),
        (np.zeros((4, 5, 0), np.int16), SPACING_MM),
        (np.zeros((4, 5, 6), np.int16), (1.0, 0.0, 1.0)),
        (np.zeros((4, 5, 6), np.int16), (1.0, float("nan"), 1.0)),
    ],
)
def test_what_has_no_geometry_is_refused_before_its_voxels_are_looked_at(
    voxels: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float]
) -> None:
    with pytest.raises(GeometryError):
        prepare(RawVolume(voxels), spacing_mm=spacing_mm)


def test_slices_that_are_not_last_are_refused_unless_stored_axes_are_asked_for(
    hu: npt.NDArray[np.int16],
) -> None:
    raw = RawVolume(hu, affine=AFFINE[:, [2, 0, 1, 3]])
    with pytest.raises(GeometryError):
        prepare(raw)
    assert prepare(raw, rules=AxisRules("stored")).orientation is not None
