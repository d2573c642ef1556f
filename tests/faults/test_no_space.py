"""A disk that is full before or during a build: a clean stop, and the same bytes afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import REPOSITORY, SPEC, fill_and_resume, make_source, small_disk

import ctgpu
from ctgpu.errors import StorageError


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_build_which_then_resumes(tmp_path: Path) -> None:
    try:
        result = fill_and_resume(tmp_path, points=8, samples=8, seed=3)
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert result.points == 8
    assert result.odd_errors == []
    assert result.different == []


@pytest.mark.slow
@pytest.mark.parametrize("recoded", [False, True])
def test_a_disk_that_fills_up_where_it_compresses_loses_nothing(
    tmp_path: Path, recoded: bool
) -> None:
    try:
        result = fill_and_resume(
            tmp_path, points=5, samples=6, seed=7, compress="rice", recoded=recoded
        )
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert result.points == 5
    assert result.odd_errors == []
    assert result.different == []


@pytest.mark.slow
def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_source(tmp_path / "source", 3)
    arguments = ["--source", tmp_path / "source", "--shape", "90,90,50", "--device", "cpu"]
    try:
        with small_disk(tmp_path / "disk", 2 * SPEC.size_bytes) as disk:
            result = subprocess.run(
                [sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", disk, *arguments],
                capture_output=True,
                text=True,
                cwd=REPOSITORY,
                check=False,
            )
            assert not list(disk.glob("shard-*"))
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert result.returncode == 3
    assert "GB free and the build needs up to" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_building_again_needs_the_space_of_one_shard_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "source", 8)
    asked: list[int] = []
    monkeypatch.setattr(
        "ctgpu.building.builder.require_free_space", lambda f, needed: asked.append(needed)
    )

    def build(**options: bool) -> None:
        ctgpu.build(
            tmp_path / "out",
            source=tmp_path / "source",
            spec=SPEC,
            samples_per_shard=2,
            device="cpu",
            **options,
        )

    build()
    build(force=True)
    anew, again = asked
    assert anew >= 8 * SPEC.size_bytes
    assert 2 * SPEC.size_bytes <= again < 4 * SPEC.size_bytes


def test_a_full_spool_folder_stops_the_build(tmp_path: Path) -> None:
    from ctgpu.testing.hub import LocalHub

    make_source(tmp_path / "source", 6)
    try:
        with small_disk(tmp_path / "spool", 300_000) as spool, LocalHub(tmp_path / "source") as hub:
            options = {
                "repo_id": hub.repo_id,
                "endpoint": hub.url,
                "spec": SPEC,
                "samples_per_shard": 4,
                "device": "cpu",
            }
            with pytest.raises(StorageError, match="choose another --temp-dir"):
                ctgpu.build(tmp_path / "out", **options, temp_dir=spool)
            report = ctgpu.build(tmp_path / "out", **options)
            assert not list(spool.iterdir())
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert report.manifest["total_samples"] == 6
