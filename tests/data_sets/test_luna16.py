"""LUNA16 as its release is laid out: pairs of files in ten subsets, and masks of their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK

import ctgpu
from built import read_samples
from ctgpu.errors import UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from support.data_set_copies import write_table
from support.itk_images import SPACING_MM, image_of

SPEC = Spec(target_spacing_mm=(1, 1, 2), shape_hwd=(24, 28, 20))
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.{:04}"
KEY = "1_3_6_1_4_1_14519_5_2_1_6279_6001_{:04}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("luna") / "LUNA16"
    for number in (0, 1, 9):
        image = image_of(chest_phantom((40, 36, 30), SPACING_MM, seed=number))
        folder = root / f"subset{number}"
        folder.mkdir(parents=True)
        SimpleITK.WriteImage(image, str(folder / f"{UID.format(number)}.mhd"))
        masks = root / "seg-lungs-LUNA16" / "seg-lungs-LUNA16"
        masks.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image > -500, str(masks / f"{UID.format(number)}.mhd"))
    rows = [(UID.format(0), 1.5, 2.5, -3.5, 4.25), (UID.format(0), 9, 8, 7, 6)]
    write_table(
        root / "annotations.csv", ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"), rows
    )
    return root


def test_all_subsets_and_no_mask(tmp_path: Path, source: Path) -> None:
    report = ctgpu.build(output_dir=tmp_path, source=source, dataset="luna16", spec=SPEC)
    samples = read_samples(tmp_path)
    assert report.exit_code == 0
    assert list(samples) == [KEY.format(number) for number in (0, 1, 9)]
    assert report.manifest["class_names"] == []
    facts = samples[KEY.format(9)].metadata
    assert facts["study_id"] == UID.format(9)
    assert facts["source"]["path"] == f"subset9/{UID.format(9)}.mhd"


def test_one_subset(tmp_path: Path, source: Path) -> None:
    ctgpu.build(output_dir=tmp_path, source=source, dataset="luna16", spec=SPEC, split="subset1")
    assert list(read_samples(tmp_path)) == [KEY.format(1)]
    with pytest.raises(UsageError, match="subset2"):
        ctgpu.build(
            output_dir=tmp_path / "2", source=source, dataset="luna16", spec=SPEC, split="subset2"
        )


def test_a_folder_above_it_serves(tmp_path: Path, source: Path) -> None:
    ctgpu.build(output_dir=tmp_path, source=source.parent, dataset="luna16", spec=SPEC)
    assert len(read_samples(tmp_path)) == 3
