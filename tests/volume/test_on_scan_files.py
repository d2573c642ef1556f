"""Geometries out of the metadata of samples, and predictions saved as files that fit scans."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from on_scan_cases import ASKEW, SHEARED, SMALL, Floats, geometry_of

import ctgpu
from ctgpu.errors import StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.spec import Spec
from ctgpu.volume.on_scan import Geometry, save_on_scan
from stored import chest_as, rotated, save

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


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
    stated = "ARS" if shards.parents[1].name == "version-4" else "RAS"
    assert codes == lies.get(geometry.affine_source, stated)


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
