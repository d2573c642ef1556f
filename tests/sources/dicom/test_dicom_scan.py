"""Each file is looked into once; what is no slice is told from one that is cut."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from pacs import put_series
from pydicom import Dataset

from ctgpu.errors import EnvironmentFailure
from ctgpu.sources.dicom.private import SeriesFile
from ctgpu.sources.dicom.scan import BROKEN, NO_DICOM, scan
from ctgpu.sources.dicom.walk import FoundFile, files_below


def scanned(root: Path, known: dict[str, SeriesFile] | None = None) -> dict[str, SeriesFile]:
    return {file.path: file for file in scan(root, files_below(root), known or {})}


def only(root: Path) -> SeriesFile:
    (file,) = scanned(root).values()
    return file


def test_slices_have_their_headers_and_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    put_series(tmp_path, "b")
    put_series(tmp_path, "a", form="enhanced")
    found = scanned(tmp_path)
    assert [*found] == ["a/000.dcm", *(f"b/{n:03d}.dcm" for n in range(4))]
    assert [file.header.frames for file in found.values() if file.header] == [4, 1, 1, 1, 1]
    assert {file.left_out for file in found.values()} == {""}
    status = (tmp_path / "b/002.dcm").stat()
    assert found["b/002.dcm"].size_bytes == status.st_size
    assert found["b/002.dcm"].mtime_ns == status.st_mtime_ns


def test_a_file_is_opened_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_series(tmp_path, "a")
    (tmp_path / "a/notes").write_text("of no format")
    opened: list[str] = []
    usual = os.open

    def note(path: Any, *options: Any, **more: Any) -> int:
        if str(path).startswith(str(tmp_path)):
            opened.append(Path(path).name)
        return usual(path, *options, **more)

    monkeypatch.setattr(os, "open", note)
    known = scanned(tmp_path)
    assert sorted(opened) == ["000.dcm", "001.dcm", "002.dcm", "003.dcm", "notes"]
    opened.clear()
    assert scanned(tmp_path, known) == known
    assert opened == []
    os.utime(tmp_path / "a/001.dcm", ns=(5, 5))
    (tmp_path / "a/002.dcm").write_bytes((tmp_path / "a/002.dcm").read_bytes() + b"\0\0")
    changed = scanned(tmp_path, known)
    assert sorted(opened) == ["001.dcm", "002.dcm"]
    assert changed["a/001.dcm"].mtime_ns == 5
    assert changed["a/000.dcm"] is known["a/000.dcm"]


def test_what_could_not_be_read_is_looked_into_again(tmp_path: Path) -> None:
    (path, *_) = put_series(tmp_path, "a")
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    known = scanned(tmp_path)
    assert known["a/000.dcm"].left_out.startswith(BROKEN)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scanned(tmp_path, known)["a/000.dcm"].left_out == ""


def _of_mr(dataset: Dataset, number: int) -> None:
    dataset.Modality, dataset.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"


def _localizer(dataset: Dataset, number: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _capture(dataset: Dataset, number: int) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def _dose_report(dataset: Dataset, number: int) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    dataset.Modality = "SR"
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)


@pytest.mark.parametrize("change", [_of_mr, _localizer, _capture, _dose_report])
def test_what_is_no_slice_of_a_ct_is_left_out_and_not_broken(tmp_path: Path, change: Any) -> None:
    put_series(tmp_path, "a", change=change)
    for file in scanned(tmp_path).values():
        assert file.header is None
        assert file.left_out
        assert not file.left_out.startswith(BROKEN)


@pytest.mark.parametrize(
    ("name", "content", "left_out"),
    [
        ("notes", b"of no format" * 20, NO_DICOM),
        ("notes", b"short", NO_DICOM),
        ("IM001", b"", f"{BROKEN}it is empty"),
        ("1.dcm", b"", BROKEN),
        ("1.dcm", b"of no format" * 20, BROKEN),
        ("1.dcm", bytes(128) + b"DICM", BROKEN),
        ("IM001", bytes(128) + b"DICM" + b"DOE^JANE", BROKEN),
    ],
)
def test_what_may_be_a_slice_is_told_from_what_is_none(
    tmp_path: Path, name: str, content: bytes, left_out: str
) -> None:
    (tmp_path / name).write_bytes(content)
    file = only(tmp_path)
    assert file.header is None
    assert file.left_out.startswith(left_out)
    assert "DOE" not in file.left_out


def test_a_link_that_leads_nowhere_may_be_a_slice(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").symlink_to("gone")
    assert only(tmp_path).left_out == f"{BROKEN}No such file or directory"


def test_a_slice_without_a_series_may_belong_to_any(tmp_path: Path) -> None:
    def nameless(dataset: Dataset, number: int) -> None:
        del dataset.SeriesInstanceUID

    put_series(tmp_path, "a", change=nameless)
    assert {f.left_out for f in scanned(tmp_path).values()} == {
        f"{BROKEN}it has no SeriesInstanceUID"
    }


@pytest.mark.slow
def test_a_slice_that_is_cut_anywhere_is_never_taken_for_something_else(tmp_path: Path) -> None:
    """Anywhere before its pixels, for what they lack is seen when they are decoded."""
    (path, *others) = put_series(tmp_path, "a")
    for other in others:
        other.unlink()
    content = path.read_bytes()
    end = only(tmp_path).header
    assert end is not None
    for size_bytes in range(0, end.pixel_offset):
        path.write_bytes(content[:size_bytes])
        assert only(tmp_path).left_out.startswith(BROKEN), size_bytes


@pytest.mark.slow
def test_many_files_are_read_by_several_threads_and_stay_in_order(tmp_path: Path) -> None:
    for n in range(60):
        put_series(tmp_path, f"s{n:02d}", n)
    found = scanned(tmp_path)
    assert len(found) == 240
    assert [*found] == sorted(found)
    assert all(f.header and f.path.split("/")[0] for f in found.values())
    uids = {f.path.split("/")[0]: f.header.series_uid for f in found.values() if f.header}
    assert len(set(uids.values())) == 60


def test_without_pydicom_the_run_ends_with_the_command_that_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_series(tmp_path, "a")
    monkeypatch.setitem(sys.modules, "pydicom.filereader", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install .*dicom"):
        scanned(tmp_path)


def test_a_machine_that_is_short_of_something_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_series(tmp_path, "DOE^JANE")
    found = files_below(tmp_path)

    def open_no_more(path: object, *unused: object) -> int:
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(os, "open", open_no_more)
    with pytest.raises(EnvironmentFailure, match="too many files are open") as caught:
        scan(tmp_path, found, {})
    assert "DOE" not in "".join(traceback.format_exception(caught.value))


def test_what_ends_it_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stop(file: Any, name: str) -> Any:
        asked.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr("ctgpu.sources.dicom.scan.read_header", stop)
    files = [FoundFile(f"{n:05d}.dcm", 1, 1) for n in range(20_000)]
    (tmp_path / "00000.dcm").write_bytes(b"x")
    for file in files[1:]:
        os.link(tmp_path / "00000.dcm", tmp_path / file.path)
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path, files, {})
    assert 0 < len(asked) < 250
