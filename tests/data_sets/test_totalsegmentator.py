"""TotalSegmentator as its release is laid out: a folder for a scan, a file for a structure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from built import read_samples
from ctgpu.data_sets import built_in
from ctgpu.loading import VolumeDataset
from ctgpu.testing.masks import write_nifti
from support.data_set_copies import (
    SHAPE_HWD,
    SPEC,
    build,
    check,
    marked,
    nothing_to_do,
    write_table,
)

RULE = built_in("totalsegmentator").masks
COLUMNS = [
    "image_id",
    "age",
    "gender",
    "institute",
    "study_type",
    "split",
    "manufacturer",
    "scanner_model",
    "kvp",
]
SPLITS = {"s0000": "train", "s0003": "train", "s0011": "val", "s0013": "test"}
#: Every scan is 1.5 mm along each axis, which lead to right, front and head.
AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With traps: a table that begins with a mark, structures that overlap, some without a file."""
    root = tmp_path_factory.mktemp("release") / "Totalsegmentator_dataset_v201"
    assert RULE is not None
    for seed, name in enumerate(SPLITS):
        write_nifti(root / name / "ct.nii.gz", marked(seed), AFFINE)
        for label, number in RULE.labels.items():
            if number % 10 == seed:
                continue
            inside = np.zeros(SHAPE_HWD, np.uint8)
            inside.ravel()[number * 13 : number * 13 + 14] = 1  # the last one is the next one's too
            write_nifti(root / name / "segmentations" / f"{label}.nii.gz", inside, AFFINE)
    rows = [
        (n, 60 + k, "f", "A", "ct thorax", s, "x", "y", 120)
        for k, (n, s) in enumerate(SPLITS.items())
    ]
    table = write_table(root / "meta.semicolon.csv", COLUMNS, rows)
    (root / "meta.csv").write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    table.unlink()
    return root


def test_its_labels_are_totalsegmentators_own() -> None:
    assert RULE is not None
    assert sorted(RULE.labels.values()) == list(range(1, 118))
    for name, number in (("spleen", 1), ("vertebrae_S1", 26), ("vertebrae_C1", 50), ("heart", 51)):
        assert RULE.labels[name] == number
    assert RULE.labels["rib_right_12"] == 115
    assert RULE.labels["costal_cartilages"] == 117
    assert RULE.format.dtype == "uint8"


@pytest.mark.slow
def test_scans_and_masks_by_split(tmp_path: Path, source: Path) -> None:
    spec = replace(SPEC, target_spacing_mm=(1.5, 1.5, 1.5), shape_hwd=SHAPE_HWD)
    for split, word in (("train", "train"), ("valid", "val"), ("test", "test")):
        folder = tmp_path / split
        options: dict[str, Any] = {"dataset": "totalsegmentator", "split": split}
        report = build(folder, source, spec=spec, **options)
        own = [name for name, stated in SPLITS.items() if stated == word]
        assert (report.written, report.exit_code) == (len(own), 0)
        samples = read_samples(folder)
        assert list(samples) == own
        nothing_to_do(folder)
        check(folder, source, len(own))
        dataset = VolumeDataset(folder)
        assert dataset.mask_labels == dict(RULE.labels)  # type: ignore[union-attr]
        for row, name in enumerate(own):
            seed = list(SPLITS).index(name)
            mask = np.asarray(dataset[row]["mask"])[0].transpose(1, 2, 0)
            assert np.array_equal(mask, merged(seed))
            stated = samples[name].metadata
            assert stated["columns"]["study_type"] == "ct thorax"
            assert stated["mask"]["files"] == sum(n % 10 != seed for n in range(1, 118))
            assert stated["mask"]["overlap_voxels"] > 80


def merged(seed: int) -> Any:
    """The mask of a scan that nothing is done to: the structure of the higher number wins."""
    mask = np.zeros(SHAPE_HWD, np.uint8)
    for number in range(1, 118):
        if number % 10 != seed:
            mask.ravel()[number * 13 : number * 13 + 14] = number
    return mask
