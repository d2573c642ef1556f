"""The files of a series in one buffer: their order, what goes wrong, and names that stay unsaid."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pacs import marked, opened, put_series, voxels_of

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import DecodeError, EnvironmentFailure, FetchError, SampleError, shortage
from ctgpu.sources.dicom.fetched import fetch_series
from ctgpu.sources.dicom.private import Series
from ctgpu.sources.dicom.scan import scan
from ctgpu.sources.dicom.walk import files_below

FOLDER = "DOE^JANE"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put_series(tmp_path / "pacs", FOLDER)
    return tmp_path / "pacs"


def series_in(root: Path) -> Series:
    files = scan(root, files_below(root), {})
    return Series("1.2", "1.1", tuple(files))


def test_the_files_lie_one_after_the_other(root: Path) -> None:
    pool = BufferPool()
    series = series_in(root)
    fetched = fetch_series(root, "key.dcm", series, pool.acquire)
    whole = b"".join((root / file.path).read_bytes() for file in series.files)
    assert fetched.buffer.bytes.tobytes() == whole
    assert fetched.size_bytes == series.size_bytes == len(whole)
    assert fetched.path == "key.dcm"
    assert fetched.inflated_bytes == marked().nbytes
    fetched.release()


def test_it_is_decoded_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    names = ["d", "b", "a", "c"]
    for number, folder in enumerate(("one", "two")):
        put_series(
            tmp_path,
            folder,
            3,
            name=lambda k: names[k],
            transfer_syntax=("explicit", "rle")[number],
        )
    source = opened(tmp_path)
    refs = source.list_volumes("valid")
    assert len(refs) == 2
    for ref in refs:
        np.testing.assert_array_equal(voxels_of(source, ref), marked(3))


def test_the_buffer_goes_back_when_the_files_make_no_volume(root: Path) -> None:
    pool = BufferPool()
    series = series_in(root)
    gap = Series(series.series_uid, series.study_uid, (*series.files[:2], series.files[3]))
    fetched = fetch_series(root, "key.dcm", gap, pool.acquire)
    with pytest.raises(SampleError, match=r"^key\.dcm"):
        fetched.decode(pool)
    with pytest.raises(ValueError, match="released"):
        _ = fetched.buffer.bytes


def _gone(path: Path) -> None:
    path.unlink()


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [_gone, _longer, _cut, _pipe, _folder])
def test_a_file_that_is_not_as_it_was_is_one_sentence_that_does_not_name_it(
    root: Path, harm: Callable[[Path], None]
) -> None:
    series, lent = series_in(root), []
    harm(root / series.files[2].path)
    pool = BufferPool()

    def lend(size_bytes: int) -> Buffer:
        lent.append(pool.acquire(size_bytes))
        return lent[-1]

    with pytest.raises(FetchError, match=r"^key\.dcm: file 3 of its 4 .* use --retry-failed$") as c:
        fetch_series(root, "key.dcm", series, lend)
    said = "".join(traceback.format_exception(c.value))
    assert "Error" in said
    assert FOLDER not in said
    with pytest.raises(ValueError, match="released"):
        _ = lent[0].bytes


def test_a_machine_that_is_short_of_something_is_not_the_samples_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = series_in(root)

    def open_no_more(path: object, *unused: object) -> int:
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(os, "open", open_no_more)
    with pytest.raises(FetchError) as caught:
        fetch_series(root, "key.dcm", series, BufferPool().acquire)
    short = shortage(caught.value)
    assert isinstance(short, EnvironmentFailure)
    assert "too many files" in str(short)
    assert FOLDER not in "".join(traceback.format_exception(short))


def test_a_limit_holds_for_the_volume(root: Path) -> None:
    pool = BufferPool()
    fetched = fetch_series(root, "key.dcm", series_in(root), pool.acquire)
    with pytest.raises(DecodeError, match=r"key\.dcm"):
        fetched.decode(pool, limit_bytes=marked().nbytes - 1)


def test_a_series_is_a_fetched_volume_like_any_other(root: Path) -> None:
    fetched = fetch_series(root, "key.dcm", series_in(root), BufferPool().acquire)
    assert replace(fetched, path="other").series is fetched.series
    fetched.release()
