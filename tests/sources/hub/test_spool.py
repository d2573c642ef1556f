"""Volumes that are spooled lie on disk, and leave nothing there."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from source_cases import Open, fetch, file_name, first, random_bytes

from ctgpu.buffers import BufferPool
from ctgpu.errors import StorageError
from ctgpu.sources.hub.spool import SpoolPool
from ctgpu.testing.hub import LocalHub


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see mappings")
def test_spooled_volumes_lie_on_disk_and_leave_nothing(
    hub: LocalHub, open_hub: Open, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    source = open_hub(temp_dir=folder)
    ref = first(source)
    pool = BufferPool()
    with source.fetch(ref, pool.acquire).buffer as buffer:
        assert bytes(buffer.bytes) == random_bytes(file_name(ref))
        assert pool.lent_bytes == 0
        assert _mapped(folder)
        assert list(folder.iterdir()) == []  # nothing that a crash could leave
    del buffer
    gc.collect()
    assert not _mapped(folder)


def _mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def test_a_spool_folder_that_cannot_be_is_a_storage_error(open_hub: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --temp-dir"):
        open_hub(temp_dir=tmp_path / "file" / "below")


def test_a_full_spool_is_a_storage_error_not_a_crash(
    open_hub: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub(temp_dir=tmp_path)
    ref = first(source)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"No space left on device; free space there"):
        fetch(source, ref)


def test_a_spooled_buffer_holds_what_is_written_into_it(tmp_path: Path) -> None:
    pool = SpoolPool(tmp_path / "new" / "folder")
    for size_bytes in (1, 4096, 100_001):
        buffer = pool.acquire(size_bytes)
        assert buffer.size_bytes == size_bytes
        content = random_bytes("a", size_bytes)
        buffer.bytes[:] = memoryview(content)
        assert bytes(buffer.bytes) == content
        buffer.release()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_where_space_cannot_be_reserved_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    written: list[int] = []
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda f, d, o: written.append(len(d)) or pwrite(f, d, o))
    pool = SpoolPool(tmp_path)
    written.clear()
    with pool.acquire(5_000_000) as buffer:
        assert not buffer.bytes.any()
    assert sum(written) >= 5_000_000
