"""Predictions go back to where they belong on the scan, and are written there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from on_scan_cases import ASKEW, SHAPE, SHEARED, SMALL, SPACING_MM, Floats, geometry_of

from ctgpu.engines import Job, open_engine
from ctgpu.errors import UsageError
from ctgpu.spec import CT_RATE, Spec
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.orientation import AxisRules, assumed_affine
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import RawVolume
from stored import rotated


def places_mm(affine: Floats, shape: tuple[int, ...]) -> Floats:
    """Where the voxels of a grid are in the world: (3, *shape)."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def scan_in_output(geometry: Geometry) -> Floats:
    """Where the voxels of the scan are on the output's grid: (3, *source_shape)."""
    to_output = np.linalg.inv(geometry.affine) @ geometry.source_affine
    return places_mm(to_output, geometry.source_shape)


def covered_and_held(geometry: Geometry) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which voxels of the scan the output covers, and their places held to what was sampled."""
    position = scan_in_output(geometry)
    first = np.reshape(geometry.pad_before, (3, 1, 1, 1))
    n_sampled = np.minimum(geometry.resized_shape, geometry.shape_hwd).reshape(3, 1, 1, 1)
    last = first + n_sampled - 1
    covered = ((position > first - 0.5 - 1e-6) & (position < last + 0.5 + 1e-6)).all(axis=0)
    return covered, position.clip(first, last)


def by_hand(volume_hwd: npt.NDArray[Any], geometry: Geometry, order: str) -> Floats:
    """The same in one step: nearest, or a blend of eight corners; NaN outside."""
    covered, held = covered_and_held(geometry)
    if order == "nearest":
        result = volume_hwd[tuple(np.floor(held + 0.5 + 1e-9).astype(int))].astype(np.float64)
    else:
        low = np.floor(held + 1e-9).astype(int)
        result = np.zeros(geometry.source_shape)
        for corner in itertools.product((0, 1), repeat=3):
            ends = np.reshape(corner, (3, 1, 1, 1))
            weight = np.where(ends, held - low, 1 - (held - low)).prod(axis=0)
            index = np.minimum(low + ends, np.reshape(geometry.shape_hwd, (3, 1, 1, 1)) - 1)
            result += weight * volume_hwd[tuple(index)]
    return np.where(covered, result, np.nan)


CONTRACTS = {
    "crop and pad": SMALL,
    "all cropped": replace(SMALL, shape_hwd=(7, 6, 5)),
    "all padded": replace(SMALL, shape_hwd=(40, 31, 36)),
    "finer": Spec(target_spacing_mm=(0.7, 0.6, 1.0), shape_hwd=(40, 50, 26)),
    "DHW": replace(SMALL, layout="DHW"),
    "LPS": replace(SMALL, orientation="LPS"),
    "PLS, DHW": replace(SMALL, orientation="PLS", layout="DHW"),
    "IRA": replace(SMALL, orientation="IRA"),
    "origin": replace(SMALL, grid="origin", orientation="RAS"),
    "stretch": Spec(shape_hwd=(18, 12, 20), fit="stretch", orientation="SAL"),
    "contain": replace(SMALL, fit="contain", orientation="RPI"),
}


@pytest.mark.parametrize("order", ["nearest", "linear"])
@pytest.mark.parametrize("affine", [ASKEW, SHEARED], ids=["askew", "sheared"])
@pytest.mark.parametrize("name", CONTRACTS)
def test_every_contract_is_undone(name: str, affine: Floats, order: Any) -> None:
    spec = CONTRACTS[name]
    geometry = geometry_of(spec, affine)
    stored = np.random.default_rng(1).uniform(-1, 1, spec.stored_shape)
    found = geometry.to_scan(stored, order, outside=np.nan)
    volume_hwd = stored if spec.layout == "HWD" else stored.transpose(1, 2, 0)
    np.testing.assert_allclose(found, by_hand(volume_hwd, geometry, order), atol=1e-5)
    cropped = any(geometry.crop_start)
    assert np.isnan(found).any() == cropped


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_voxel_comes_from_where_it_is_in_the_patient(name: str) -> None:
    spec = replace(CONTRACTS[name], layout="HWD")
    geometry = geometry_of(spec)
    covered, held = covered_and_held(geometry)
    not_held = covered & (np.abs(held - scan_in_output(geometry)) < 1e-6).all(axis=0)
    assert not_held.any()
    wanted_mm = places_mm(ASKEW, SHAPE)
    # A place is a linear function of the index, which a blend keeps.
    found_mm = [geometry.to_scan(x, "linear") for x in places_mm(geometry.affine, spec.shape_hwd)]
    np.testing.assert_allclose(np.array(found_mm)[:, not_held], wanted_mm[:, not_held], atol=1e-4)


@pytest.mark.parametrize("order", ["nearest", "linear"])
@pytest.mark.parametrize("margin", [2, 0, -3])
@pytest.mark.parametrize("wanted", ["stored", "LPS", "RAS", "PLS", "SAR"])
def test_at_the_scans_own_spacing_it_is_the_exact_inverse(
    wanted: str, margin: int, order: Any
) -> None:
    scan = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    scan[5, 6, 7] = np.inf
    turned = nibabel.Nifti1Image(scan, ASKEW)
    if wanted != "stored":
        stored_as, turned_to = (
            axcodes2ornt(codes) for codes in (nibabel.aff2axcodes(ASKEW), tuple(wanted))
        )
        turned = turned.as_reoriented(ornt_transform(stored_as, turned_to))
    made, expected = np.asanyarray(turned.dataobj), scan
    if margin >= 0:
        made = np.pad(made, margin, constant_values=7)
    else:
        made = made[(slice(-margin, margin),) * 3]
        expected = np.pad(scan[(slice(-margin, margin),) * 3], -margin, constant_values=5)
    h, w, d = nibabel.affines.voxel_sizes(turned.affine).round(6)
    spec = Spec(target_spacing_mm=(h, w, d), shape_hwd=made.shape, orientation=wanted)
    np.testing.assert_array_equal(geometry_of(spec).to_scan(made, order, outside=5), expected)


#: Spacing of a scan, and a contract that crops its last axis and pads the others.
LABELLED: dict[str, tuple[tuple[float, float, float], Spec]] = {
    "finer rows and columns": ((0.8, 0.75, 1.5), replace(CT_RATE, shape_hwd=(48, 53, 18))),
    "finer, turned": (
        (0.9, 0.8, 2.5),
        replace(CT_RATE, shape_hwd=(48, 53, 18), orientation="RAS", layout="DHW"),
    ),
    "finer, origin": (
        (1.2, 1.1, 3.0),
        Spec(target_spacing_mm=(1, 1, 1), shape_hwd=(36, 40, 28), orientation="PLS", grid="origin"),
    ),
    "coarser slices": ((0.7, 0.7, 1.0), replace(CT_RATE, shape_hwd=(48, 53, 18))),
    "coarser": ((0.7, 0.7, 1.0), Spec(target_spacing_mm=(1, 1, 1), shape_hwd=(36, 40, 28))),
}


def labelled(name: str) -> tuple[Geometry, npt.NDArray[Any]]:
    """An output of a scan, and two spheres of 10 mm in the scan."""
    spacing_mm, spec = LABELLED[name]
    affine = ASKEW @ np.diag([*np.divide(spacing_mm, SPACING_MM), 1])
    shape = (int(31 / spacing_mm[0]), int(33 / spacing_mm[1]), int(32 / spacing_mm[2]))
    where, labels = places_mm(affine, shape), np.zeros(shape, np.uint8)
    for label, at in enumerate([(0.3, 0.35, 0.6), (0.7, 0.65, 0.4)], 1):
        centre_mm = affine[:3] @ [*np.multiply(at, shape), 1]
        labels[np.linalg.norm(where - centre_mm[:, None, None, None], axis=0) < 5] = label
    return geometry_of(spec, affine, shape, spacing_mm), labels


@pytest.mark.parametrize("name", [name for name in LABELLED if name.startswith("finer")])
def test_labels_come_back_whole_from_a_grid_that_is_no_coarser(name: str) -> None:
    geometry, labels = labelled(name)
    on_scan = np.linalg.inv(geometry.source_affine) @ geometry.affine
    nearest = np.floor(places_mm(on_scan, geometry.shape_hwd) + 0.5).astype(int)
    last = np.reshape(labels.shape, (3, 1, 1, 1)) - 1
    made = labels[tuple(nearest.clip(0, last))]
    assert np.array_equal(geometry.to_scan(made, layout="HWD"), labels)


@pytest.mark.parametrize("name", LABELLED)
def test_blended_labels_of_10_mm_come_back(name: str) -> None:
    geometry, labels = labelled(name)
    for label in (1, 2):
        wanted = labels == label
        # Resampled as any volume is: 0 and 1 in the place of HU.
        made = preprocess_labels(wanted, geometry, LABELLED[name][1])
        found = geometry.to_scan(made, "linear") >= 0.5
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.99


def preprocess_labels(
    wanted: npt.NDArray[np.bool_], geometry: Geometry, spec: Spec
) -> npt.NDArray[np.float16]:
    spec = replace(spec, hu_window=(0, 1), output_range=(0, 1))
    prepared = prepare_volume(
        RawVolume(wanted.astype(np.int16), affine=geometry.source_affine),
        spec=spec,
        spacing_mm=geometry.spacing_mm,
        spacing_source="argument",
        intensity="hu",
        hu_guard=None,
    )
    made = np.empty(spec.stored_shape, np.float16)
    open_engine("cpu").run([Job(prepared.voxels, prepared.rescale, prepared.plan, made)])
    return made


@pytest.mark.parametrize("spec", [SMALL, CONTRACTS["PLS, DHW"]], ids=["stored", "PLS, DHW"])
@pytest.mark.parametrize("spacing_mm", [(0.75, 0.75, 1.5), (1.0, 1.0, 1.0)])
def test_what_a_model_finds_is_marked_where_it_is(
    spacing_mm: tuple[float, float, float], spec: Spec
) -> None:
    # One axis is cropped, the others are padded.
    spec = replace(spec, target_spacing_mm=spacing_mm, shape_hwd=(40, 46, 22), layout="HWD")
    affine, shape = ASKEW @ np.diag([0.47, 0.64, 0.43, 1]), (41, 43, 39)
    geometry = geometry_of(spec, affine, shape, (0.705, 0.704, 0.989))
    centre_mm = affine[:3] @ [17.3, 24.8, 21.1, 1]

    def beyond_mm(affine: Floats, shape: tuple[int, ...]) -> Floats:
        """How far the voxels of a grid are from the surface of a sphere of 10 mm."""
        apart = places_mm(affine, shape) - centre_mm[:, None, None, None]
        distance: Floats = np.linalg.norm(apart, axis=0) - 5
        return distance

    wanted = beyond_mm(affine, shape) < 0
    on_output = beyond_mm(geometry.affine, spec.shape_hwd)
    labels = geometry.to_scan(on_output < 0)
    probability = geometry.to_scan(1 / (1 + np.exp(on_output / 0.5)), "linear")
    for found, least in ((labels, 0.9), (probability > 0.5, 0.98)):
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > least
        middle_mm = places_mm(affine, shape)[:, found].mean(axis=1)
        assert np.linalg.norm(middle_mm - centre_mm) < 0.3


@pytest.mark.parametrize(
    ("dtype", "order", "expected"),
    [
        *((name, "nearest", name) for name in ("bool", "u1", "i8", "f2", ">f4", "f8")),
        *((name, "linear", "f4") for name in ("bool", "u1", "i8", "f2", ">f4")),
        ("f8", "linear", "f8"),
    ],
)
def test_the_dtype_stays_where_nothing_is_blended(dtype: str, order: Any, expected: str) -> None:
    found = geometry_of(SMALL).to_scan(np.ones(SMALL.stored_shape, dtype), order)
    assert found.dtype == np.dtype(expected)
    assert found.shape == SHAPE
    assert set(np.unique(found)) == {0, 1}  # cropped away; inside


def test_what_the_loader_gives_is_taken_in_its_own_layout() -> None:
    geometry = geometry_of(SMALL)
    stored = np.random.default_rng(3).integers(0, 9, SMALL.stored_shape)
    expected = geometry.to_scan(stored)
    for view in (stored.transpose(2, 0, 1), stored.transpose(2, 0, 1)[::-1, ::-1][::-1, ::-1]):
        assert np.array_equal(geometry.to_scan(view, layout="DHW"), expected)
    spread = np.repeat(stored, 2, axis=1)[:, ::2]
    assert np.array_equal(geometry.to_scan(spread), expected)
    assert np.array_equal(geometry.to_scan(stored.tolist()), expected)


def test_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    geometry = geometry_of(SMALL)
    made = torch.rand(SMALL.stored_shape, requires_grad=True)
    expected = geometry.to_scan(made.detach().numpy(), "linear")
    assert np.array_equal(geometry.to_scan(made, "linear"), expected)
    assert geometry.to_scan(made.bfloat16()).dtype == np.float32
    assert geometry.to_scan(made > 0.5).dtype == bool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"array": np.zeros((1, *SMALL.shape_hwd))},
            r"shape \(1, 18, 12, 20\); wanted one volume of shape \(18, 12, 20\) \(layout='HWD'\), "
            r"or of \(20, 18, 12\) with layout='DHW'",
        ),
        (
            {"array": np.zeros(SMALL.shape_hwd), "layout": "DHW"},
            r"wanted one volume of shape \(20, 18, 12\) \(layout='DHW'\), or of \(18, 12, 20\)",
        ),
        ({"array": "pred.npy"}, r"shape \(\)"),
        ({"array": np.zeros(SMALL.shape_hwd, "c8")}, "dtype complex64; wanted bool"),
        ({"array": np.zeros(SMALL.shape_hwd, "U1")}, "dtype <U1; wanted bool"),
        ({"order": "cubic"}, "order is 'cubic'; it is nearest or linear"),
        ({"layout": "WHD"}, "layout is 'WHD'; it is HWD or DHW"),
        ({"outside": -1}, "outside is -1; wanted a value that uint8 holds"),
        ({"outside": 0.5}, "outside is 0.5; wanted a value that uint8 holds"),
        ({"outside": float("nan")}, "outside is nan; wanted a value that uint8 holds"),
        ({"outside": None}, "outside is None; wanted a number"),
        ({"outside": 2, "array": np.zeros(SMALL.shape_hwd, bool)}, "a value that bool holds"),
    ],
)
def test_what_is_no_volume_on_the_grid_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"array": np.zeros(SMALL.shape_hwd, np.uint8)} | arguments
    with pytest.raises(UsageError, match=message):
        geometry_of(SMALL).to_scan(**arguments)


def test_affines_that_do_not_belong_together_are_refused() -> None:
    geometry = geometry_of(SMALL)
    volume = np.zeros(SMALL.shape_hwd)
    for affine in (rotated(1) @ geometry.affine, np.zeros((4, 4)), geometry.affine * np.nan):
        other = replace(geometry, affine=affine)
        with pytest.raises(UsageError, match="do not belong together"):
            other.to_scan(volume)


def test_an_assumed_orientation_is_the_geometrys() -> None:
    spec = replace(SMALL, orientation="RAS")
    geometry = geometry_of(spec, None, rules=AxisRules(assume_orientation="LPI"))
    assert geometry.affine_source == "assumed"
    assert geometry.orientation is not None
    assert geometry.orientation.codes == "LPI"
    np.testing.assert_array_equal(geometry.source_affine, assumed_affine("LPI", SPACING_MM))
    assert geometry.spacing_mm == SPACING_MM
    assert geometry.to_scan(np.ones(spec.stored_shape)).shape == SHAPE
