"""What the names of CT-RATE's folders and volumes say."""

from __future__ import annotations

import pytest

from ctgpu.data_sets import built_in
from ctgpu.data_sets.layout import SplitFolders


@pytest.mark.parametrize(
    ("names", "parent", "at_top", "found"),
    [
        ({"train_fixed", "other"}, "deep", False, ["train_fixed"]),
        ({"valid_fixed", "train_fixed"}, "deep", False, ["train_fixed", "valid_fixed"]),
        ({"train"}, "deep", False, []),
        ({"train"}, "deep", True, ["train"]),
        ({"train"}, "dataset", False, ["train"]),
        ({"train", "valid"}, "deep", False, ["train", "valid"]),
        ({"train", "valid_fixed"}, "deep", False, ["train", "valid_fixed"]),
        ({"train", "radiology_text_reports"}, "deep", False, ["train"]),
        ({"valid", "multi_abnormality_labels"}, "deep", False, ["valid"]),
        ({"train", "test", "metadata"}, "deep", False, []),
        ({"imagesTr", "training", "validation", "valid_fixed_2"}, "dataset", True, []),
    ],
)
def test_folders_of_splits_are_told_from_others(
    names: set[str], parent: str, at_top: bool, found: list[str]
) -> None:
    assert SplitFolders(built_in()).among(names, parent=parent, at_top=at_top) == found


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("/data/dataset/train_fixed", "train"),
        ("/data/train_fixed/p/q", "train"),
        ("/data/dataset/valid/p", "valid"),
        ("/train_fixed/dataset/valid_fixed", "valid"),
        ("/data/train/p", None),
        ("train", None),
        ("/home/valid/scans", None),
        ("", None),
    ],
)
def test_a_path_lies_in_the_innermost_split(path: str, split: str | None) -> None:
    assert SplitFolders(built_in()).split_of(path.split("/")) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_1_a_1", "train"),
        ("valid_1042_aa_2", "valid"),
        ("valid_1_a_1.v2", "valid"),
        ("valid_1_a_1_resampled", "valid"),
        ("train_001", None),
        ("train_001_0000", None),
        ("my_train_1_a_1", None),
        ("train_1_a_1b", None),
        ("validation_1_a_1", None),
    ],
)
def test_ct_rates_volumes_carry_their_split(name: str, split: str | None) -> None:
    assert built_in().split_of_name(name) == split
