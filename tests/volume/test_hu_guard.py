"""The HU guard from the option to the shards: what is refused, taken, recorded and warned of."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.cli.commands import app
from ctgpu.errors import IntensityError, MismatchError, UsageError
from ctgpu.shards.names import PLAN_NAME
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from raw_tars import raw_sample, write_tar
from support.phantoms import SPACING_MM

SMALL = Spec(target_spacing_mm=(6.0, 6.0, 10.0), shape_hwd=(48, 40, 30))


def chest(seed: int = 0) -> np.ndarray:
    return chest_phantom((72, 72, 64), SPACING_MM, seed)


def normalised(seed: int = 0) -> np.ndarray:
    """As CT-CLIP's own script leaves it."""
    return np.clip(chest(seed), -1000, 1000) / np.float32(1000)


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SPACING_MM, 1])), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two scans, and two that are not HU."""
    for number, voxels in enumerate((chest(0), normalised(1), chest(2), normalised(3))):
        save(tmp_path / f"source/scan_{number}.nii", voxels)
    return tmp_path / "source"


def build(folder: Path, source: Path | None = None, **options: Any) -> ctgpu.BuildReport:
    return ctgpu.build(folder, source=source, spec=SMALL, device="cpu", **options)


def change_plan(folder: Path, **selection: Any) -> None:
    """Rewrite a plan's selection; None leaves the key out, as before there was one."""
    plan = json.loads((folder / PLAN_NAME).read_bytes())
    plan["selection"] |= selection
    plan["selection"] = {k: v for k, v in plan["selection"].items() if selection.get(k, v) == v}
    for name, value in selection.items():
        if value is None:
            del plan["selection"][name]
    (folder / PLAN_NAME).write_text(json.dumps(plan))


def findings(folder: Path) -> dict[str, str | None]:
    return {
        key: sample.metadata["source"]["intensity"].get("finding")
        for key, sample in read_samples(folder).items()
    }


@pytest.mark.slow
def test_what_is_not_hu_is_a_failed_sample(tmp_path: Path, source: Path) -> None:
    report = build(tmp_path / "out", source)
    assert report.exit_code == 1
    assert [(f["key"], f["stage"], f["error_class"]) for f in report.failures] == [
        ("scan_1", "intensity", "IntensityError"),
        ("scan_3", "intensity", "IntensityError"),
    ]
    assert "looks normalised to [-1, 1]" in report.failures[0]["message"]
    assert "--hu-guard warn" in report.failures[0]["message"]
    assert findings(tmp_path / "out") == {"scan_0": None, "scan_2": None}
    assert report.manifest["selection"]["hu_guard"] == "refuse"


@pytest.mark.slow
def test_whoever_knows_better_takes_it_with_one_flag_and_one_warning(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ctgpu"):
        report = build(tmp_path / "out", source, hu_guard="warn")
    assert report.exit_code == 0
    warnings = [r.getMessage() for r in caplog.records if "taken as HU" in r.getMessage()]
    assert len(warnings) == 1
    assert "2 of the samples" in warnings[0]
    assert "scan_1, which looks normalised to [-1, 1]" in warnings[0]
    found = findings(tmp_path / "out")
    assert [key for key, finding in found.items() if finding] == ["scan_1", "scan_3"]
    assert str(found["scan_1"]).startswith("looks normalised to [-1, 1]: its voxels lie between")
    assert report.manifest["selection"]["hu_guard"] == "warn"
    build(tmp_path / "again", source, hu_guard="warn", num_workers=1)
    assert tar_bytes(tmp_path / "again") == tar_bytes(tmp_path / "out")


@pytest.mark.slow
def test_a_scan_has_the_same_bytes_whatever_the_guard_is(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "refuse", source)
    build(tmp_path / "warn", source, hu_guard="warn")
    refused, warned = read_samples(tmp_path / "refuse"), read_samples(tmp_path / "warn")
    for key, sample in refused.items():
        assert sample.volume == warned[key].volume
        assert sample.metadata == warned[key].metadata


@pytest.mark.slow
def test_going_on_keeps_to_the_guard_that_a_folder_was_begun_with(
    tmp_path: Path, source: Path
) -> None:
    options = {"samples_per_shard": 2}
    build(tmp_path / "out", source, hu_guard="warn", shards=range(1), **options)
    with pytest.raises(MismatchError, match=r"selection.hu_guard: found 'warn', wanted 'refuse'"):
        build(tmp_path / "out", hu_guard="refuse")
    assert build(tmp_path / "out").exit_code == 0
    assert len(findings(tmp_path / "out")) == 4


@pytest.mark.slow
def test_a_folder_of_before_the_option_goes_on_and_refuses(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source, samples_per_shard=2, shards=range(1))
    change_plan(tmp_path / "out", hu_guard=None)
    with pytest.raises(MismatchError, match="hu_guard"):
        build(tmp_path / "out", hu_guard="warn")
    report = build(tmp_path / "out", hu_guard="refuse")
    assert [f["key"] for f in report.failures] == ["scan_1", "scan_3"]
    assert "hu_guard" not in report.manifest["selection"]
    assert verify_folder(tmp_path / "out").findings == []


def test_voxels_that_are_not_finite_are_refused_whatever_the_guard_is(tmp_path: Path) -> None:
    broken = chest().astype(np.float32)
    broken[3, 4, 5] = np.nan
    save(tmp_path / "source/broken.nii", broken)
    save(tmp_path / "source/good.nii", chest())
    (failure,) = build(tmp_path / "out", tmp_path / "source", hu_guard="warn").failures
    assert "not finite" in failure["message"]
    with pytest.raises(IntensityError, match="not finite"):
        ctgpu.preprocess(broken, SPACING_MM, SMALL, device="cpu", hu_guard="warn")


@pytest.mark.slow
def test_a_source_that_also_holds_masks_does_not_train_on_them(tmp_path: Path) -> None:
    for number in range(3):
        scan = chest(number)
        lesions = np.zeros(scan.shape, np.uint8)
        lesions[30:33, 40:42, 20:22] = number + 1
        save(tmp_path / f"task/imagesTr/case_{number}.nii", scan)
        save(tmp_path / f"task/labelsTr/label_{number}.nii", lesions)
        organs = np.digitize(scan, [-900, -300, 20, 300]).astype(np.int16)
        save(tmp_path / f"task/labelsTr/organs_{number}.nii", organs)
    report = build(tmp_path / "out", tmp_path / "task")
    assert [key for key in read_samples(tmp_path / "out")] == ["case_0", "case_1", "case_2"]
    assert len(report.failures) == 6
    assert all("looks like labels" in f["message"] for f in report.failures)
    assert all("leave masks out of the source" in f["message"] for f in report.failures)


def preprocessed_tar(root: Path, volume: np.ndarray) -> Path:
    """A tar of an older script, and the manifest that says that it is preprocessed."""
    facts = json.dumps({"study_id": "scan"}).encode()
    write_tar(root / "shard-000000.tar", {"scan": {"bin": volume.tobytes(), "json": facts}})
    card = {"preprocessed": True, "sample_shape": list(volume.shape)}
    (root / "manifest.json").write_text(json.dumps(card))
    return root


@pytest.mark.slow
def test_shards_that_were_preprocessed_already_are_not_held_against_the_guard(
    tmp_path: Path,
) -> None:
    coarse = np.clip(chest_phantom((60, 60, 60), SPACING_MM), -1000, 1000) / np.float32(1000)
    volume = np.kron(coarse, np.ones((8, 8, 4), np.float32)).astype(np.float16)
    assert volume.shape == (480, 480, 240)
    old = preprocessed_tar(tmp_path / "old", volume)
    report = convert_tars(old, tmp_path / "out")
    assert report.failures == []
    (sample,) = read_samples(tmp_path / "out").values()
    assert sample.volume == volume.tobytes()
    assert "finding" not in sample.metadata["source"]["intensity"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_preprocessed_volume_may_hold_one_value_but_not_nan(tmp_path: Path, value: float) -> None:
    volume = np.full((48, 40, 30), value, np.float16)
    old = preprocessed_tar(tmp_path / "old", volume)
    assert convert_tars(old, tmp_path / "out").exit_code == 0
    volume[1, 2, 3] = np.nan
    broken = preprocessed_tar(tmp_path / "broken", volume)
    (failure,) = convert_tars(broken, tmp_path / "nan").failures
    assert "not finite" in failure["message"]


@pytest.mark.slow
def test_what_calls_itself_preprocessed_and_is_not_adopted_is_refused(tmp_path: Path) -> None:
    old = preprocessed_tar(tmp_path / "old", normalised().astype(np.float16))
    (failure,) = build(tmp_path / "out", old / "*.tar").failures
    assert "looks normalised to [-1, 1]" in failure["message"]
    facts = {"spacing_mm": SPACING_MM, "preprocessed": True}
    members = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    archive = io.BytesIO()
    np.savez(archive, volume=normalised(), metadata=members)
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz/scan.npz").write_bytes(archive.getvalue())
    (failure,) = build(tmp_path / "two", tmp_path / "npz").failures
    assert "looks normalised to [-1, 1]" in failure["message"]


@pytest.mark.slow
def test_raw_tars_are_judged_and_may_be_taken_too(tmp_path: Path) -> None:
    sample = raw_sample("scan", normalised(), SPACING_MM, 0)
    write_tar(tmp_path / "raw/a.tar", {"scan": sample})
    options: dict[str, Any] = {"spec": SMALL, "device": "cpu"}
    (failure,) = convert_tars(tmp_path / "raw", tmp_path / "refused", **options).failures
    assert "looks normalised" in failure["message"]
    report = convert_tars(tmp_path / "raw", tmp_path / "out", hu_guard="warn", **options)
    assert report.exit_code == 0
    assert findings(tmp_path / "out")["scan"] is not None


def compared(folder: Path, source: Path) -> dict[str, bool]:
    found = compare_samples(folder, source=source, num_samples=None)
    return {comparison.key: comparison.passed for comparison in found}


@pytest.mark.slow
@pytest.mark.parametrize("recorded", ["warn", None])
def test_samples_are_derived_again_under_the_guard_they_were_made_with(
    tmp_path: Path, source: Path, recorded: str | None
) -> None:
    pytest.importorskip("torch")
    build(tmp_path / "out", source, hu_guard="warn")
    change_plan(tmp_path / "out", hu_guard=recorded)
    assert compared(tmp_path / "out", source) == dict.fromkeys(
        ("scan_0", "scan_1", "scan_2", "scan_3"), True
    )
    change_plan(tmp_path / "out", hu_guard="refuse")
    assert compared(tmp_path / "out", source) == {
        "scan_0": True,
        "scan_1": False,
        "scan_2": True,
        "scan_3": False,
    }


@pytest.mark.slow
def test_one_call_refuses_or_warns(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(IntensityError, match=r"normalised to \[-1, 1\].*--hu-guard warn"):
        ctgpu.preprocess(normalised(), SPACING_MM, SMALL, device="cpu")
    with caplog.at_level(logging.WARNING, logger="ctgpu"):
        made = ctgpu.preprocess(normalised(), SPACING_MM, SMALL, device="cpu", hu_guard="warn")
        assert "looks normalised to [-1, 1]" in caplog.text
        caplog.clear()
        ctgpu.preprocess(chest(), SPACING_MM, SMALL, device="cpu", hu_guard="warn")
    assert caplog.text == ""
    inside = made[made != -1]
    assert np.abs(inside).max() <= 0.001
    for guard in ("off", None, ""):
        with pytest.raises(UsageError, match="it is refuse or warn"):
            ctgpu.preprocess(chest(), SPACING_MM, SMALL, device="cpu", hu_guard=guard)


@pytest.mark.slow
def test_every_command_that_reads_scans_takes_the_option(tmp_path: Path, source: Path) -> None:
    runner = CliRunner()
    common = ["--device", "cpu", "--source", str(source), "--hu-guard"]
    out = ["--output-dir", str(tmp_path / "out")]
    build(tmp_path / "out", source, hu_guard="warn", samples_per_shard=2, shards=range(1))
    result = runner.invoke(app, ["build", *out, *common, "warn"])
    assert result.exit_code == 0, result.output
    assert len(findings(tmp_path / "out")) == 4
    result = runner.invoke(app, ["plan", "--json", "--calibrate", "2", *common, "warn"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["calibrated_on"] == 2
    write_tar(tmp_path / "raw/a.tar", {"scan": raw_sample("scan", normalised(), SPACING_MM, 0)})
    convert = ["convert", "--input-pattern", str(tmp_path / "raw"), "--device", "cpu"]
    convert += ["--output-dir", str(tmp_path / "converted"), "--hu-guard"]
    assert runner.invoke(app, [*convert, "warn"]).exit_code == 0
    result = runner.invoke(app, ["build", *out, *common, "refuse"])
    assert isinstance(result.exception, MismatchError)
    for command in (["build", *out, *common], ["plan", *common], convert):
        result = runner.invoke(app, [*command, "maybe"])
        assert isinstance(result.exception, UsageError)
        assert "--hu-guard is 'maybe'; it is refuse or warn" in str(result.exception)
