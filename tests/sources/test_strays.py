"""Which files of several formats are volumes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from ctgpu.data_sets import Description
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import LocalHub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def names(root: Path, *globs: str) -> list[str]:
    volumes = {"paths": list(globs)} if globs else {}
    data_set = Description.of({"name": "mine", "volumes": volumes})
    return [ref.path for ref in FolderSource(root, data_set=data_set).list_volumes("valid")]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("a.nii.gz", "a_mask.nrrd", "a.npy"), ["a.nii.gz"]),
        (("a.npz", "b.nii", "c/d.mha"), ["a.npz", "b.nii"]),
        (("a.mhd", "b.nrrd", "features/a.npy"), ["a.mhd", "b.nrrd"]),
        (("b.npy", "a.npy"), ["a.npy", "b.npy"]),
        (("A.MHA", "b.NHDR"), ["A.MHA", "b.NHDR"]),
    ],
)
def test_files_of_a_later_row_count_where_there_is_none_of_an_earlier_one(
    root: Path, there: tuple[str, ...], taken: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    put(root, *there)
    with caplog.at_level(logging.WARNING, "ctgpu"):
        assert names(root) == taken
    left_out = len(there) - len(taken)
    said = re.findall(r"(\d+) files? (?:is|are) not taken for", caplog.text)
    assert said == ([str(left_out)] if left_out else [])


def test_a_glob_that_ends_in_a_suffix_takes_its_files_whatever_lies_beside_them(root: Path) -> None:
    put(root, "ct/a.nii.gz", "ct/b.npy", "masks/a.nrrd")
    assert names(root, "ct/*.npy", "ct/*.nii.gz") == ["ct/a.nii.gz", "ct/b.npy"]
    assert names(root, "**/*.nrrd") == ["masks/a.nrrd"]
    assert names(root, "ct/*") == ["ct/a.nii.gz"]


def test_ct_rates_own_folders_are_as_they_were(root: Path) -> None:
    put(root, "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz")
    before = FolderSource(root)
    before.list_volumes("valid")
    put(root, "dataset/valid_fixed/valid_1/valid_1_a/mask.mha", "dataset/valid_fixed/x.npy")
    after = FolderSource(root)
    assert [r.key for r in after.list_volumes("valid")] == ["valid_1_a_1"]
    assert after.identity() == before.identity()


def test_on_the_hub_too(root: Path) -> None:
    put(root, "scans/a.nrrd", "scans/a.npy", "scans/b.mha")
    data_set = Description.of({"name": "mine"})
    with LocalHub(root, "me/mine") as hub:
        source = HubSource("me/mine", endpoint=hub.url, token=False, data_set=data_set)
        try:
            refs = source.list_volumes("valid")
        finally:
            source.close()
    assert [ref.path for ref in refs] == ["scans/a.nrrd", "scans/b.mha"]
