"""Local folders: layouts, links, pipes, and files that change underfoot."""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from folders import listed, put

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.folder import FolderSource
from ctgpu.volume.ref import SampleRef


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
    with pytest.raises(UsageError, match=r"no \.nii\.gz, \.nii, \.npz, .* \.npy file"):
        listed(tmp_path / "empty")
    with pytest.raises(UsageError, match="not a folder"):
        FolderSource(tmp_path / "nothing")


@pytest.mark.parametrize("present", [("train",), ("valid",), ("train", "valid")])
@pytest.mark.parametrize("fixed", ["_fixed", ""])
@pytest.mark.parametrize("inner", ["dataset/", ""])
@pytest.mark.parametrize("outer", ["", "CT-RATE/", "a/b/c/", "datasets--o--n/snapshots/0123abcd/"])
def test_splits_never_mix_wherever_the_data_set_lies(
    tmp_path: Path, outer: str, inner: str, fixed: str, present: tuple[str, ...]
) -> None:
    data_set = f"{outer}{inner}"
    for name in present:
        put(tmp_path, f"{data_set}{name}{fixed}/{name}_1/{name}_1_a/{name}_1_a_1.nii.gz")
    if not inner and not fixed and len(present) == 1:
        # `train` alone is a name of others too; these are known by their tables.
        put(tmp_path, f"{data_set}radiology_text_reports/validation_reports.csv")
    for asked in ("train", "valid"):
        if asked in present:
            volume = f"{data_set}{asked}{fixed}/{asked}_1/{asked}_1_a/{asked}_1_a_1.nii.gz"
            assert [path for path, _ in listed(tmp_path, asked)] == [volume]
        else:
            (other,) = present
            with pytest.raises(UsageError, match=f"none for the split '{asked}'.*--split {other}"):
                listed(tmp_path, asked)


def test_tables_are_those_of_the_data_set_that_was_found(tmp_path: Path) -> None:
    inner, outer = "multi_abnormality_labels/valid_predicted_labels.csv", "train_metadata.csv"
    put(tmp_path, "C/dataset/valid_fixed/x.npz", f"C/dataset/{inner}", inner, outer)
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    names = (f"dataset/{inner}", inner, "valid_predicted_labels.csv")
    assert source.read_table(*names) == (f"C/dataset/{inner}", f"C/dataset/{inner}".encode())
    assert source.identity()["root"] == "C"
    # What the data set itself has not may lie at the top.
    assert source.read_table("dataset/metadata/train_metadata.csv", outer) == (
        outer,
        outer.encode(),
    )


def test_the_revision_follows_the_tables_of_the_data_set_that_was_found(tmp_path: Path) -> None:
    def revision() -> str:
        source = FolderSource(tmp_path)
        source.list_volumes("valid")
        return source.identity()["revision"]

    put(tmp_path, "C/dataset/valid_fixed/x.npz")
    without = revision()
    put(tmp_path, "C/dataset/metadata/validation_metadata.csv")
    assert revision() != without


def test_at_the_top_alone_a_folder_is_listed_as_before(tmp_path: Path) -> None:
    # What plans were made of that name no root: the listing's hash is written down.
    table = "C/dataset/metadata/validation_metadata.csv"
    put(tmp_path / "disk", "C/dataset/valid_fixed/x.npz", "C/dataset/train_fixed/y.npz", table)
    source = FolderSource(tmp_path / "disk", only_top=True)
    assert [ref.path for ref in source.list_volumes("valid")] == [
        "C/dataset/train_fixed/y.npz",
        "C/dataset/valid_fixed/x.npz",
    ]
    assert source.read_table("dataset/metadata/validation_metadata.csv") is None
    assert source.identity() == {
        "kind": "folder",
        "location": "disk",
        "revision": hashlib.sha256(
            b"C/dataset/train_fixed/y.npz\t27\nC/dataset/valid_fixed/x.npz\t27\n"
        ).hexdigest(),
    }


def test_a_data_set_at_the_top_names_no_root(tmp_path: Path) -> None:
    put(tmp_path, "dataset/valid_fixed/x.npz", "plain/x.npz")
    for root in (tmp_path, tmp_path / "dataset", tmp_path / "plain"):
        source = FolderSource(root)
        source.list_volumes("valid")
        assert "root" not in source.identity()


def test_several_copies_of_a_split_are_refused_by_name(tmp_path: Path) -> None:
    disk, cache = tmp_path / "disk", tmp_path / "cache"
    put(disk, "b/dataset/valid_fixed/x.npz", "a/dataset/valid/x.npz", "c/train_fixed/y.npz")
    put(cache, *(f"snapshots/{n}/dataset/valid_fixed/x.npz" for n in (0, 1)))
    with pytest.raises(UsageError, match=r"2 copies of the split 'valid': in \S+/a, \S+/b; give"):
        listed(disk)
    with pytest.raises(UsageError, match=r"2 copies.*/snapshots/0, \S+/snapshots/1; give one"):
        listed(cache)
    assert listed(disk, "train") == [("c/train_fixed/y.npz", "fixed")]


def test_folders_named_after_splits_may_hold_whole_data_sets(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        put(tmp_path, f"{split}/dataset/{split}_fixed/{split}_1_a_1.npz")
    for split in ("train", "valid"):
        path = f"{split}/dataset/{split}_fixed/{split}_1_a_1.npz"
        assert listed(tmp_path, split) == [(path, "fixed")]


def test_other_volumes_beside_a_data_set_are_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "C/dataset/valid_fixed/x.npz", "other/y.npz", "z.npz")
    source = FolderSource(tmp_path)
    assert [r.path for r in source.list_volumes("valid")] == ["C/dataset/valid_fixed/x.npz"]
    assert list(source.left_out) == ["z.npz", "other/y.npz"]


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("dataset/train_fixed", "train"),
        ("dataset/train_fixed/p", "train"),
        ("dataset/train", "train"),
        ("dataset/valid_fixed", "valid"),
        ("elsewhere/train", None),
        ("elsewhere", None),
        ("link", "train"),
    ],
)
def test_a_source_knows_the_split_that_it_is_part_of(
    tmp_path: Path, place: str, split: str | None
) -> None:
    put(tmp_path, *(f"dataset/{name}/p/x.npz" for name in ("train_fixed", "train", "valid_fixed")))
    put(tmp_path, "elsewhere/train/x.npz")
    (tmp_path / "link").symlink_to(tmp_path / "dataset" / "train_fixed")
    source = FolderSource(tmp_path / place)
    source.list_volumes(split or "train")  # type: ignore[arg-type]
    assert source.listed_split == (split if place != "elsewhere" else None)


def test_data_sets_of_others_go_on_serving_any_split(tmp_path: Path) -> None:
    put(
        tmp_path,
        "imagesTr/a_0000.nii.gz",
        "imagesTs/b_0000.nii.gz",
        "ct/train/c.npz",
        "ct/test/d.npz",
        "training/e.npz",
        "validation/f.npz",
    )
    assert len(listed(tmp_path)) == 6
    assert listed(tmp_path) == listed(tmp_path, "train")
    assert {provenance for _, provenance in listed(tmp_path)} == {"unknown"}


def test_a_link_that_leads_nowhere_fails_until_its_file_is_back(tmp_path: Path) -> None:
    put(tmp_path, "s/a.npz")
    source = FolderSource(tmp_path / "s")
    source.list_volumes("valid")
    before = source.identity()
    (tmp_path / "s" / "b.npz").symlink_to("../blobs/0123")
    (ref,) = (ref for ref in source.list_volumes("valid") if ref.path == "b.npz")
    assert source.identity() == before, "a folder that was planned with the link goes on"
    with pytest.raises(
        FetchError, match=r"b\.npz is a link to \.\./blobs/0123, which is not there"
    ):
        source.fetch(ref, BufferPool().acquire)
    put(tmp_path, "blobs/0123")
    (ref,) = (ref for ref in source.list_volumes("valid") if ref.path == "b.npz")
    with source.fetch(ref, BufferPool().acquire).buffer as buffer:
        assert bytes(buffer.bytes) == b"blobs/0123"
    assert source.identity() != before


def test_a_table_whose_link_leads_nowhere_is_not_taken_for_none(tmp_path: Path) -> None:
    put(tmp_path, "a.npz")
    (tmp_path / "valid_predicted_labels.csv").symlink_to("blobs/4567")
    source = FolderSource(tmp_path)
    source.list_volumes("valid")
    with pytest.raises(SourceError, match=r"labels\.csv is a link to blobs/4567, which is not"):
        source.tables("valid")


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
    with source.fetch(ref, pool.acquire).buffer as buffer:
        assert bytes(buffer.bytes) == content
    with source.fetch(empty, pool.acquire).buffer as buffer:
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
        FolderSource(tmp_path / "in").fetch(SampleRef.of_file(path, 10), BufferPool().acquire)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.npz"])
def test_a_volume_that_is_rewritten_while_it_is_read_fails_and_can_be_retried(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"A" * 3_000_000)
    source, pool = FolderSource(tmp_path), BufferPool()
    (ref,) = source.list_volumes("valid")

    def allocate(size_bytes: int) -> Buffer:
        path.write_bytes(b"B" * size_bytes)
        return pool.acquire(size_bytes)

    with pytest.raises(FetchError, match=rf"{name} was not read: it was written.*--retry-failed"):
        source.fetch(ref, allocate)
    assert pool.lent_bytes == 0
    with source.fetch(ref, pool.acquire).buffer as buffer:
        assert set(buffer.bytes) == {ord("B")}


def test_a_table_that_is_no_file_is_refused_in_words(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(SourceError, match=r"a\.csv cannot be read: it is a pipe"):
        FolderSource(tmp_path).read_table("a.csv")
    (tmp_path / "b.csv").touch()
    os.truncate(tmp_path / "b.csv", 1 << 40)
    with pytest.raises(SourceError, match=r"b\.csv cannot be read: it has more than"):
        FolderSource(tmp_path).read_table("b.csv")


def test_tables_are_found_without_the_folder_of_the_volumes(tmp_path: Path) -> None:
    put(tmp_path, "valid_predicted_labels.csv")
    (tmp_path / "valid_fixed").symlink_to("/gone")
    source = FolderSource(tmp_path)
    source.find_tables("valid")
    assert set(source.table_checksums("valid")) == {"valid_predicted_labels.csv"}
    (tmp_path / "valid_predicted_labels.csv").unlink()
    with pytest.raises(SourceError, match="valid_fixed is a link to /gone"):
        source.find_tables("valid")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_listed_volume_is_meant_by_its_path_in_either_normal_form(
    tmp_path: Path, forms: tuple[str, str]
) -> None:
    stored, planned = (unicodedata.normalize(form, "Ärzte/é.npz") for form in forms)
    put(tmp_path, stored)
    source = FolderSource(tmp_path)
    (ref,) = source.list_volumes("valid")
    assert ref.path == stored
    with source.fetch(replace(ref, path=planned), BufferPool().acquire).buffer as buffer:
        assert bytes(buffer.bytes) == stored.encode()
    (tmp_path / stored).unlink()
    (tmp_path / stored).symlink_to("blob")
    with pytest.raises(FetchError, match="is a link to blob, which is not there"):
        source.fetch(replace(ref, path=planned), BufferPool().acquire)
