"""Data sets of series of DICOM: the bytes of their NIfTI, tables, and what a build goes on by."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from ctgpu.sources.dicom.private import Pseudonyms
from support.building import builds
from support.dicom_series import uid_of, write_series
from support.phantoms import COARSE_SPEC, SPACING_MM, chest

SEEDS = (1, 2, 3)
AFFINE = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])

build = builds(spec=COARSE_SPEC, samples_per_shard=2)


def put_chest(root: Path, folder: str, seed: int, **how: Any) -> list[Path]:
    hu = chest((60, 56, 40), seed).voxels.astype(np.int16)
    return write_series(root / folder, hu, AFFINE, series=folder, study=folder[:2], **how)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chests as DICOM, each in a form of its own, and as NIfTI."""
    root = tmp_path_factory.mktemp("made")
    forms: list[dict[str, Any]] = [
        {},
        {"form": "enhanced", "transfer_syntax": "rle"},
        {"transfer_syntax": "jpeg-ls", "name": "IM{:05d}".format},
    ]
    for seed, how in zip(SEEDS, forms, strict=True):
        put_chest(root / "pacs", f"P{seed}/CT", seed, **how)
        hu = chest((60, 56, 40), seed).voxels.astype(np.int16)
        (root / "nifti").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(hu, AFFINE), root / f"nifti/{seed}.nii.gz")
    return root


@pytest.fixture
def pacs(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made / "pacs", tmp_path / "pacs"))


def test_with_another_compression_it_stays_known_whom_the_samples_show(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "home", made / "pacs", shards=range(1))
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, "ctgpu"):
        assert convert_tars(tmp_path / "home", out, compress="rice").written == 2
    assert f"{out / 'private'} was copied too: it says whom" in caplog.text
    for path, mode in ((out / "private", 0o700), (out / "private/series.json", 0o600)):
        assert path.stat().st_mode & 0o777 == mode
    register = Pseudonyms(tmp_path / "home").load()
    assert register is not None
    assert Pseudonyms(out).load() == register
    assert (out / "private/.gitignore").read_bytes() == b"*\n"
    # A build goes on in either.
    for folder in (out, tmp_path / "home"):
        assert build(folder, made / "pacs").exit_code == 0
    one, other = read_samples(out), read_samples(tmp_path / "home")
    assert {k: s.volume for k, s in one.items()} == {k: s.volume for k, s in other.items()}
    # Again, and back: what is there stays, and nothing is said of it.
    caplog.clear()
    with caplog.at_level(logging.INFO, "ctgpu"):
        convert_tars(tmp_path / "home", out)
    assert "was copied" not in caplog.text
    convert_tars(out, tmp_path / "back", compress="none")
    assert tar_bytes(tmp_path / "back") == tar_bytes(tmp_path / "home")


def test_without_what_is_private_it_is_recoded_all_the_same(tmp_path: Path, made: Path) -> None:
    build(tmp_path / "home", made / "pacs")
    shutil.rmtree(tmp_path / "home/private")
    assert convert_tars(tmp_path / "home", tmp_path / "out", compress="rice").exit_code == 0
    assert not (tmp_path / "out/private").exists()


def key_of(folder: Path, series: str) -> str:
    """The key of a series, as what is private says."""
    register = Pseudonyms(folder).load()
    assert register is not None
    return next(key for key, s in register.series.items() if s.series_uid == uid_of(series))


def test_the_bytes_are_those_of_the_nifti_files(tmp_path: Path, made: Path) -> None:
    report = build(tmp_path / "out", made / "pacs")
    assert (report.written, report.failures, report.data_set) == (3, [], "plain")
    build(tmp_path / "nifti", made / "nifti")
    wanted = read_samples(tmp_path / "nifti")
    for key, sample in read_samples(tmp_path / "out").items():
        seed = next(n for n in SEEDS if key == key_of(tmp_path / "out", f"P{n}/CT"))
        same = wanted[str(seed)]
        assert sample.volume == same.volume
        np.testing.assert_allclose(sample.metadata["affine"], same.metadata["affine"], atol=1e-6)
        source = sample.metadata["source"]
        assert (source["path"], source["orientation"]) == (f"{key}.dcm", "LPS")
        assert source["intensity"]["source"] in ("header", "hu")
    assert verify_folder(tmp_path / "out").exit_code == 0


@pytest.mark.slow
def test_samples_are_held_against_their_series(tmp_path: Path, pacs: Path) -> None:
    build(tmp_path / "out", pacs)
    assert all(one.passed for one in compare_samples(tmp_path / "out"))
    moved = pacs.rename(tmp_path / "moved")
    found = [*compare_samples(tmp_path / "out", source=moved)]
    assert len(found) == 3
    assert all(one.passed for one in found)
    shutil.rmtree(tmp_path / "out/private")
    with pytest.raises(UsageError, match="it alone says which series the samples"):
        next(compare_samples(tmp_path / "out", source=moved))


@pytest.mark.slow
def test_a_build_goes_on_with_its_keys_wherever_the_folder_is(
    tmp_path: Path, pacs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", pacs)
    tars = tar_bytes(tmp_path / "out")
    assert build(tmp_path / "out").written == 0
    assert build(tmp_path / "out", force=True).written == 3
    moved = pacs.rename(tmp_path / "moved")
    assert build(tmp_path / "out", moved, force=True).written == 3
    assert tar_bytes(tmp_path / "out") == tars
    put_chest(moved, "P9/CT", 9)
    assert build(tmp_path / "out", moved).written == 0
    assert "of DICOM holds 1 file that this data set was planned without" in caplog.text
    (tmp_path / "out/private/series.json").unlink()
    with pytest.raises(UsageError, match=r"private/series\.json is not there"):
        build(tmp_path / "out", moved, force=True)


def test_another_folder_of_series_is_refused(tmp_path: Path, pacs: Path) -> None:
    build(tmp_path / "out", pacs)
    put_chest(tmp_path / "other", "P7/CT", 7)
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        build(tmp_path / "out", tmp_path / "other")
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        build(tmp_path / "out", tmp_path / "other", force=True)


@pytest.mark.slow
def test_a_series_with_a_gap_fails_and_is_made_once_it_is_mended(
    tmp_path: Path, pacs: Path
) -> None:
    lost = pacs / "P1/CT/017.dcm"
    lost.rename(tmp_path / "017.dcm")
    report = build(tmp_path / "out", pacs)
    (failure,) = report.failures
    key = key_of(tmp_path / "out", "P1/CT")
    assert (failure["key"], failure["path"], report.exit_code) == (key, f"{key}.dcm", 1)
    assert failure["stage"] in ("decode", "geometry")
    assert str(failure["message"]).startswith(f"{key}.dcm")
    (tmp_path / "017.dcm").rename(lost)
    report = build(tmp_path / "out", pacs, retry_failed=True)
    assert (report.written, report.failures) == (1, [])


def test_a_file_of_a_series_that_is_cut_fails_it_until_it_is_whole(
    tmp_path: Path, pacs: Path
) -> None:
    path = pacs / "P1/CT/017.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert [f["stage"] for f in build(tmp_path / "out", pacs).failures] == ["decode"]
    path.write_bytes(content[:200])
    report = build(tmp_path / "out", retry_failed=True)
    assert "cannot be read" in report.failures[0]["message"]
    path.write_bytes(content)
    assert build(tmp_path / "out", retry_failed=True).failures == []


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("SeriesInstanceUID", [uid_of(f"P{n}/CT") for n in SEEDS]),
        ("StudyInstanceUID", [uid_of(f"P{n}") for n in SEEDS]),
        ("folder", [f"archive/P{n}" for n in SEEDS]),
    ],
)
def test_tables_join_by_what_they_call_a_series(
    tmp_path: Path, made: Path, column: str, cells: list[str]
) -> None:
    rows = "".join(
        f"{cell},{n % 2},A report of {n}.\n" for n, cell in zip(SEEDS, cells, strict=True)
    )
    table = tmp_path / "labels.csv"
    table.write_text(f"{column},nodule,findings\n{rows}1.2.3,1,Of nobody.\n")
    report = build(tmp_path / "out", made / "pacs", labels=table, reports=table)
    assert [(one.key, one.volumes, one.of) for one in report.tables] == [(column, 3, 3)]
    samples = read_samples(tmp_path / "out")
    for n in SEEDS:
        sample = samples[key_of(tmp_path / "out", f"P{n}/CT")]
        assert (sample.labels.tolist(), sample.text) == ([n % 2], f"A report of {n}.")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert not [cell for cell in cells if cell.encode() in stored]


def test_a_table_beside_the_series_is_found_and_written_again(tmp_path: Path, pacs: Path) -> None:
    table = pacs / "labels.csv"
    table.write_text(f"uid,nodule\n{uid_of('P1/CT')},1\n{uid_of('P2')},0\n")
    build(tmp_path / "out", pacs)
    key = key_of(tmp_path / "out", "P1/CT")
    assert read_samples(tmp_path / "out")[key].labels.tolist() == [1]
    table.write_text(f"uid,nodule\n{uid_of('P1')},0\n{uid_of('P2')},0\n")
    assert list(ctgpu.relabel(tmp_path / "out").relabelled) == [key]
    assert read_samples(tmp_path / "out")[key].labels.tolist() == [0]
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "labels.csv").write_text(f"uid,nodule\n{key},1\n")
    report = ctgpu.relabel(tmp_path / "out", source=tables)
    assert read_samples(tmp_path / "out")[key].labels.tolist() == [1]
    assert len(report.relabelled) == 2


def test_a_named_table_in_the_folder_is_recorded_by_its_place_there(
    tmp_path: Path, pacs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pacs / "labels.csv").write_text(f"uid,nodule\n{uid_of('P1/CT')},1\n{uid_of('P2')},0\n")
    monkeypatch.chdir(pacs)
    here, table = Path("."), Path("labels.csv")
    report = build(tmp_path / "out", here, labels=table)
    assert [(one.path, one.volumes) for one in report.tables] == [("labels.csv", 2)]
    assert str(pacs) not in (tmp_path / "out/plan.json").read_text()
    assert build(tmp_path / "out", here, labels=table).written == 0
    assert build(tmp_path / "out", labels=pacs / table, force=True).written == 3
    moved = pacs.rename(tmp_path / "moved")
    assert build(tmp_path / "out", moved, labels=moved / table, force=True).written == 3
    other = Path(shutil.copy(moved / table, tmp_path / "labels.csv"))
    with pytest.raises(MismatchError, match="was begun without the table"):
        build(tmp_path / "out", moved, labels=other)


def test_rows_that_contradict_each_other_name_the_key_alone(
    tmp_path: Path, pacs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = f"uid,nodule\n{uid_of('P1/CT')},1\n{uid_of('P1')},0\n{uid_of('P2')},0\n"
    (pacs / "labels.csv").write_text(rows)
    build(tmp_path / "beside", pacs)
    key = key_of(tmp_path / "beside", "P1/CT")
    assert f"rows that contradict each other for {key}" in caplog.text
    (pacs / "labels.csv").rename(tmp_path / "labels.csv")
    report = build(tmp_path / "named", pacs, labels=tmp_path / "labels.csv")
    key = key_of(tmp_path / "named", "P1/CT")
    (failure,) = report.failures
    assert f"rows that contradict each other for {key}" in failure["message"]
    for uid in ("P1/CT", "P1"):
        assert uid_of(uid) not in caplog.text + json.dumps(report.failures)


@pytest.mark.slow
def test_uids_are_kept_where_that_is_asked_for(tmp_path: Path, pacs: Path) -> None:
    build(tmp_path / "out", pacs, keep_uids=True)
    uids = {uid_of(f"P{n}/CT") for n in SEEDS}
    plan = Plan.load(tmp_path / "out")
    assert {sample.study_id for sample in plan.samples} == uids
    assert plan.selection["keep_uids"] is True
    assert read_samples(tmp_path / "out").keys() == {uid.replace(".", "_") for uid in uids}
    shutil.rmtree(tmp_path / "out/private")
    assert build(tmp_path / "out", pacs, force=True, keep_uids=True).written == 3
    build(tmp_path / "hashed", pacs, keep_uids=False)
    assert "keep_uids" not in Plan.load(tmp_path / "hashed").selection
    with pytest.raises(MismatchError, match=r"selection\.keep_uids: found None, wanted True"):
        build(tmp_path / "hashed", pacs, keep_uids=True)


def test_uids_are_of_dicom_alone(tmp_path: Path, made: Path) -> None:
    with pytest.raises(UsageError, match=r"keep_uids \(--keep-uids\) is for series of DICOM"):
        build(tmp_path / "out", made / "nifti", keep_uids=True)
    assert not (tmp_path / "out").exists()


def test_an_estimate_leaves_nothing_behind(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctgpu")
    (tmp_path / "home").mkdir()
    estimate = ctgpu.estimate_build(
        tmp_path / "home/out", source=made / "pacs", spec=COARSE_SPEC, device="cpu", calibrate=1
    )
    assert estimate.counts["selected"] == 3
    assert list((tmp_path / "home").iterdir()) == []


def test_a_slanted_series_is_taken_up_to_the_tilt_that_is_asked_for(tmp_path: Path) -> None:
    hu = chest((60, 56, 40), 1).voxels.astype(np.int16)
    angle = np.radians(20.0)
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write_series(tmp_path / "pacs/a", hu, turned @ AFFINE)
    (failure,) = build(tmp_path / "out", tmp_path / "pacs", max_tilt_degrees=15.0).failures
    assert failure["error_class"] == "GeometryError"
    assert build(tmp_path / "other", tmp_path / "pacs").failures == []
