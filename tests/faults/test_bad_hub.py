"""Whole builds from a Hub that fails, and of inputs that are damaged or made to do harm."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import corpus
import pytest
from scenarios import (
    SPEC,
    build_corrupted,
    build_from_bad_hub,
    build_rotten_hub,
    make_source,
    quick_patience,
)

from built import read_samples
from ctgpu.building.builder import build
from ctgpu.building.members import sample_metadata
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import StorageError
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import Faults, LocalHub

# A header of text is under no checksum: damage there may change spacing or orientation unnoticed.
CHECKED = (".npz", ".nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        Faults(failure_rate=0.3, seed=1),
        Faults(failure_rate=0.3, seed=2, ignore_range=True, expired_redirects=4),
    ],
    ids=["ranges", "no_ranges"],
)
def test_a_third_of_all_requests_fails_and_the_build_is_the_same(
    tmp_path: Path, faults: Faults
) -> None:
    result = build_from_bad_hub(tmp_path, faults, samples=10, workers=5)
    assert result.requests_made > 1.2 * result.requests_needed
    assert result.failed == 0
    assert result.different == []


@pytest.mark.parametrize("in_lfs", [True, False])
def test_a_table_that_was_changed_on_the_way_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_lfs: bool
) -> None:
    def sha1_of_git(hub: LocalHub, path: Path) -> str:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    if not in_lfs:
        monkeypatch.setattr(LocalHub, "sha256", sha1_of_git)
    make_source(tmp_path / "source", 1)
    with LocalHub(tmp_path / "source") as hub, quick_patience():
        source = HubSource(hub.repo_id, endpoint=hub.url)
        name = "dataset/metadata/validation_metadata.csv"
        hub.faults.bodies = ["flip", "flip"]
        assert source.read_table(name) == (name, (tmp_path / "source" / name).read_bytes())
        assert hub.count("resolve") == 3
        source.close()


@pytest.mark.slow
def test_damaged_inputs_are_in_the_ledger_and_never_in_a_shard(tmp_path: Path) -> None:
    result = build_corrupted(tmp_path, corpus.damaged(300, seed=100, suffixes=CHECKED))
    assert result.inputs == 300
    assert result.accepted_wrong == []
    assert result.odd_errors == []
    assert result.refused.total() > 200


@pytest.mark.slow
def test_inputs_made_to_do_harm_are_in_the_ledger(tmp_path: Path) -> None:
    crafted = list(corpus.crafted())
    result = build_corrupted(tmp_path, crafted)
    assert result.refused.total() == result.inputs == len(crafted)
    assert result.odd_errors == []


@pytest.mark.slow
def test_files_without_a_checksum_are_held_against_the_sources(tmp_path: Path) -> None:
    result = build_rotten_hub(tmp_path, count=40, seed=1)
    assert result.refused == {"fetch": 40}
    assert result.odd_errors == []


@pytest.mark.slow
def test_files_and_tables_that_were_repaired_are_taken_by_a_retry(tmp_path: Path) -> None:
    whole = make_source(tmp_path / "whole", 5)
    paths = make_source(tmp_path / "source", 5, broken=2)
    table = tmp_path / "source/dataset/metadata/validation_metadata.csv"
    rows = table.read_text()
    table.write_text(rows.replace("valid_4_a_1.nii.gz", "nobody.nii.gz"))
    options: dict[str, Any] = {"spec": SPEC, "samples_per_shard": 2, "device": "cpu"}
    build(tmp_path / "undisturbed", source=tmp_path / "whole", **options)
    first = build(tmp_path / "out", source=tmp_path / "source", **options)
    assert [entry["stage"] for entry in first.failures] == ["decode", "tables"]

    paths["valid_2_a_1"].write_bytes(whole["valid_2_a_1"].read_bytes())
    table.write_text(rows)
    shutil.copytree(tmp_path / "out", tmp_path / "forced")
    mended = build(tmp_path / "out", retry_failed=True, device="cpu")
    assert (mended.written, mended.exit_code) == (2, 0)
    assert build(tmp_path / "forced", force=True, device="cpu").exit_code == 0
    expected = read_samples(tmp_path / "undisturbed")
    for name in ("out", "forced"):
        found = read_samples(tmp_path / name)
        assert {k: s.volume for k, s in found.items()} == {k: s.volume for k, s in expected.items()}


def test_a_defect_met_by_one_sample_does_not_end_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defective(prepared: Any, **facts: Any) -> dict[str, Any]:
        if facts["study_id"] == "valid_2_a_1":
            raise ZeroDivisionError("a defect")
        return sample_metadata(prepared, **facts)

    make_source(tmp_path / "source", 3)
    monkeypatch.setattr("ctgpu.building.shard_maker.sample_metadata", defective)
    report = build(tmp_path / "out", source=tmp_path / "source", spec=SPEC, device="cpu")
    assert [(e["key"], e["error_class"]) for e in report.failures] == [
        ("valid_2_a_1", "ZeroDivisionError")
    ]
    assert report.written == 2
    assert "unexpected error in the device stage" in caplog.text


@pytest.mark.slow
def test_a_retry_does_not_copy_damaged_samples_and_says_what_to_do(tmp_path: Path) -> None:
    whole = make_source(tmp_path / "whole", 4)
    paths = make_source(tmp_path / "source", 4, broken=3)
    build(tmp_path / "out", source=tmp_path / "source", spec=SPEC, device="cpu")
    tar, record = (tmp_path / "out" / f"shard-000000.{kind}" for kind in ("tar", "json"))
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    paths["valid_3_a_1"].write_bytes(whole["valid_3_a_1"].read_bytes())
    with pytest.raises(StorageError, match=r"remove shard-000000\.tar and shard-000000\.json"):
        build(tmp_path / "out", retry_failed=True, device="cpu")
    tar.unlink()
    record.unlink()
    report = build(tmp_path / "out", retry_failed=True, device="cpu")
    assert (report.exit_code, report.manifest["total_samples"]) == (0, 4)
    assert verify_folder(tmp_path / "out").findings == []
