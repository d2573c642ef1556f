"""Builds that crop to foreground or body: what they record, and what every command makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.facts import inspect_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.cli.commands import app
from ctgpu.errors import EnvironmentFailure, MismatchError, NewerFormatError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.plan import Plan
from ctgpu.spec import Spec
from raw_tars import raw_sample, write_tar
from stored import SPACING_MM, chest_as, save

KEY, EMPTY, SECOND = "valid_1_a_1", "valid_2_a_1", "valid_3_a_1"
SPEC = Spec(
    target_spacing_mm=(6.0, 5.0, 7.0),
    shape_hwd=(44, 52, 46),
    orientation="LPS",
    crop="body",
    margin_mm=4,
)


def chest_on_a_table() -> nibabel.Nifti1Image:
    """Stored as RAS: a chest in air, and behind it a table that reaches to both sides."""
    chest = np.asarray(chest_as("LPS").dataobj)
    voxels = np.full((100, 116, 60), -1000, np.int16)
    voxels[14:86, 12:92] = chest
    behind = int(np.argwhere(voxels[:, :92] > -500)[:, 1].max()) + 6
    voxels[4:96, behind : behind + 3] = 100
    return nibabel.Nifti1Image(
        np.ascontiguousarray(voxels[::-1, ::-1]), np.diag([3.5, 3.0, 5.0, 1])
    )


def air() -> nibabel.Nifti1Image:
    """A phantom that ends below the threshold."""
    noise = np.random.default_rng(2).normal(0, 60, (50, 40, 30))
    return nibabel.Nifti1Image((-850 + noise).astype(np.int16), np.diag([3.5, 3.0, 5.0, 1]))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    save(folder / f"{KEY}.nii", chest_on_a_table())
    return folder


@pytest.fixture(scope="module")
def shards(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "shards"
    assert ctgpu.build(folder, source=scans, spec=SPEC, device="cpu").failures == []
    return folder


def volume_of(folder: Path) -> npt.NDArray[np.float16]:
    spec = Plan.load(folder).spec
    stored = np.frombuffer(read_samples(folder)[KEY].volume, np.float16)
    return stored.reshape(spec.stored_shape)


def test_the_box_is_recorded_along_the_axes_of_the_file(shards: Path, scans: Path) -> None:
    facts = read_samples(shards)[KEY].metadata
    scan: Any = nibabel.load(scans / f"{KEY}.nii")
    hu = np.asarray(scan.dataobj)
    box = tuple(slice(*ends) for ends in facts["source"]["crop_box"])
    outside = hu.copy()
    outside[box] = -1000
    # The table, all of it: behind the patient, so before him in the file.
    table = np.argwhere(outside > -500)
    assert len(table) == 92 * 3 * 60
    assert table[:, 1].max() < box[1].start
    # As if the file held the box only.
    cut: Any = scan.slicer[box]
    volume, geometry = ctgpu.preprocess(
        np.asarray(cut.dataobj),
        SPACING_MM,
        replace(SPEC, crop="centre", margin_mm=0),
        "cpu",
        assume_orientation="RAS",
        return_geometry=True,
    )
    assert np.array_equal(volume_of(shards), volume)
    assert facts["resized_shape"] == list(geometry.resized_shape)
    assert facts["source"]["shape"] == list(hu.shape)
    shift = np.linalg.inv(scan.affine) @ cut.affine
    wanted = np.array(facts["source"]["affine"]) @ shift @ np.linalg.inv(geometry.source_affine)
    np.testing.assert_allclose(facts["affine"], wanted @ geometry.affine, atol=1e-9)


def test_what_is_not_cropped_records_no_box(tmp_path: Path, scans: Path) -> None:
    plain = replace(SPEC, crop="centre", margin_mm=0)
    ctgpu.build(tmp_path / "out", source=scans, spec=plain, device="cpu")
    assert "crop_box" not in read_samples(tmp_path / "out")[KEY].metadata["source"]
    assert (
        not {"crop", "foreground_hu", "margin_mm"}
        & Plan.load(tmp_path / "out").spec.to_dict().keys()
    )


def test_plan_record_and_manifest_are_of_the_second_version(tmp_path: Path, scans: Path) -> None:
    spec = Spec(target_spacing_mm=(6, 5, 7), shape_hwd=(44, 52, 46), crop="foreground")
    ctgpu.build(tmp_path / "out", source=scans, spec=spec, device="cpu")
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["format"] == "ctgpu-plan-2"
    assert plan["spec"]["crop"] == "foreground"
    assert "foreground_hu" not in plan["spec"]
    assert (tmp_path / "out/shard-000000.json").read_text().startswith('{"format":"ctgpu-shard-2"')
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["manifest_format"] == "ctgpu-manifest-2"
    # What an older ctgpu, which does not know the field, says.
    with pytest.raises(NewerFormatError, match="newer ctgpu"):
        Spec.from_dict(plan["spec"] | {"cropped_by": "body"})


def test_a_folder_that_goes_on_keeps_its_crop(tmp_path: Path, scans: Path, shards: Path) -> None:
    for other in ({"margin_mm": 5}, {"foreground_hu": -400.0}, {"crop": "foreground"}):
        with pytest.raises(MismatchError, match=next(iter(other))):
            ctgpu.build(shards, source=scans, spec=replace(SPEC, **other), device="cpu")
    before = tar_bytes(shards)
    assert ctgpu.build(shards, source=scans, device="cpu").written == 0
    ctgpu.build(shards, source=scans, device="cpu", force=True)
    assert tar_bytes(shards) == before


def test_it_verifies_and_compares(shards: Path, scans: Path) -> None:
    assert verify_folder(shards).findings == []
    pytest.importorskip("torch")
    (comparison,) = compare_samples(shards, source=scans)
    assert comparison.passed, comparison.faults
    (other,) = compare_samples(shards, source=scans, spec=replace(SPEC, margin_mm=40))
    assert not other.passed


def test_it_is_looked_at_as_any_other(shards: Path) -> None:
    ((facts, view),) = inspect_samples(shards)
    assert facts.orientation is not None
    assert facts.orientation.codes == "LPS"
    assert facts.source["crop_box"]
    assert view.hu.max() > 30


def test_a_stored_sample_goes_back_onto_its_scan(tmp_path: Path, shards: Path, scans: Path) -> None:
    dataset = VolumeDataset(shards)
    metadata = dataset.metadata(0)
    geometry = ctgpu.Geometry.of_metadata(metadata)
    _, wanted = ctgpu.preprocess(
        scans / f"{KEY}.nii", spec=SPEC, device="cpu", return_geometry=True
    )
    assert geometry.crop_box == wanted.crop_box
    np.testing.assert_allclose(geometry.affine, wanted.affine, atol=1e-9)
    ctgpu.save_on_scan(
        dataset[0]["volume"][0] * 1000,
        geometry,
        tmp_path / "back.nii",
        "linear",
        layout="DHW",
        outside=-3000,
    )
    scan: Any = nibabel.load(scans / f"{KEY}.nii")
    back: Any = nibabel.load(tmp_path / "back.nii")
    np.testing.assert_allclose(back.affine, scan.affine)
    hu, there = np.asarray(scan.dataobj), np.asarray(back.dataobj)
    box = tuple(slice(*ends) for ends in metadata["source"]["crop_box"])
    # Blurred by a coarser grid, and nowhere else.
    assert np.corrcoef(there[box].ravel(), hu[box].clip(-1000, 1000).ravel())[0, 1] > 0.95
    there[box] = -3000
    assert (there == -3000).all()


def test_a_scan_of_air_fails_and_the_others_are_built(tmp_path: Path) -> None:
    save(tmp_path / f"scans/{KEY}.nii", chest_on_a_table())
    save(tmp_path / f"scans/{EMPTY}.nii", air())
    for crop in ("foreground", "body"):
        folder = tmp_path / crop
        report = ctgpu.build(
            folder,
            source=tmp_path / "scans",
            spec=replace(SPEC, crop=crop),
            device="cpu",
            hu_guard="warn",
        )
        (failure,) = report.failures
        assert failure["key"] == EMPTY
        assert f"crop is '{crop}'" in failure["message"]
        assert "above -500 HU" in failure["message"]
        assert "--foreground-hu" in failure["message"]
        assert list(read_samples(folder)) == [KEY]
        assert report.exit_code == 1


def test_raw_tars_are_cropped_and_preprocessed_ones_are_not(tmp_path: Path) -> None:
    hu = np.asarray(chest_on_a_table().dataobj)[::-1, ::-1]
    write_tar(tmp_path / "raw/a.tar", {KEY: raw_sample(KEY, hu, SPACING_MM, 1)})
    spec = replace(SPEC, orientation="stored")
    report = ctgpu.convert_tars(tmp_path / "raw", tmp_path / "out", spec=spec, device="cpu")
    assert report.failures == []
    assert np.array_equal(
        volume_of(tmp_path / "out"), ctgpu.preprocess(hu, SPACING_MM, spec, "cpu")
    )
    pytest.importorskip("torch")
    (comparison,) = compare_samples(tmp_path / "out", source=tmp_path / "raw/a.tar")
    assert comparison.passed, comparison.faults

    plain = Spec(target_spacing_mm=(6, 5, 7), shape_hwd=(44, 52, 46))
    ctgpu.convert_tars(tmp_path / "raw", tmp_path / "plain", spec=plain, device="cpu")
    made, out = tmp_path / "plain" / "shard-*.tar", tmp_path / "adopted"
    with pytest.raises(UsageError, match=r"adopted as they are.*crop 'body'.*their originals"):
        ctgpu.convert_tars(made, out, spec=replace(plain, crop="body"))
    assert not out.exists()


def test_the_library_is_missed_before_anything_is_planned(
    tmp_path: Path, scans: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cc3d", None)
    with pytest.raises(EnvironmentFailure, match=r"connected-components-3d.*pip install.*\[crop\]"):
        ctgpu.build(tmp_path / "out", source=tmp_path / "nowhere", spec=SPEC, device="cpu")
    assert not (tmp_path / "out").exists()
    with pytest.raises(EnvironmentFailure, match="connected-components-3d"):
        ctgpu.build(shards, source=scans, device="cpu", force=True)
    foreground = replace(SPEC, crop="foreground")
    assert ctgpu.build(tmp_path / "out", source=scans, spec=foreground, device="cpu").written == 1


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctgpu.cli", *map(str, words)], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_line_says_all_of_it(tmp_path: Path, scans: Path) -> None:
    options = (
        "--spacing 6,5,7 --shape 44,52,46 --crop foreground --foreground-hu -300 --margin-mm 2.5"
    )
    out = tmp_path / "out"
    ran = command(
        "build", "--source", scans, "--output-dir", out, *options.split(), "--device", "cpu"
    )
    assert ran.returncode == 0, ran.stderr
    assert Plan.load(out).spec == Spec(
        target_spacing_mm=(6, 5, 7),
        shape_hwd=(44, 52, 46),
        crop="foreground",
        foreground_hu=-300,
        margin_mm=2.5,
    )
    ran = command("verify", out)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--foreground-hu -300", "--foreground-hu is -300.0 and crop is 'centre'"),
        ("--margin-mm 10", "--margin-mm is 10.0 and crop is 'centre'"),
        ("--crop lungs", "--crop is 'lungs'; it is one of centre, foreground, body"),
        ("--crop body --margin-mm wide", "--margin-mm is 'wide'; write a number"),
        ("--crop body --margin-mm -1", "--margin-mm is -1; it must be zero or above"),
    ],
)
def test_a_contradiction_is_one_sentence(scans: Path, options: str, sentence: str) -> None:
    ran = CliRunner().invoke(
        app, ["build", "--source", str(scans), "--output-dir", "none", *options.split()]
    )
    assert isinstance(ran.exception, UsageError)
    assert sentence in str(ran.exception)
    assert not Path("none").exists()
