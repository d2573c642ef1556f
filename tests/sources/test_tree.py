"""What is seen below a folder: links, circles, hidden files, and tables that nobody reads."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from folders import listed, put

from ctgpu.data_sets import built_in
from ctgpu.data_sets.layout import SplitFolders
from ctgpu.errors import SourceError, UsageError
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.tree import look_below, tables_in


def test_a_link_to_a_data_set_is_no_other_copy(tmp_path: Path) -> None:
    put(tmp_path, "snapshots/0/dataset/valid_fixed/x.npz")
    (tmp_path / "latest").symlink_to("snapshots/0")
    assert listed(tmp_path) == [("latest/dataset/valid_fixed/x.npz", "fixed")]


def test_folders_of_splits_may_be_links(tmp_path: Path) -> None:
    put(tmp_path, "bulk/7/x.npz", "bulk/8/y.npz")
    folder = tmp_path / "disk" / "CT-RATE" / "dataset"
    folder.mkdir(parents=True)
    for name, place in (("valid_fixed", "7"), ("train_fixed", "8")):
        (folder / name).symlink_to(tmp_path / "bulk" / place)
    assert listed(tmp_path / "disk") == [("CT-RATE/dataset/valid_fixed/x.npz", "fixed")]
    assert listed(tmp_path / "disk", "train") == [("CT-RATE/dataset/train_fixed/y.npz", "fixed")]


def test_links_that_lead_in_circles_through_split_folders_end(tmp_path: Path) -> None:
    put(tmp_path, "disk/F/dataset/valid_fixed/x.npz", "G/valid_fixed/y.npz")
    first = tmp_path / "disk/F/dataset/valid_fixed"
    (first / "valid_fixed").symlink_to(first)
    (first / "g").symlink_to(tmp_path / "G")
    (tmp_path / "G/valid_fixed/back").symlink_to(first)
    (tmp_path / "disk/F/top").symlink_to(tmp_path / "disk")
    assert [path for path, _ in listed(tmp_path / "disk")] == [
        "F/dataset/valid_fixed/g/valid_fixed/y.npz"
    ]


def test_hidden_folders_are_no_copies(tmp_path: Path) -> None:
    put(
        tmp_path,
        "C/dataset/valid_fixed/x.npz",
        "C/dataset/valid_fixed/.cache/train_fixed/z.npz",
        "C/.cache/huggingface/download/dataset/valid_fixed/x.npz",
        ".snapshot/C/dataset/valid_fixed/x.npz",
        "C/dataset/.cache/huggingface/download/train_fixed/y.nii.gz.0123.incomplete",
    )
    assert listed(tmp_path) == [("C/dataset/valid_fixed/x.npz", "fixed")]
    with pytest.raises(UsageError, match="none for the split 'train'"):
        listed(tmp_path, "train")


def test_tables_that_are_not_read_are_named(tmp_path: Path) -> None:
    put(
        tmp_path,
        "scans/a.nii.gz",
        "scans/a.json",
        "scans/per_scan.TSV",
        "scans/valid_predicted_labels.csv",
        "scans/.hidden.csv",
        "labels.csv",
        "dataset.json",
        "Sheet.xlsx",
        "validation_metadata.csv",
        "shards/plan.json",
        "notes.txt",
    )
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    assert set(source.unused_tables) == {
        *("labels.csv", "dataset.json", "Sheet.xlsx"),
        *("scans/per_scan.TSV", "scans/valid_predicted_labels.csv"),
    }


def test_tables_above_a_split_given_by_itself_are_named(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid_fixed/p/x.npz", "dataset/metadata/validation_metadata.csv")
    put(tmp_path, "dataset/metadata/train_metadata.csv", "valid_predicted_labels.csv")
    for place, up in (("dataset/valid_fixed", ".."), ("dataset/valid_fixed/p", "../..")):
        source = FolderSource(tmp_path / place)
        source.list_volumes("valid")
        assert set(source.unused_tables) == {
            f"{up}/metadata/validation_metadata.csv",
            f"{up}/../valid_predicted_labels.csv",
        }
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    assert list(source.unused_tables) == []


def test_links_are_followed_as_a_hub_cache_needs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "blobs/0123", "disk2/valid_2_a_1.npz")
    folder = tmp_path / "snapshot" / "dataset" / "valid_fixed"
    folder.mkdir(parents=True)
    (folder / "valid_1_a_1.npz").symlink_to(tmp_path / "blobs" / "0123")
    (folder / "more").symlink_to(tmp_path / "disk2")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "disk2" / "back").symlink_to(folder)
    (folder / "itself.npz").symlink_to("itself.npz")
    (folder / "broken.npz").symlink_to("nowhere")
    caplog.set_level(logging.WARNING)
    (folder / "nothing").symlink_to("nowhere")
    (folder / "notes.md").symlink_to("nowhere")
    source = FolderSource(tmp_path / "snapshot")
    refs = source.list_volumes("valid")
    assert {ref.path.removeprefix("dataset/valid_fixed/"): ref.size_bytes for ref in refs} == {
        "broken.npz": 0,
        "itself.npz": 0,
        "more/valid_2_a_1.npz": 21,
        "valid_1_a_1.npz": 10,
    }
    assert "2 of 4 volumes cannot be looked at, such as dataset/valid_fixed/broken" in caplog.text
    assert source.missing_folders == {"dataset/valid_fixed/nothing": "a link to nowhere"}
    assert f"{folder}/notes.md is left out" in caplog.text


@pytest.mark.parametrize("top", ["dataset/valid_fixed", "some/folder"])
def test_a_link_to_a_folder_that_leads_nowhere_is_told(tmp_path: Path, top: str) -> None:
    put(tmp_path, f"s/{top}/valid_2/valid_2_a/valid_2_a_1.npz")
    below = tmp_path / "s" / top
    (below / "valid_1").symlink_to("/gone/valid_1")
    (below / "valid_2" / "1.2.840.113619").symlink_to(tmp_path / "disk")
    (below / ".hidden").symlink_to("/gone")
    (below / "README.txt").symlink_to("/gone")
    source = FolderSource(tmp_path / "s")
    assert source.missing_folders == {}
    for _ in range(2):
        assert [ref.study_id for ref in source.list_volumes("valid")] == ["valid_2_a_1"]
        assert source.missing_folders == {
            f"{top}/valid_1": "a link to /gone/valid_1",
            f"{top}/valid_2/1.2.840.113619": f"a link to {tmp_path / 'disk'}",
        }
    (below / "valid_1").unlink()
    put(tmp_path, "disk/valid_3_a_1.npz")
    found = [ref.study_id for ref in source.list_volumes("valid")]
    assert sorted(found) == ["valid_2_a_1", "valid_3_a_1"]
    assert source.missing_folders == {}


def test_where_all_folders_lead_nowhere_that_is_said(tmp_path: Path) -> None:
    put(tmp_path, "dataset/metadata/validation_metadata.csv")
    (tmp_path / "dataset/valid_fixed").mkdir()
    for number in (1, 2):
        (tmp_path / f"dataset/valid_fixed/valid_{number}").symlink_to("/gone")
    with pytest.raises(SourceError, match=r"2 of its folders lead nowhere, such as .*/valid_1 \(a"):
        FolderSource(tmp_path).list_volumes("valid")


@pytest.mark.parametrize("top", ["dataset", "deep/er/dataset"])
def test_nothing_else_is_taken_for_a_split_whose_folder_leads_nowhere(
    tmp_path: Path, top: str
) -> None:
    put(tmp_path, f"{top}/valid/valid_1_a_1.npz", f"{top}/train/train_1_a_1.npz")
    put(tmp_path, "valid_9_a_1.npz")
    link = tmp_path / top / "valid_fixed"
    link.symlink_to("/gone")
    with pytest.raises(SourceError, match=r"valid_fixed is a link to /gone, which is not there"):
        FolderSource(tmp_path).list_volumes("valid")
    assert [path for path, _ in listed(tmp_path, "train")] == [f"{top}/train/train_1_a_1.npz"]
    link.unlink()
    assert [path for path, _ in listed(tmp_path)] == [f"{top}/valid/valid_1_a_1.npz"]


def test_sizes_and_what_cannot_be_looked_at_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.npz", "b/c.nii.gz", "b/c.json", "b/t.csv", "d/e.txt", "f/only.csv")
    (tmp_path / "b/gone.nii").symlink_to("nowhere")
    top = str(tmp_path)
    tree = look_below(top, at_top=True)
    assert sorted(tree.volumes) == [
        (f"{top}/a.npz", 5),
        (f"{top}/b/c.nii.gz", 10),
        (f"{top}/b/gone.nii", 0),
    ]
    assert tree.missing == [f"{top}/b/gone.nii"]
    # Beside volumes; a volume's own JSON is none.
    assert tree.tables == [f"{top}/b/t.csv"]
    assert (tree.missing_folders, tree.split_folders) == ({}, [])


def test_folders_of_splits_are_told_and_not_looked_into(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid_fixed/x.npz", "dataset/more/y.npz")
    (tmp_path / "dataset/train_fixed").symlink_to("gone")
    top = str(tmp_path)
    tree = look_below(top, at_top=True, splits_of=SplitFolders(built_in()))
    assert sorted(tree.split_folders) == [
        f"{top}/dataset/{name}" for name in ("train_fixed", "valid_fixed")
    ]
    assert [path for path, _ in tree.volumes] == [f"{top}/dataset/more/y.npz"]
    assert tree.missing_folders == {}


def test_a_folder_that_cannot_be_listed_is_a_source_error_and_has_no_tables(tmp_path: Path) -> None:
    put(tmp_path, "t.csv", ".t.csv", "a.npz", "a.json")
    assert tables_in(str(tmp_path)) == [f"{tmp_path}/t.csv"]
    nowhere = str(tmp_path / "nowhere")
    assert tables_in(nowhere) == []
    with pytest.raises(SourceError, match="nowhere cannot be listed: No such file"):
        look_below(nowhere, at_top=True)
