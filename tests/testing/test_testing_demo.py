"""The data set that ``ctgpu demo`` makes and builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import read_samples
from ctgpu.errors import FetchError, UsageError
from ctgpu.sources.folder import FolderSource
from ctgpu.spec import Spec
from ctgpu.testing import demo
from ctgpu.testing.ctrate import lay_out_ct_rate
from ctgpu.testing.demo import SCANS, make_source, read_back, run_demo
from stored import SPACING_MM
from support.compressed_folders import compress_folder
from support.phantoms import chests, study_ids

SMALL = Spec(target_spacing_mm=(6.0, 6.0, 8.0), shape_hwd=(24, 20, 14))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kinds of scans, of few voxels."""
    scans: dict[str, Any] = {
        name: ((24 + number, 22, 16), SPACING_MM, suffix)
        for number, (name, (_, _, suffix)) in enumerate(SCANS.items())
    }
    monkeypatch.setattr(demo, "SCANS", scans)


def test_scans_are_sampled_up_and_down_cropped_and_padded_in_two_formats() -> None:
    wanted = Spec()
    assert {suffix for _, _, suffix in SCANS.values()} == {".nii.gz", ".npz"}
    sizes = [
        [n * mm for n, mm in zip(shape, spacing, strict=True)]
        for shape, spacing, _ in SCANS.values()
    ]
    whole = [n * mm for n, mm in zip(wanted.shape_hwd, wanted.target_spacing_mm, strict=True)]
    assert any(size > all_ for scan in sizes for size, all_ in zip(scan, whole, strict=True))
    assert any(size < all_ for scan in sizes for size, all_ in zip(scan, whole, strict=True))


@pytest.mark.usefixtures("few")
def test_a_source_has_a_volume_and_rows_for_each_scan(tmp_path: Path) -> None:
    make_source(tmp_path)
    source = FolderSource(tmp_path)
    assert [ref.study_id for ref in source.list_volumes("valid")] == list(SCANS)
    suffixes = {
        name: {p.name.partition(".")[2] for p in tmp_path.rglob(f"{name}.*")} for name in SCANS
    }
    assert suffixes == {name: {suffix[1:]} for name, (_, _, suffix) in SCANS.items()}
    tables = source.tables("valid")
    for name in SCANS:
        row = tables.row(name)
        assert row.has_labels
        assert row.spacing_mm == SPACING_MM
        assert row.text


@pytest.mark.usefixtures("few")
def test_it_is_made_once_and_built_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def build(folder: Path, **options: Any) -> ctgpu.BuildReport:
        asked.append(options)
        return ctgpu.build(folder, spec=SMALL, **options)

    monkeypatch.setattr(demo, "build", build)
    folder = tmp_path / "demo"
    assert run_demo(folder, device="cpu").written == len(SCANS)
    made = {path: path.stat().st_mtime_ns for path in (folder / "source").rglob("*.*")}
    assert run_demo(folder, device="cpu").written == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "source").rglob("*.*")} == made
    assert (asked[0]["samples_per_shard"], asked[0]["device"]) == (2, "cpu")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files; choose an empty --output-dir"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16"])
def test_every_sample_is_read_back_with_what_its_voxels_span(tmp_path: Path, dtype: Any) -> None:
    lay_out_ct_rate(tmp_path / "source", chests(study_ids(3), (24, 22, 16)))
    spec = Spec(**(SMALL.to_dict() | {"dtype": dtype}))
    out = tmp_path / "out"
    ctgpu.build(out, source=tmp_path / "source", spec=spec, samples_per_shard=2, device="cpu")
    found = read_back(out)
    assert [sample.key for sample in found] == study_ids(3)
    for sample in found:
        assert sample.metadata["dtype"] == dtype
        assert sample.lowest < sample.mean < sample.highest
    if dtype == "float16":
        samples = read_samples(out)
        for sample in found:
            voxels = samples[sample.key].array
            assert (sample.lowest, sample.highest) == (voxels.min(), voxels.max())
            assert sample.mean == pytest.approx(voxels.mean(dtype=np.float64))


def test_a_compressed_data_set_reads_back_as_the_same_samples(tmp_path: Path) -> None:
    lay_out_ct_rate(tmp_path / "source", chests(study_ids(2), (24, 22, 16)))
    ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=SMALL, device="cpu")
    small = compress_folder(tmp_path / "out", tmp_path / "small", "rice")
    found = read_back(small)
    assert found == read_back(tmp_path / "out")
    assert len(found) == 2


def test_what_was_damaged_since_is_not_shown(tmp_path: Path) -> None:
    lay_out_ct_rate(tmp_path / "source", chests(study_ids(1), (24, 22, 16)))
    ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=SMALL, device="cpu")
    with (tmp_path / "out/shard-000000.tar").open("r+b") as tar:
        tar.seek(8192)
        tar.write(b"damage")
    with pytest.raises(FetchError, match="does not have its checksum"):
        read_back(tmp_path / "out")
    assert read_back(tmp_path) == []
