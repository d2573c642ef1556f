"""Changes to the folder: all of the old or all of the new, and one sentence where they fail."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctgpu.errors import StorageError
from ctgpu.shards import disk
from ctgpu.shards.names import TEMPORARY_SUFFIX


def failing(number: int) -> Callable[..., Any]:
    """Stands for a call that the system refuses."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of a source, which has 100,000 bytes, and of a target."""
    (tmp_path / "source").write_bytes(os.urandom(100_000))
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space is left; free some, then run the same command again"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.ENOENT, "the folder has vanished"),
        (errno.EMFILE, "raise the limit with `ulimit -n`"),
        (errno.ENAMETOOLONG, "choose a shorter output folder"),
        (errno.EXDEV, os.strerror(errno.EXDEV)),
    ],
)
def test_what_the_system_refuses_is_one_sentence(number: int, reason: str) -> None:
    with pytest.raises(StorageError) as caught, disk.storage_errors("/out"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("/out cannot be written: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    # What is no matter of storage stays what it is.
    with pytest.raises(ValueError, match="other"), disk.storage_errors("/out"):
        raise ValueError("other")


@pytest.mark.parametrize("most_bytes", [1, 7, 1 << 20])
def test_all_is_written_however_little_each_call_takes(
    files: tuple[int, int], most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.pwrite
    monkeypatch.setattr(disk.os, "pwrite", lambda fd, data, at: usual(fd, data[:most_bytes], at))
    disk.write_all(files[1], b"0123456789" * 10, 3, chunk_bytes=64)
    assert os.pread(files[1], 200, 0) == bytes(3) + b"0123456789" * 10


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write_new_file(path, b"first")
    with pytest.raises(FileExistsError):
        disk.write_new_file(path, b"second")
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_of_a_new_file_that_cannot_be_written_nothing_stays(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, call, failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        disk.write_new_file(tmp_path / "a", b"first")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "rename"])
def test_a_file_that_cannot_be_replaced_stays_as_it_is(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    disk.replace_file(path, b"old")
    disk.replace_file(path, b"older")
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, call, failing(errno.EIO))
        with pytest.raises(StorageError, match="a cannot be written: the device reports an error"):
            disk.replace_file(path, b"new")
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("hard_links", [True, False], ids=["link", "no_link"])
def test_a_file_is_created_once(
    tmp_path: Path, hard_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hard_links:
        monkeypatch.setattr(disk.os, "link", failing(errno.ENOTSUP))
    locked: list[str] = []

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        locked.append("taken")
        yield
        locked.append("given back")

    path = tmp_path / "a"
    assert disk.create_exclusively(path, b"first", lock)
    assert not disk.create_exclusively(path, b"second", lock)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]
    assert locked == ([] if hard_links else ["taken", "given back"] * 2)


def test_a_file_that_cannot_be_created_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, "link", failing(errno.EACCES))
    with pytest.raises(StorageError, match="permission is denied"):
        disk.create_exclusively(tmp_path / "a", b"", contextlib.nullcontext)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("in_kernel", ["yes", "refused", "unknown"])
@pytest.mark.parametrize("size_bytes", [0, 1, 65_537, 100_000])
def test_the_first_bytes_of_a_file_are_copied(
    files: tuple[int, int], in_kernel: str, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_kernel == "unknown":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif in_kernel == "refused":
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV), raising=False)
    monkeypatch.setattr(disk, "_CHUNK_BYTES", 30_000)
    source, target = files
    disk.copy_prefix(source, target, size_bytes)
    assert os.pread(target, 200_000, 0) == os.pread(source, size_bytes, 0)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_copy_goes_where_it_is_wanted(
    files: tuple[int, int], in_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    source, target = files
    os.pwrite(target, b"before", 0)
    disk.copy_prefix(source, target, 70_000, offset=4096)
    assert os.pread(target, 6, 0) == b"before"
    assert os.pread(target, 200_000, 4096) == os.pread(source, 70_000, 0)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_file_that_became_shorter_is_not_copied_in_part_without_a_word(
    files: tuple[int, int], in_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    with pytest.raises(OSError, match="it became shorter while it was copied"):
        disk.copy_prefix(*files, 100_001)


def test_a_copy_that_the_disk_refuses_is_not_tried_another_way(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space"):
        disk.copy_prefix(*files, 10)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_whose_file_system_syncs_none_is_let_be(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.sync_folder(tmp_path)
    monkeypatch.setattr(disk.os, "fsync", failing(number))
    disk.sync_folder(tmp_path)
    monkeypatch.setattr(disk.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.sync_folder(tmp_path)


def test_only_what_was_left_an_hour_ago_is_rubbish(tmp_path: Path) -> None:
    names = ("old", "young", "folder")
    old, young, folder = (tmp_path / f".{name}{TEMPORARY_SUFFIX}" for name in names)
    old.touch()
    young.touch()
    folder.mkdir()
    (tmp_path / "plan.json").touch()
    now = young.stat().st_mtime
    for path, age_s in ((old, 3700), (young, 3500), (folder, 9000), (tmp_path / "plan.json", 9000)):
        os.utime(path, (now - age_s, now - age_s))
    disk.remove_stale_temporaries(tmp_path)
    assert set(os.listdir(tmp_path)) == {young.name, folder.name, "plan.json"}
    with pytest.raises(StorageError, match="the folder has vanished"):
        disk.remove_stale_temporaries(tmp_path / "gone")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_who_may_read_a_file_is_as_it_was_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0)
    try:
        disk.write_new_file(tmp_path / "new", b"1", mode)
        disk.write_new_file(tmp_path / "replaced", b"1")
        disk.replace_file(tmp_path / "replaced", b"2", mode)
        assert disk.create_exclusively(tmp_path / "created", b"1", contextlib.nullcontext, mode)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_removing_says_whether_there_was_anything(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert disk.remove(tmp_path / "a")
    assert not disk.remove(tmp_path / "a")
    disk.make_folder(tmp_path / "b")
    with pytest.raises(OSError, match=r"\w"):
        disk.remove(tmp_path / "b")
    with pytest.raises(FileExistsError):
        disk.make_folder(tmp_path / "b")
    disk.rename(tmp_path / "b", tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"]
