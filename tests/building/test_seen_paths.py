"""What the paths of volumes say to a first description."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from first_descriptions import found, named, remarks, scans, with_all_offered

from built import read_samples
from ctgpu.building.describing import describe
from support.data_set_copies import (
    build,
    write_table,
)


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (("train/a", "val/b", "test/c"), {"train": "a", "valid": "b", "test": "c"}),
        (("data/imagesTr/a", "data/imagesTs/deep/b"), {"train": "a", "test": "b"}),
        (("Training/p1/ct", "validation/p2/ct"), {"train": "p1", "valid": "p2"}),
        (("dev/a", "testing/b"), {"valid": "a", "test": "b"}),
        (("x/train/images/a",), {"train": "a"}),
        (("train/p1/1/ct", "val/p2/1/ct"), {"train": "p1", "valid": "p2"}),
    ],
)
def test_folders_named_as_splits_become_splits(
    tmp_path: Path, paths: tuple[str, ...], splits: dict[str, str]
) -> None:
    text = describe(scans(tmp_path / "scans", *paths))
    assert set(found(text).splits) == set(splits)
    (tmp_path / "mine.toml").write_text(text)
    for split, name in splits.items():
        build(tmp_path / split, tmp_path / "scans", dataset=tmp_path / "mine.toml", split=split)
        assert list(read_samples(tmp_path / split)) == [name]


def test_two_folders_of_one_split_are_one(tmp_path: Path) -> None:
    text = describe(named(tmp_path, "val/a.nii", "dev/b.nii", "train/c.nii"))
    assert found(text).splits["valid"].volumes == ("dev/**", "val/**")


def test_what_lies_beside_the_splits_is_left_out_and_named(tmp_path: Path) -> None:
    masks = [f"labelsTr/{name}.nii.gz" for name in "ab"]
    images = [f"imagesTr/{name}.nii.gz" for name in "ab"]
    text = describe(named(tmp_path, *images, *masks, "imagesTs/c.nii.gz", "more.nii"))
    assert set(found(text).splits) == {"train", "test"}
    assert "3 volumes are in no folder of a split and left out (labelsTr, more.nii)" in remarks(
        text
    )


def test_one_folder_among_many_is_no_split(tmp_path: Path) -> None:
    text = describe(named(tmp_path, "p1/a.nii", "p2/b.nii", "test/c.nii"))
    assert not found(text).splits
    assert "test/c.nii may be of the split test, by its folder" in remarks(text)
    assert with_all_offered(text).splits["test"].volumes == ("test/**",)


def test_a_name_of_two_splits_is_shown(tmp_path: Path) -> None:
    paths = ("train/p1/ct.nii", "train/p2/ct.nii", "val/p1/ct.nii", "val/p3/ct.nii")
    text = describe(named(tmp_path, *paths))
    assert found(text).splits["valid"].volumes == ("val/{key}/ct.nii",)
    assert "such as p1 (train/p1/ct.nii and val/p1/ct.nii)" in remarks(text)


@pytest.mark.parametrize(
    ("paths", "glob", "keys"),
    [
        (("p1/ct", "p2/ct"), "{key}/ct.nii.gz", ["p1", "p2"]),
        (("x/y/p1/ct", "x/y/p2/ct"), "x/y/{key}/ct.nii.gz", ["p1", "p2"]),
        (("x/p1/a", "x/p2/a", "x/p3/b"), "x/{key}/*", ["p1", "p2", "p3"]),
        (("p1/scan/ct", "p2/scan/ct"), "{key}/scan/ct.nii.gz", ["p1", "p2"]),
        (("p1/ct", "x/p2/ct"), "**/{key}/ct.nii.gz", ["p1", "p2"]),
        (("x [1]/p1/a{b}", "x [1]/p2/a{b}"), "x [[]1]/{key}/a[{]b[}].nii.gz", ["p1", "p2"]),
    ],
)
def test_files_of_one_name_are_named_by_their_folders(
    tmp_path: Path, paths: tuple[str, ...], glob: str, keys: list[str]
) -> None:
    source = scans(tmp_path / "scans", *paths)
    write_table(source / "t.csv", ("who", "cyst"), [(key, 1) for key in keys])
    text = describe(source)
    assert found(text).volumes.paths == (glob,)
    (tmp_path / "mine.toml").write_text(text)
    assert f"{len(keys)} of {len(keys)} volumes have a row" in text
    build(tmp_path / "out", source, dataset=tmp_path / "mine.toml")
    assert list(read_samples(tmp_path / "out")) == keys


def test_names_that_differ_need_no_glob(tmp_path: Path) -> None:
    text = describe(named(tmp_path, "p1/a.nii", "p2/b.nii.gz", ".p/a.nii", "p1/.b.nii"))
    assert found(text).volumes.paths == ("**",)
    assert "A first description of 2 volumes" in text


@pytest.mark.parametrize(
    ("paths", "pair"),
    [
        (
            ("p1/1/ct.nii", "p1/2/ct.nii", "p2/1/ct.nii", "p2/2/ct.nii"),
            "p1/1/ct.nii and p1/2/ct.nii",
        ),
        (("a.nii", "a.nii.gz"), "a.nii and a.nii.gz"),
        # As names in the shards they are one.
        (("a.1.nii", "a_1.nii"), "a.1.nii and a_1.nii"),
    ],
)
def test_names_that_no_folder_tells_apart_are_shown(
    tmp_path: Path, paths: tuple[str, ...], pair: str
) -> None:
    text = describe(named(tmp_path, *paths))
    assert f"{pair} have the same name, and every volume needs its own" in remarks(text)
    assert found(text).volumes.paths == ("**",)


def test_of_a_scan_and_its_mask_in_each_folder_either_is_offered(tmp_path: Path) -> None:
    paths = [f"p{n}/{name}.nii.gz" for n in (1, 2) for name in ("ct", "mask")]
    text = describe(named(tmp_path / "plain", *paths))
    assert '# paths = ["{key}/ct.nii.gz"]\n# paths = ["{key}/mask.nii.gz"]\n' in text
    text = describe(named(tmp_path / "split", *(f"train/{path}" for path in paths)))
    assert '# volumes = ["train/{key}/mask.nii.gz"]\n' in text


def test_names_that_are_not_utf8_are_to_be_changed(tmp_path: Path) -> None:
    try:
        source = named(tmp_path / "scans", os.fsdecode(b"caf\xe9/p1/ct.nii"), "x/p2/ct.nii")
    except OSError:
        pytest.skip("this file system takes no such names")
    text = describe(source)
    assert "as a build refuses it: 1 volume, such as caf\\xe9/p1/ct.nii." in remarks(text)
    source = named(
        tmp_path / "more", os.fsdecode(b"caf\xe9/p1/ct.nii"), os.fsdecode(b"caf\xe9/p2/ct.nii")
    )
    assert found(describe(source)).volumes.paths == ("caf?/{key}/ct.nii",)
