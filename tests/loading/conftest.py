"""Small data sets for the tests of loading."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from loading_cases import FAILED, STUDIES, UNLABELLED

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.compressed_folders import compress_folder
from support.masks import with_masks
from support.phantoms import chests

SPECS = {
    layout: Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(44, 36, 24), layout=layout)
    for layout in ("HWD", "DHW")
}


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("loading")
    lay_out_ct_rate(root / "source", chests(STUDIES, (100, 96, 64)))
    for layout, spec in SPECS.items():
        report = ctgpu.build(
            root / layout, source=root / "source", spec=spec, samples_per_shard=3, device="cpu"
        )
        assert report.exit_code == 0
    return {layout: root / layout for layout in SPECS}


@pytest.fixture(params=["HWD", "DHW"])
def folder(request: pytest.FixtureRequest, _built: dict[str, Path]) -> Path:
    """Eleven samples in four shards, the last one short; not to be changed."""
    return _built[request.param]


@pytest.fixture
def hwd(_built: dict[str, Path]) -> Path:
    """The same, in the default layout."""
    return _built["HWD"]


@pytest.fixture(scope="session")
def _part_labelled(tmp_path_factory: pytest.TempPathFactory, _built: dict[str, Path]) -> Path:
    root = tmp_path_factory.mktemp("part-labelled")
    source = shutil.copytree(_built["HWD"].parent / "source", root / "source")
    (table,) = source.rglob("*labels*.csv")
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not row.startswith(tuple(UNLABELLED))))
    report = ctgpu.build(
        root / "shards", source=source, spec=SPECS["HWD"], samples_per_shard=3, device="cpu"
    )
    assert report.manifest["unlabelled_samples"] == len(UNLABELLED)
    return root / "shards"


@pytest.fixture
def part_labelled(_part_labelled: Path) -> Path:
    """The eleven samples, of which ``UNLABELLED`` have no label row; not to be changed."""
    return _part_labelled


@pytest.fixture(scope="session")
def _blank_labelled(tmp_path_factory: pytest.TempPathFactory, _built: dict[str, Path]) -> Path:
    root = tmp_path_factory.mktemp("blank-labelled")
    source = shutil.copytree(_built["HWD"].parent / "source", root / "source")
    (table,) = source.rglob("*labels*.csv")
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    for row in rows:
        study_id = row[0].removesuffix(".nii.gz")
        if study_id == "valid_2_a_1":
            row[1:4] = ["", "nan", "Not given."]
        elif study_id == "valid_4_a_1":
            row[1:] = [""] * (len(header) - 1)
    kept = [row for row in rows if not row[0].startswith("valid_3_a_1")]
    table.write_text("\n".join(",".join(row) for row in [header, *kept]) + "\n")
    report = ctgpu.build(root / "shards", source=source, spec=SPECS["HWD"], limit=6, device="cpu")
    assert report.exit_code == 0
    return root / "shards"


@pytest.fixture
def blank_labelled(_blank_labelled: Path) -> Path:
    """Six samples: valid_2 has a row with three blanks, valid_4 a blank one, and valid_3 none."""
    return _blank_labelled


@pytest.fixture(scope="session")
def damaged_source(tmp_path_factory: pytest.TempPathFactory, _built: dict[str, Path]) -> Path:
    """The source of the eleven samples, of which ``FAILED`` are cut short; not to be changed."""
    root = tmp_path_factory.mktemp("damaged")
    source = shutil.copytree(_built["HWD"].parent / "source", root / "source")
    for study in FAILED:
        (file,) = source.rglob(f"{study}.nii.gz")
        file.write_bytes(file.read_bytes()[:1000])
    return source


@pytest.fixture(scope="session")
def _with_failures(damaged_source: Path) -> Path:
    folder = damaged_source.parent / "shards"
    report = ctgpu.build(
        folder, source=damaged_source, spec=SPECS["HWD"], samples_per_shard=3, device="cpu"
    )
    assert [entry["key"] for entry in report.failures] == list(FAILED)
    return folder


@pytest.fixture
def with_failures(_with_failures: Path) -> Path:
    """The shards of that, in the layout HWD; not to be changed."""
    return _with_failures


@pytest.fixture
def own(tmp_path: Path, hwd: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(hwd, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture(scope="session")
def _compressed(
    _built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    hwd = with_masks(_built["HWD"], root / "raw" / "HWD", "uint8")
    dhw = with_masks(_built["DHW"], root / "raw" / "DHW", "uint16")
    return {
        "HWD": hwd,
        "DHW": dhw,
        "HWD-rice": compress_folder(hwd, root / "rice" / "HWD", "rice"),
        "DHW-rice": compress_folder(dhw, root / "rice" / "DHW", "rice"),
        "HWD-pack": compress_folder(hwd, root / "pack" / "HWD", "pack"),
    }


@pytest.fixture(params=["HWD", "DHW"])
def pair(request: pytest.FixtureRequest, _compressed: dict[str, Path]) -> tuple[Path, Path]:
    """The eleven samples with masks, raw and compressed; of uint16 in DHW.  Not to be changed."""
    return _compressed[request.param], _compressed[f"{request.param}-rice"]


@pytest.fixture
def rice(_compressed: dict[str, Path]) -> Path:
    """The same, compressed, in the default layout."""
    return _compressed["HWD-rice"]


@pytest.fixture
def plain(_compressed: dict[str, Path]) -> Path:
    """The same without compression."""
    return _compressed["HWD"]


@pytest.fixture
def pack(_compressed: dict[str, Path]) -> Path:
    """The same, of the other coding."""
    return _compressed["HWD-pack"]
