"""Orientation from the file to the shards: recorded, counted, warned of, and refused."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import ctgpu
from built import Sample, read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.facts import inspect_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.cli.commands import app
from ctgpu.errors import GeometryError, MismatchError, UsageError
from ctgpu.shards.names import MANIFEST_NAME, PLAN_NAME
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from raw_tars import write_tar
from stored import chest_as, rotated, save
from support.phantoms import SPACING_MM

SMALL = Spec(target_spacing_mm=(6.0, 6.0, 10.0), shape_hwd=(48, 40, 30))


def folder_of(root: Path, *codes: str) -> Path:
    """A folder of volumes, one for each of these codes, in this order."""
    for number, code in enumerate(codes):
        image = chest_as(code)
        image.header["descrip"] = f"scan {number}"  # no two files are the same bytes
        save(root / f"scan_{number}.nii", image)
    return root


def build(folder: Path, source: Path | None = None, **options: Any) -> ctgpu.BuildReport:
    return ctgpu.build(folder, source=source, spec=SMALL, device="cpu", **options)


def bits(volume: np.ndarray) -> np.ndarray:
    return volume.view(np.uint16)


def orientation_of(sample: Sample) -> tuple[str | None, float | None, float | None]:
    source = sample.metadata["source"]
    return source["orientation"], source["tilt_degrees"], source["shear_degrees"]


@pytest.mark.slow
def test_every_sample_says_how_it_is_stored(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "LPS", "RAS", "PLI")
    tilted = chest_as("LPS")
    tilted = nibabel.Nifti1Image(tilted.dataobj, rotated(20) @ tilted.affine)
    save(source / "scan_3.nii", tilted)
    sheared = chest_as("LPS").affine.copy()
    sheared[1, 2] = SPACING_MM[2] * np.tan(np.radians(20))
    save(source / "scan_4.nii", nibabel.Nifti1Image(np.asanyarray(tilted.dataobj), sheared))
    np.savez(source / "scan_5.npz", arr_0=np.asanyarray(tilted.dataobj), metadata=spacing_json())
    assert build(tmp_path / "out", source).exit_code == 0
    found = {key: orientation_of(sample) for key, sample in read_samples(tmp_path / "out").items()}
    assert found == {
        "scan_0": ("LPS", 0.0, 0.0),
        "scan_1": ("RAS", 0.0, 0.0),
        "scan_2": ("PLI", 0.0, 0.0),
        "scan_3": ("LPS", 20.0, 0.0),
        "scan_4": ("LPS", 20.0, 20.0),
        "scan_5": (None, None, None),
    }


def spacing_json(**facts: Any) -> np.ndarray:
    text = json.dumps({"spacing_mm": SPACING_MM, **facts})
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize("codes", ["SLP", "LSP", "PSL"])
def test_slices_that_are_not_last_are_a_failed_sample(tmp_path: Path, codes: str) -> None:
    source = folder_of(tmp_path / "source", "LPS", codes)
    report = build(tmp_path / "out", source)
    (failure,) = report.failures
    assert (failure["key"], failure["stage"]) == ("scan_1", "geometry")
    assert failure["error_class"] == "GeometryError"
    assert f"stored as {codes}" in failure["message"]
    assert "--axes stored" in failure["message"]
    assert list(read_samples(tmp_path / "out")) == ["scan_0"]


def test_stored_axes_are_taken_as_they_lie(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "SLP")
    report = build(tmp_path / "out", source, axes="stored")
    assert report.exit_code == 0
    sample = read_samples(tmp_path / "out")["scan_0"]
    image = chest_as("SLP")
    expected = ctgpu.preprocess(
        np.asanyarray(image.dataobj), image.header.get_zooms(), SMALL, device="cpu"
    )
    assert np.array_equal(bits(sample.array), bits(expected))
    assert orientation_of(sample) == ("SLP", 0.0, 0.0)
    # What goes on in this folder, and what holds it against its originals, does the same.
    assert build(tmp_path / "out", force=True).exit_code == 0
    (comparison,) = compare_samples(tmp_path / "out", source=source)
    assert comparison.passed, comparison.faults


def test_an_npz_with_an_affine_is_held_to_it_and_one_without_is_not(tmp_path: Path) -> None:
    image = chest_as("SLP")
    zooms = [float(z) for z in image.header.get_zooms()]
    voxels = np.asanyarray(image.dataobj)
    (tmp_path / "source").mkdir()
    for name, facts in (
        ("bare", {"spacing_mm": zooms}),
        ("stated", {"spacing_mm": zooms, "affine": image.affine.tolist()}),
        ("only", {"affine": image.affine.tolist()}),
    ):
        metadata = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(tmp_path / f"source/{name}.npz", volume=voxels, metadata=metadata)
    report = build(tmp_path / "checked", tmp_path / "source")
    assert [failure["key"] for failure in report.failures] == ["only", "stated"]
    build(tmp_path / "stored", tmp_path / "source", axes="stored")
    found = read_samples(tmp_path / "stored")
    assert {key: orientation_of(sample)[0] for key, sample in found.items()} == {
        "bare": None,
        "only": "SLP",
        "stated": "SLP",
    }
    # An affine alone states the spacing as well.
    assert found["only"].volume == found["stated"].volume == found["bare"].volume


@pytest.mark.parametrize(("limit", "exit_code"), [(19.0, 1), (21.0, 0), (None, 0)])
def test_the_limit_decides_whether_a_tilted_gantry_is_taken(
    tmp_path: Path, limit: float | None, exit_code: int
) -> None:
    image = chest_as("LPS")
    affine = image.affine.copy()
    affine[:3, 1] = rotated(20)[:3, :3] @ affine[:3, 1]
    save(tmp_path / "source/a.nii", nibabel.Nifti1Image(np.asanyarray(image.dataobj), affine))
    report = build(tmp_path / "out", tmp_path / "source", max_tilt_degrees=limit)
    assert report.exit_code == exit_code
    if exit_code:
        assert "at most 19°" in report.failures[0]["message"]


def test_the_choices_are_in_the_plan_and_hold_for_the_folder(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "SLP")
    build(tmp_path / "out", source, axes="stored", max_tilt_degrees=12)
    plan = json.loads((tmp_path / "out" / PLAN_NAME).read_bytes())
    assert plan["selection"]["axes"] == "stored"
    assert plan["selection"]["max_tilt_degrees"] == 12
    assert build(tmp_path / "out", axes="stored", max_tilt_degrees=12.0).exit_code == 0
    with pytest.raises(MismatchError, match=r"selection\.axes: found 'stored', wanted 'checked'"):
        build(tmp_path / "out", axes="checked")
    with pytest.raises(MismatchError, match=r"selection\.max_tilt_degrees: found 12, wanted 30"):
        build(tmp_path / "out", max_tilt_degrees=30.0)


@pytest.mark.slow
def test_a_plan_of_before_means_the_defaults(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "LPS", "SLP")
    build(tmp_path / "out", source)
    path = tmp_path / "out" / PLAN_NAME
    plan = json.loads(path.read_bytes())
    del plan["selection"]["axes"], plan["selection"]["max_tilt_degrees"]
    path.write_text(json.dumps(plan))
    report = build(tmp_path / "out", axes="checked", max_tilt_degrees=30.0, force=True)
    assert [failure["key"] for failure in report.failures] == ["scan_1"]
    with pytest.raises(MismatchError, match=r"selection\.axes: found None, wanted 'stored'"):
        build(tmp_path / "out", axes="stored")


def test_a_choice_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "LPS")
    for options, message in (
        ({"axes": "RAS"}, "axes is 'RAS'"),
        ({"max_tilt_degrees": 91.0}, "max_tilt_degrees is 91.0"),
    ):
        with pytest.raises(UsageError, match=message):
            build(tmp_path / "out", source, **options)
        with pytest.raises(UsageError, match=message):
            ctgpu.preprocess(source / "scan_0.nii", spec=SMALL, device="cpu", **options)
    assert not (tmp_path / "out").exists()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def counts_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for r in caplog.records if (m := r.getMessage()).startswith("stored as")]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ctgpu")
    return caplog


@pytest.mark.slow
def test_mixed_orientations_are_counted_and_warned_of_once(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    source = folder_of(tmp_path / "source", "RAS", "LPS", "LPS", "LPI", "LPS")
    np.savez(
        source / "scan_9.npz",
        arr_0=np.asanyarray(chest_as("LPS").dataobj),
        metadata=spacing_json(),
    )
    report = build(tmp_path / "out", source, samples_per_shard=2)
    (warning,) = warnings_of(log)
    assert "mixes orientations" in warning
    assert "docs/axes.md" in warning
    assert counts_of(log) == ["stored as 3 LPS, 1 LPI, 1 RAS, 1 not known"]
    assert report.manifest["orientations"] == {"LPS": 3, "LPI": 1, "RAS": 1}
    assert verify_folder(tmp_path / "out").findings == []


def test_one_orientation_is_counted_without_a_warning(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", folder_of(tmp_path / "source", "LPS", "LPS"))
    assert warnings_of(log) == []
    assert counts_of(log) == ["stored as 2 LPS"]


class _Kill(BaseException):
    """As a signal would."""


@pytest.mark.slow
def test_a_resumed_build_counts_what_was_there_and_warns(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    source = folder_of(tmp_path / "source", "RAS", "LPS", "LPS", "LPS", "LPS")

    def stop_after_second(event: object) -> None:
        if isinstance(event, ctgpu.building.events.SampleWritten) and event.key == "scan_3":
            raise _Kill

    with pytest.raises(_Kill):
        build(tmp_path / "out", source, samples_per_shard=2, watch=stop_after_second)
    log.clear()
    # One shard is committed, one half written, one not begun: all of it counts.
    build(tmp_path / "out")
    assert len(warnings_of(log)) == 1
    assert counts_of(log) == ["stored as 4 LPS, 1 RAS"]
    uninterrupted = tmp_path / "at once"
    build(uninterrupted, source, samples_per_shard=2)
    assert tar_bytes(tmp_path / "out") == tar_bytes(uninterrupted)
    for record in uninterrupted.glob("shard-*.json"):
        found, wanted = (
            json.loads((folder / record.name).read_bytes()) | {"run": {}}
            for folder in (tmp_path / "out", uninterrupted)
        )
        assert found == wanted


@pytest.mark.slow
def test_parts_of_a_build_know_of_each_other(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    source = folder_of(tmp_path / "source", "RAS", "RAS", "LPS", "LPS")
    build(tmp_path / "out", source, samples_per_shard=2, shards=range(1))
    assert warnings_of(log) == []
    assert counts_of(log) == ["stored as 2 RAS"]
    log.clear()
    build(tmp_path / "out", shards=range(1, 2))
    assert len(warnings_of(log)) == 1
    assert counts_of(log) == ["stored as 2 LPS, 2 RAS"]
    log.clear()
    # A finished build says it again, though it reads no tar.
    build(tmp_path / "out")
    assert len(warnings_of(log)) == 1
    assert counts_of(log) == ["stored as 2 LPS, 2 RAS"]


@pytest.mark.slow
def test_a_retried_shard_keeps_what_it_knew(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    source = folder_of(tmp_path / "source", "LPS", "SLP", "LPS")
    assert build(tmp_path / "out", source).exit_code == 1
    save(source / "scan_1.nii", chest_as("RAS"))
    log.clear()
    assert build(tmp_path / "out", retry_failed=True).exit_code == 0
    assert counts_of(log) == ["stored as 2 LPS, 1 RAS"]
    assert verify_folder(tmp_path / "out").findings == []


@pytest.mark.slow
def test_a_damaged_record_does_not_stand_in_the_way_of_making_its_shard_again(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    source = folder_of(tmp_path / "source", "LPS", "RAS")
    build(tmp_path / "out", source, samples_per_shard=1)
    (tmp_path / "out/shard-000000.json").write_bytes(b"{")
    log.clear()
    assert build(tmp_path / "out", force=True).exit_code == 0
    assert counts_of(log) == ["stored as 1 LPS, 1 RAS"]
    assert verify_folder(tmp_path / "out").findings == []


@pytest.mark.slow
def test_samples_without_their_plan_are_held_to_what_the_manifest_says(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "SLP")
    build(tmp_path / "out", source, axes="stored")
    (tmp_path / "out" / PLAN_NAME).unlink()
    (comparison,) = compare_samples(tmp_path / "out", source=source)
    assert comparison.passed, comparison.faults


def test_a_manifest_of_before_is_not_found_fault_with(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "LPS")
    build(tmp_path / "out", source)
    for name in ("shard-000000.json", MANIFEST_NAME):
        path = tmp_path / "out" / name
        values = json.loads(path.read_bytes())
        values.pop("orientations", None)
        for sample in values.get("samples", []):
            del sample["orientation"]
        head, tail = (
            {k: v for k, v in values.items() if k not in ("samples", "failures", "run")},
            {k: v for k, v in values.items() if k in ("samples", "failures", "run")},
        )
        text = json.dumps(values, indent=2) + "\n"
        if tail:
            text = json.dumps(head)[:-1] + ",\n" + json.dumps(tail)[1:] + "\n"
        path.write_text(text)
    assert verify_folder(tmp_path / "out").findings == []
    assert "orientations" not in build(tmp_path / "out").manifest


def test_preprocess_refuses_and_takes_like_a_build(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", chest_as("SLP"))
    with pytest.raises(GeometryError, match="stored as SLP"):
        ctgpu.preprocess(path, spec=SMALL, device="cpu")
    _, geometry = ctgpu.preprocess(
        path, spec=SMALL, device="cpu", axes="stored", return_geometry=True
    )
    assert geometry.orientation.codes == "SLP"
    with pytest.raises(GeometryError, match="at most 4°"):
        ctgpu.preprocess(
            save(
                tmp_path / "b.nii",
                nibabel.Nifti1Image(
                    np.asanyarray(chest_as("LPS").dataobj), rotated(5) @ chest_as("LPS").affine
                ),
            ),
            spec=SMALL,
            device="cpu",
            max_tilt_degrees=4,
        )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_spacing_that_contradicts_the_affine_needs_somebody_to_decide(
    tmp_path: Path, suffix: str
) -> None:
    path = save(tmp_path / "scan.nii", chest_as("LPS"), pixdim=[1, 3.5, 3, 2.5, 1, 1, 1, 1])
    if suffix == ".nii.gz":
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes(), 1))
        (tmp_path / "scan.nii").unlink()
    with pytest.raises(GeometryError, match=r"3\.5 × 3 × 2\.5 mm.*3\.5 × 3 × 5 mm"):
        ctgpu.preprocess(path, spec=SMALL, device="cpu")
    expected = ctgpu.preprocess(
        np.asanyarray(chest_as("LPS").dataobj), SPACING_MM, SMALL, device="cpu"
    )
    decided = ctgpu.preprocess(path, SPACING_MM, SMALL, device="cpu")
    assert np.array_equal(bits(decided), bits(expected))
    report = build(tmp_path / "out", tmp_path)
    assert "wanted the same within 1%" in report.failures[0]["message"]


def test_a_csv_goes_on_winning_over_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    voxels = np.asanyarray(chest_as("LPS").dataobj)
    header_affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    lay_out_ct_rate(tmp_path / "source", {"valid_1_a_1": Volume(voxels, SPACING_MM, header_affine)})
    assert build(tmp_path / "out", tmp_path / "source").exit_code == 0
    sample = read_samples(tmp_path / "out")["valid_1_a_1"]
    expected = ctgpu.preprocess(voxels, SPACING_MM, SMALL, device="cpu")
    assert np.array_equal(bits(sample.array), bits(expected))
    source = sample.metadata["source"]
    assert (source["spacing_source"], source["spacing_mm"]) == ("csv", list(SPACING_MM))
    assert source["affine"] == header_affine.tolist()


def test_an_unset_pixdim_leaves_spacing_and_affine_in_accord(tmp_path: Path) -> None:
    save(tmp_path / "source/scan.nii", chest_as("LPS"), pixdim=[1] * 8)
    build(tmp_path / "out", tmp_path / "source")
    sample = read_samples(tmp_path / "out")["scan"]
    expected = ctgpu.preprocess(
        np.asanyarray(chest_as("LPS").dataobj), SPACING_MM, SMALL, device="cpu"
    )
    assert np.array_equal(bits(sample.array), bits(expected))
    assert sample.metadata["source"]["spacing_mm"] == list(SPACING_MM)
    assert np.linalg.norm(np.array(sample.metadata["affine"])[:3, :3], axis=0) == pytest.approx(
        sample.metadata["spacing_mm"]
    )


def test_convert_takes_the_same_choices(tmp_path: Path) -> None:
    image = chest_as("SLP")
    write_tar(tmp_path / "raw/shard-000000.tar", {"a": {"nii": image.to_bytes()}})
    report = convert_tars(tmp_path / "raw", tmp_path / "checked", spec=SMALL, device="cpu")
    assert "stored as SLP" in report.failures[0]["message"]
    report = convert_tars(
        tmp_path / "raw", tmp_path / "stored", spec=SMALL, device="cpu", axes="stored"
    )
    assert report.exit_code == 0
    # What is adopted is held to the same rules, by the affine in its JSON.
    adopted = convert_tars(tmp_path / "stored", tmp_path / "adopted", device="cpu")
    assert "stored as SLP" in adopted.failures[0]["message"]
    again = convert_tars(tmp_path / "stored", tmp_path / "again", axes="stored", device="cpu")
    assert again.exit_code == 0
    sample = read_samples(tmp_path / "again")["a"]
    assert sample.volume == read_samples(tmp_path / "stored")["a"].volume
    assert orientation_of(sample)[0] == "SLP"


def test_what_states_no_orientation_states_none_when_it_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    voxels = np.asanyarray(chest_as("LPS").dataobj)
    np.savez(tmp_path / "source/a.npz", arr_0=voxels, metadata=spacing_json())
    build(tmp_path / "out", tmp_path / "source")
    convert_tars(tmp_path / "out", tmp_path / "adopted", device="cpu")
    assert orientation_of(read_samples(tmp_path / "adopted")["a"]) == (None, None, None)
    ((facts, view),) = inspect_samples(tmp_path / "adopted")
    assert facts.orientation is None
    assert view.affine is None


def test_a_nifti_without_a_form_states_no_orientation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save(source / "a.nii", chest_as("SLP"), sform_code=0, qform_code=0)
    assert build(tmp_path / "out", source).exit_code == 0
    sample = read_samples(tmp_path / "out")["a"]
    assert orientation_of(sample) == (None, None, None)
    assert sample.metadata["source"]["affine_source"] == "spacing"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "plan"])
def test_the_command_line_passes_the_choices_on(tmp_path: Path, command: str) -> None:
    source = folder_of(tmp_path / "source", "SLP")
    shared = ["--source", str(source), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    extra = {"build": ["--shape", "48,40,30", "--spacing", "6,6,10"], "plan": ["--json"]}[command]
    outcomes = {}
    for axes in ("checked", "stored"):
        line = [command, *shared, *extra, "--axes", axes, "--max-tilt-degrees", "12.5"]
        if command == "build":
            line[4] = str(tmp_path / axes)
        outcomes[axes] = CliRunner().invoke(app, line)
    if command == "build":
        assert (outcomes["checked"].exit_code, outcomes["stored"].exit_code) == (1, 0)
        plan = json.loads((tmp_path / "stored" / PLAN_NAME).read_bytes())
        assert plan["selection"]["max_tilt_degrees"] == 12.5
    else:
        # A sample that is refused cannot calibrate.
        calibrated = {
            axes: json.loads(outcome.stdout)["calibrated_on"] for axes, outcome in outcomes.items()
        }
        assert calibrated == {"checked": 0, "stored": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{n}" for n in range(9)])
def test_real_volumes_are_taken_with_the_bits_of_their_arrays(real_ct: Path, name: str) -> None:
    path = sorted(real_ct.glob("*.nii.gz"))[int(name)]
    image = nibabel.load(path)
    spacing_mm = tuple(float(z) for z in image.header.get_zooms())
    made, geometry = ctgpu.preprocess(path, spec=SMALL, device="cpu", return_geometry=True)
    expected = ctgpu.preprocess(np.asanyarray(image.dataobj), spacing_mm, SMALL, device="cpu")
    assert np.array_equal(bits(made), bits(expected))
    assert geometry.orientation.codes == "".join(nibabel.aff2axcodes(image.affine))
    assert np.array_equal(geometry.source_affine, image.affine)
