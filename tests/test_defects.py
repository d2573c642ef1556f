"""The defects of the scripts that this project replaces, one test each, so that none comes back.

Number 13, the loader's, belongs to the loader.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.events import Event, SampleWritten
from ctgpu.cli.commands import app
from ctgpu.sources.columns import report_text
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import chests, study_ids

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lay_out_ct_rate(tmp_path / "source", chests(study_ids(5), first_seed=1))
    return tmp_path / "source"


def build(folder: Path, source: Path | None = None, **options: Any) -> ctgpu.BuildReport:
    defaults: dict[str, Any] = {"device": "cpu"}
    if source is not None:
        defaults |= {"spec": SMALL, "samples_per_shard": 2}
    return ctgpu.build(folder, source=source, **(defaults | options))


def test_defect_01_axes_keep_their_order(tmp_path: Path) -> None:
    voxels = np.full((64, 48, 40), -1000, np.int16)
    voxels[8:12, :, :] = 0  # one mark per axis, each at its own place
    voxels[:, 30:34, :] = 400
    voxels[:, :, 35:39] = 800
    lay_out_ct_rate(tmp_path / "source", {"valid_1_a_1": Volume(voxels, (1.0, 1.0, 1.0))})
    spec = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(60, 52, 44), intensity="hu")
    build(tmp_path / "out", tmp_path / "source", spec=spec)
    (sample,) = read_samples(tmp_path / "out").values()
    expected = np.full((60, 52, 44), -1.0, np.float16)
    expected[:, 2:50, 2:42] = voxels[2:62].astype(np.float16) / np.float16(1000)
    assert np.allclose(sample.array, expected, atol=5e-4)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert tuple(manifest["sample_shape"]) == sample.array.shape == (60, 52, 44)


@pytest.mark.slow
def test_defect_02_a_resumed_run_neither_doubles_samples_nor_overfills_shards(
    tmp_path: Path, source: Path
) -> None:
    def stop_at_third(event: Event) -> None:
        if isinstance(event, SampleWritten) and event.key == "valid_3_a_1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, watch=stop_at_third)
    report = build(tmp_path / "out")
    assert [shard["num_samples"] for shard in report.manifest["shards"]] == [2, 2, 1]
    assert list(read_samples(tmp_path / "out")) == [f"valid_{n}_a_1" for n in range(1, 6)]


def test_defect_03_the_default_spacing_is_not_isotropic() -> None:
    assert Spec().target_spacing_mm == (0.75, 0.75, 1.5)
    assert Spec().shape_hwd == (480, 480, 240)


@pytest.mark.slow
def test_defect_04_slope_and_intercept_are_not_applied_on_top_of_hu(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source)
    for sample in read_samples(tmp_path / "out").values():
        assert sample.metadata["source"]["intensity"] == {
            "source": "hu",
            "slope": 1.0,
            "intercept": 0.0,
        }
        # Soft tissue stays where it is: about 40 HU.
        centre = sample.array[34:46, 26:34, 16:24].astype(np.float32)
        assert 0.0 < np.median(centre) < 0.1


@pytest.mark.slow
def test_defect_05_a_second_run_keeps_the_manifest(tmp_path: Path, source: Path) -> None:
    first = build(tmp_path / "out", source).manifest
    second = build(tmp_path / "out").manifest
    assert first == second
    assert second["total_samples"] == 5


@pytest.mark.slow
def test_defect_06_a_failure_is_seen_in_the_exit_code_and_nothing_is_deleted(
    tmp_path: Path, source: Path
) -> None:
    (broken,) = source.rglob("valid_2_a_1.nii.gz")
    broken.write_bytes(b"rubbish")
    before = sorted(source.rglob("*"))
    assert build(tmp_path / "out", source).exit_code == 1
    assert sorted(source.rglob("*")) == before


@pytest.mark.slow
def test_defect_07_a_failed_sample_is_named_and_can_be_retried(
    tmp_path: Path, source: Path
) -> None:
    (broken,) = source.rglob("valid_2_a_1.nii.gz")
    good = broken.read_bytes()
    broken.write_bytes(good[:-100])
    report = build(tmp_path / "out", source)
    assert [failure["key"] for failure in report.failures] == ["valid_2_a_1"]
    assert report.manifest["failed_samples"] == 1


@pytest.mark.slow
def test_defect_08_a_shard_has_its_name_only_when_it_is_whole(tmp_path: Path, source: Path) -> None:
    seen: list[tuple[str, set[str]]] = []

    def look(event: Event) -> None:
        if isinstance(event, SampleWritten):
            seen.append((event.key, {p.name for p in (tmp_path / "out").glob("*.tar")}))

    build(tmp_path / "out", source, watch=look, memory_limit_bytes=1)
    assert seen[0] == ("valid_1_a_1", set())
    assert seen[1] == ("valid_2_a_1", set())
    assert seen[2] == ("valid_3_a_1", {"shard-000000.tar"})


@pytest.mark.slow
def test_defect_09_a_re_run_and_the_manifest_read_no_tar(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source)
    opened: list[str] = []
    sys.addaudithook(
        lambda event, arguments: (
            opened.append(str(arguments[0]))
            if event == "open" and str(arguments[0]).startswith(str(tmp_path))
            else None
        )
    )
    build(tmp_path / "out")
    assert opened
    assert not [name for name in opened if name.endswith(".tar")]


@pytest.mark.slow
def test_defect_10_a_missing_row_is_noticed_before_the_file_is_read(
    tmp_path: Path, source: Path
) -> None:
    table = source / "dataset/metadata/validation_metadata.csv"
    table.write_text(re.sub(r"valid_3_a_1.*\n", "", table.read_text()))
    (unread,) = source.rglob("valid_3_a_1.nii.gz")
    unread.write_bytes(bytes(unread.stat().st_size))
    report = build(tmp_path / "out", source)
    assert [(f["key"], f["stage"]) for f in report.failures] == [("valid_3_a_1", "tables")]


def _commands(document: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].split() for line in lines if line.strip().startswith("ctgpu ")]


@cache
def _help(subcommand: str) -> str:
    shown = CliRunner().invoke(app, [subcommand, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize(
    "document", [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))],
    ids=lambda path: path.name,
)  # fmt: skip
def test_defect_11_every_documented_option_exists(document: Path) -> None:
    for command in _commands(document):
        _, subcommand, *rest = command
        if subcommand.startswith("-"):
            continue
        shown = _help(subcommand)
        for option in rest:
            if option.startswith("--"):
                assert re.search(rf"{option}\b", shown), (command, option)


def test_defect_12_large_voxels_are_not_rounded_before_they_are_rescaled(tmp_path: Path) -> None:
    # In float16 these neighbours would be one number, and 70000 would be infinite.
    raw = np.array([20000, 20004, 20008, 20012], np.int32).repeat(16 * 16).reshape(4, 16, 16)
    raw[0, 0, 0] = 70000
    volume = Volume(raw, (1.0, 1.0, 1.0))
    lay_out_ct_rate(tmp_path / "s", {"valid_1_a_1": volume}, format=".npz", npz_member="data")
    table = tmp_path / "s/dataset/metadata/validation_metadata.csv"
    table.write_text(table.read_text().replace("-1024.0", "-20000"))
    spec = Spec(target_spacing_mm=(1.0, 1.0, 1.0), shape_hwd=(4, 16, 16), intensity="rescale")
    build(tmp_path / "out", tmp_path / "s", spec=spec, hu_guard="warn")
    (sample,) = read_samples(tmp_path / "out").values()
    assert np.allclose(sample.array[:, 5, 5], [0, 0.004, 0.008, 0.012], rtol=1e-3, atol=0)
    assert sample.array[0, 0, 0] == 1.0


@pytest.mark.parametrize("absent", ["", "nan", "NaN", "Not given."])
def test_defect_14_a_report_is_joined_one_way_and_never_says_nan(absent: str) -> None:
    columns = ("Findings_EN", "Impressions_EN")
    assert (
        report_text({"Findings_EN": "Clear.", "Impressions_EN": "Normal."}, columns)
        == "Clear.\nNormal."
    )
    assert report_text({"Findings_EN": "Clear.", "Impressions_EN": absent}, columns) == "Clear."
    assert report_text({"Findings_EN": absent, "Impressions_EN": absent}, columns) == ""


@pytest.mark.slow
def test_defects_02_and_08_together_tars_are_reproducible(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "a", source)
    build(tmp_path / "b", source)
    assert tar_bytes(tmp_path / "a") == tar_bytes(tmp_path / "b")
