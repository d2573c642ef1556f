"""Local folders: layouts, links, pipes, and files that change underfoot."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ctgpu.buffers import BufferPool
from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.base import SampleRef
from ctgpu.sources.folder import FolderSource


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def listed(root: Path, split: str = "valid") -> list[tuple[str, str]]:
    refs = FolderSource(root).list_volumes(split)  # type: ignore[arg-type]
    return [(ref.path, ref.provenance) for ref in refs]


def test_only_the_split_asked_for_is_listed_in_natural_order(tmp_path: Path) -> None:
    put(
        tmp_path,
        "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz",
        "dataset/valid_fixed/valid_10/valid_10_a/valid_10_a_1.nii.gz",
        "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_2.nii.gz",
        "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii",
        "dataset/valid_fixed/flat.npz",
        "dataset/metadata/validation_metadata.csv",
    )
    assert listed(tmp_path) == [
        ("dataset/valid_fixed/flat.npz", "fixed"),
        ("dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii", "fixed"),
        ("dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_2.nii.gz", "fixed"),
        ("dataset/valid_fixed/valid_10/valid_10_a/valid_10_a_1.nii.gz", "fixed"),
    ]
    assert len(listed(tmp_path, "train")) == 1


def test_fixed_goes_before_v1(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid/valid_1_a_1.nii.gz")
    assert listed(tmp_path) == [("dataset/valid/valid_1_a_1.nii.gz", "v1")]
    put(tmp_path, "dataset/valid_fixed/valid_1_a_1.nii.gz")
    assert listed(tmp_path) == [("dataset/valid_fixed/valid_1_a_1.nii.gz", "fixed")]


def test_the_folder_may_be_given_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid_fixed/a/x.npz", "dataset/valid_fixed/y.npz")
    assert listed(tmp_path / "dataset") == [
        ("valid_fixed/a/x.npz", "fixed"),
        ("valid_fixed/y.npz", "fixed"),
    ]
    assert listed(tmp_path / "dataset" / "valid_fixed") == [
        ("a/x.npz", "fixed"),
        ("y.npz", "fixed"),
    ]


def test_any_folder_of_volumes_serves_any_split(tmp_path: Path) -> None:
    put(tmp_path, "b/scan.NII.GZ", "a.npz", "notes.txt", ".cache/x.npz", ".a.npz", "c.npz.part")
    assert listed(tmp_path) == listed(tmp_path, "train")
    assert listed(tmp_path) == [("a.npz", "unknown"), ("b/scan.NII.GZ", "unknown")]


def test_a_split_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid_fixed/x.npz", "empty/notes.txt")
    with pytest.raises(UsageError, match="none for the split 'train'"):
        listed(tmp_path, "train")
    with pytest.raises(UsageError, match=r"no \.nii\.gz or \.nii or \.npz file"):
        listed(tmp_path / "empty")
    with pytest.raises(UsageError, match="not a folder"):
        FolderSource(tmp_path / "nothing")


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
    assert listed(tmp_path / "snapshot") == [
        ("dataset/valid_fixed/more/valid_2_a_1.npz", "fixed"),
        ("dataset/valid_fixed/valid_1_a_1.npz", "fixed"),
    ]
    assert {"broken.npz", "itself.npz"} <= {word.rsplit("/", 1)[-1] for word in caplog.text.split()}


def test_pipes_are_neither_listed_nor_read(tmp_path: Path) -> None:
    put(tmp_path, "x.npz")
    source = FolderSource(tmp_path)
    (ref,) = source.list_volumes("valid")
    (tmp_path / "x.npz").unlink()
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(FetchError):
        source.fetch(ref, BufferPool().acquire)
    with pytest.raises(UsageError):
        source.list_volumes("valid")


def test_fetch_gives_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "x.npz").write_bytes(content)
    (tmp_path / "empty.npz").write_bytes(b"")
    source = open_source(source=tmp_path)
    empty, ref = source.list_volumes("valid")
    pool = BufferPool()
    with source.fetch(ref, pool.acquire) as buffer:
        assert bytes(buffer.bytes) == content
    with source.fetch(empty, pool.acquire) as buffer:
        assert buffer.size_bytes == 0


def test_a_file_that_changed_or_went_fails_the_sample(tmp_path: Path) -> None:
    put(tmp_path, "x.npz")
    source, pool = FolderSource(tmp_path), BufferPool()
    (ref,) = source.list_volumes("valid")
    with pytest.raises(FetchError, match=r"has 5 bytes, but had 7.*--retry-failed"):
        source.fetch(replace(ref, size_bytes=7), pool.acquire)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(FetchError, match=r"x\.npz cannot be read: No such file"):
        source.fetch(ref, pool.acquire)
    shutil.rmtree(tmp_path)
    with pytest.raises(SourceError, match="is gone"):
        source.fetch(ref, pool.acquire)
    assert pool.lent_bytes == 0


@pytest.mark.parametrize("path", ["../secret.npz", "a/../../secret.npz", "/etc/passwd"])
def test_a_planned_path_never_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    put(tmp_path, "in/a/x.npz", "secret.npz")
    with pytest.raises(FetchError, match="leads out of the source"):
        FolderSource(tmp_path / "in").fetch(SampleRef(path, 10), BufferPool().acquire)


def test_identity_follows_the_listing_and_not_the_machine(tmp_path: Path) -> None:
    def identity(root: Path) -> dict[str, str]:
        source = FolderSource(root)
        source.list_volumes("valid")
        return source.identity()

    here, there = tmp_path / "here" / "CT", tmp_path / "there" / "CT"
    put(here, "dataset/valid_fixed/x.npz", "dataset/metadata/validation_metadata.csv")
    shutil.copytree(here, there)
    first = identity(here)
    assert first == identity(there)
    assert first["kind"] == "folder"
    assert first["location"] == "CT"
    put(here, "dataset/train_fixed/other-split.npz")
    assert identity(here) == first
    put(here, "dataset/valid_fixed/y.npz")
    assert identity(here)["revision"] != first["revision"]
    (there / "dataset/metadata/validation_metadata.csv").write_text("more rows")
    assert identity(there)["revision"] != first["revision"]
    with pytest.raises(ValueError, match="list_volumes comes before"):
        FolderSource(here).identity()


def test_tables_are_found_by_the_first_name_that_exists(tmp_path: Path) -> None:
    put(tmp_path, "b.csv")
    source = FolderSource(tmp_path)
    assert source.read_table("a/x.csv", "b.csv/c.csv", "b.csv") == ("b.csv", b"b.csv")
    assert source.read_table("a.csv") is None


def test_a_folder_and_the_hub_exclude_each_other(tmp_path: Path) -> None:
    for extra in ({"repo_id": "a/b"}, {"revision": "main"}):
        with pytest.raises(UsageError, match="--source names a folder"):
            open_source(source=tmp_path, **extra)  # type: ignore[arg-type]
