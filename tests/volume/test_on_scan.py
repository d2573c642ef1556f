"""Predictions go back to where they belong on the scan, and are written there."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

import ctgpu
from ctgpu.engines import Job, open_engine
from ctgpu.errors import StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.spec import CT_RATE, Spec
from ctgpu.volume.on_scan import Geometry, save_on_scan
from ctgpu.volume.orientation import AxisRules, assumed_affine
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import RawVolume
from stored import chest_as, rotated, save

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SHAPE = (19, 23, 14)
SPACING_MM = (1.5, 1.1, 2.3)
#: Askew, and sheared as the slices of a tilted gantry are.
ASKEW = rotated(11) @ rotated(-7, 2) @ np.diag([-1.5, -1.1, 2.3, 1])
ASKEW[:3, 3] = (40, -70, 900)
SHEARED = ASKEW.copy()
SHEARED[:3, 2] += (0.1, 0.5, 0)
SMALL = Spec(target_spacing_mm=(2.0, 1.7, 1.9), shape_hwd=(18, 12, 20))

Floats = npt.NDArray[np.float64]


def geometry_of(
    spec: Spec,
    affine: Floats | None = ASKEW,
    shape: tuple[int, ...] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    rules: AxisRules = AxisRules("stored"),  # noqa: B008
) -> Geometry:
    raw = RawVolume(np.zeros(shape, np.int16), spacing_mm=spacing_mm, affine=affine)
    prepared = prepare_volume(
        raw,
        spec=spec,
        spacing_mm=spacing_mm,
        spacing_source="header",
        intensity="hu",
        rules=rules,
        hu_guard=None,
    )
    return Geometry.of(prepared)


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


def assert_same(found: Geometry, wanted: Geometry) -> None:
    for name in (field.name for field in fields(Geometry)):
        one, other = getattr(found, name), getattr(wanted, name)
        assert np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other, name


def test_metadata_of_a_built_sample_is_its_geometry(tmp_path: Path) -> None:
    save(tmp_path / "source/a.nii", chest_as("PLS"))
    bare = save(tmp_path / "source/b.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    spec = Spec(target_spacing_mm=(8, 7, 9), shape_hwd=(30, 28, 31), layout="DHW")
    assert (
        ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=spec, device="cpu").exit_code
        == 0
    )
    dataset = VolumeDataset(tmp_path / "out")
    for key, path in (("a", tmp_path / "source/a.nii"), ("b", bare)):
        _, wanted = ctgpu.preprocess(path, spec=spec, device="cpu", return_geometry=True)
        assert_same(Geometry.of_metadata(dataset.metadata(key)), wanted)


@pytest.mark.parametrize(
    "shards",
    sorted(GOLDEN.glob("*/*/shards")),
    ids=lambda path: "-".join(path.relative_to(GOLDEN).parts[:2]),
)
def test_metadata_of_every_earlier_version_is_a_geometry(shards: Path) -> None:
    dataset = VolumeDataset(shards)
    geometry = Geometry.of_metadata(dataset.metadata(0))
    on_scan = geometry.to_scan(dataset[0]["volume"][0], "linear", layout="DHW")
    assert on_scan.shape == geometry.source_shape == tuple(dataset.metadata(0)["source"]["shape"])
    codes = geometry.orientation and geometry.orientation.codes
    lies = {"spacing": None, "assumed": "LPS"}
    assert codes == lies.get(geometry.affine_source, "RAS")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affine": None}, r"`\$\.affine`"),
        ({"source": {}}, "missing required field `affine`"),
        ({"layout": "WHD"}, "Invalid enum value 'WHD'"),
        ({"pad_before": [0, -1, 0]}, "pad_before"),
        ({"affine": np.eye(4).tolist()}, "do not belong together"),
    ],
)
def test_other_metadata_is_refused(change: dict[str, Any], message: str) -> None:
    expected = json.loads((GOLDEN / "1ecd6b5/expected.json").read_bytes())
    metadata = expected["plain"]["scan-0"]["json"]
    affine = np.array(metadata["affine"])
    assert np.array_equal(Geometry.of_metadata(metadata).affine, affine)
    if change.get("affine"):
        change = {"affine": (rotated(10) @ affine).tolist()}
    with pytest.raises(UsageError, match=message):
        Geometry.of_metadata(metadata | change)
    with pytest.raises(UsageError, match=r"wanted the \.json of a sample that ctgpu has made"):
        Geometry.of_metadata([metadata])  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [ASKEW, SHEARED], ids=["askew", "sheared"])
def test_a_saved_prediction_fits_its_scan(tmp_path: Path, affine: Floats, suffix: str) -> None:
    geometry = geometry_of(SMALL, affine)
    made = np.random.default_rng(4).integers(0, 9, SMALL.shape_hwd, np.uint8)
    path = tmp_path / f"pred{suffix}"
    save_on_scan(made, geometry, path, outside=9)
    image = nibabel.load(path)
    assert np.array_equal(np.asanyarray(image.dataobj), geometry.to_scan(made, outside=9))
    np.testing.assert_array_equal(image.affine, affine.astype(np.float32))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0))
    qform, code = image.header.get_qform(coded=True)
    assert image.header["sform_code"] == 1
    assert code == (0 if affine is SHEARED else 1)
    if code:
        np.testing.assert_allclose(qform, affine, atol=1e-3)
    first = path.read_bytes()
    save_on_scan(made, geometry, str(path), outside=9)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("dtype", "order", "expected"),
    [
        ("bool", "nearest", "u1"),
        ("f2", "nearest", "f4"),
        (">i2", "nearest", "i2"),
        ("i8", "nearest", "i8"),
        ("f8", "nearest", "f8"),
        ("u1", "linear", "f4"),
    ],
)
def test_a_file_has_the_arrays_type_where_nifti_has_it(
    tmp_path: Path, dtype: str, order: Any, expected: str
) -> None:
    save_on_scan(np.ones(SMALL.shape_hwd, dtype), geometry_of(SMALL), tmp_path / "pred.nii", order)
    image = nibabel.load(tmp_path / "pred.nii")
    assert image.get_data_dtype() == np.dtype(expected)
    assert np.asanyarray(image.dataobj).dtype == np.dtype(expected)


@pytest.mark.parametrize("kind", ["without a form", "assumed", "an array"])
def test_a_scan_that_states_no_affine_has_predictions_that_state_none(
    tmp_path: Path, kind: str
) -> None:
    scan = save(tmp_path / "scan.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    shown = nibabel.load(scan)
    spec = Spec(target_spacing_mm=(8, 7, 9), shape_hwd=(30, 28, 31))
    volume, geometry = ctgpu.preprocess(
        np.asanyarray(shown.dataobj) if kind == "an array" else scan,
        shown.header.get_zooms(),
        spec,
        device="cpu",
        return_geometry=True,
        assume_orientation="LPS" if kind == "assumed" else None,
    )
    ctgpu.save_on_scan(volume, geometry, tmp_path / "pred.nii.gz", "linear", layout="HWD")
    image = nibabel.load(tmp_path / "pred.nii.gz")
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(image.affine, shown.affine)
    _, again = ctgpu.preprocess(
        tmp_path / "pred.nii.gz", spec=spec, device="cpu", hu_guard="warn", return_geometry=True
    )
    assert again.orientation is None


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, geometry = tmp_path / "pred.nii.gz", geometry_of(SMALL)
    save_on_scan(np.ones(SMALL.shape_hwd), geometry, path)
    kept = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"pred.nii.gz cannot be written: No space left"):
        save_on_scan(np.zeros(SMALL.shape_hwd), geometry, path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pred.nrrd", r"pred\.nrrd; wanted a name that ends in \.nii or \.nii\.gz"),
        ("pred", r"wanted a name that ends in"),
        (".nii.gz", r"wanted a name that ends in"),
        ("folder.nii", "which is a folder"),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(UsageError, match=message):
        save_on_scan(np.zeros(SMALL.shape_hwd), geometry_of(SMALL), tmp_path / path)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.nii"]


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    path: Any = tmp_path / "missing" / "pred.nii"
    volume, geometry = np.zeros(SMALL.shape_hwd), geometry_of(SMALL)
    with pytest.raises(StorageError, match="No such file or directory"):
        save_on_scan(volume, geometry, path)
    with pytest.raises(UsageError, match="path is 3; wanted a path"):
        save_on_scan(volume, geometry, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"wanted a ctgpu\.Geometry"):
        save_on_scan(volume, ASKEW, path)  # type: ignore[arg-type]


def test_an_assumed_orientation_is_the_geometrys() -> None:
    spec = replace(SMALL, orientation="RAS")
    geometry = geometry_of(spec, None, rules=AxisRules(assume_orientation="LPI"))
    assert geometry.affine_source == "assumed"
    assert geometry.orientation is not None
    assert geometry.orientation.codes == "LPI"
    np.testing.assert_array_equal(geometry.source_affine, assumed_affine("LPI", SPACING_MM))
    assert geometry.spacing_mm == SPACING_MM
    assert geometry.to_scan(np.ones(spec.stored_shape)).shape == SHAPE


@pytest.mark.parametrize("name", ["ts_pulmonary_ct_cropped", "ts_example_ct_sm"])
def test_real_ct_comes_back(tmp_path: Path, real_ct: Path, name: str) -> None:
    path = real_ct / f"{name}.nii.gz"
    scan = nibabel.load(path)
    voxels = np.asanyarray(scan.dataobj)
    spec = Spec(
        target_spacing_mm=scan.header.get_zooms(),
        shape_hwd=tuple(n + 9 for n in scan.shape),
        hu_window=None,
        dtype="int16",
        orientation="LPS",
        layout="DHW",
    )
    volume, geometry = ctgpu.preprocess(path, spec=spec, device="cpu", return_geometry=True)
    ctgpu.save_on_scan(volume, geometry, tmp_path / "pred.nii.gz")
    back = nibabel.load(tmp_path / "pred.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), voxels)
    np.testing.assert_array_equal(back.affine, scan.affine.astype(np.float32))
