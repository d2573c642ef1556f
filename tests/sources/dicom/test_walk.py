"""Which files below a folder may be DICOM: names, links, and folders that cannot be listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctgpu.errors import SourceError
from ctgpu.sources.dicom.walk import files_below, holds_dicom

HEAD = bytes(128) + b"DICM"


def put(root: Path, **files: bytes) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(root: Path) -> list[str]:
    return [file.path for file in files_below(root)]


def test_files_of_dicom_have_any_name_and_tables_texts_and_pictures_are_none(
    tmp_path: Path,
) -> None:
    for name in (
        *("a/1.dcm", "a/2.DCM", "a/3.IMA", "a/b/IM000001", "a/1.2.840.99", "a/x.img", "é/ü.dcm"),
        *("labels.csv", "a/report.txt", "a/scan.nii.gz", "a/page.JPEG", "DICOMDIR", "a/dicomdir"),
        *(".hidden.dcm", ".git/1.dcm", "a/._1.dcm"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == [
        *("a/1.2.840.99", "a/1.dcm", "a/2.DCM", "a/3.IMA", "a/b/IM000001", "a/x.img", "é/ü.dcm"),
    ]


def test_a_file_is_known_again_by_its_size_and_time(tmp_path: Path) -> None:
    put(tmp_path, a_dcm=b"12345")
    os.utime(tmp_path / "a.dcm", ns=(1, 123_456_789))
    assert files_below(tmp_path) == [("a.dcm", 5, 123_456_789)]


def test_what_two_links_lead_to_is_there_once_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path, one__a_dcm=b"x")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "above").symlink_to(tmp_path)
    (tmp_path / "one" / "b.dcm").symlink_to(tmp_path / "one" / "a.dcm")
    os.link(tmp_path / "one" / "a.dcm", tmp_path / "one" / "c.dcm")
    (tmp_path / "loop.dcm").symlink_to("loop.dcm")
    put(tmp_path, one__d_dcm=b"x")
    assert names(tmp_path) == ["loop.dcm", "one/a.dcm", "one/d.dcm"]


def test_a_link_that_leads_nowhere_is_a_file_of_no_size_and_a_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").symlink_to("nothing")
    os.mkfifo(tmp_path / "b.dcm")
    assert files_below(tmp_path) == [("a.dcm", 0, 0)]


def test_a_folder_that_cannot_be_listed_ends_it_and_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "DOE^JANE").mkdir()
    listing = os.scandir

    def scandir(folder: str) -> object:
        if "DOE" in str(folder):
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr("ctgpu.sources.dicom.walk.os.scandir", scandir)
    with pytest.raises(
        SourceError, match=r"a folder below .* listed \(Permission denied\)"
    ) as caught:
        files_below(tmp_path)
    assert "DOE" not in str(caught.value)
    assert caught.value.__context__ is None
    assert not holds_dicom(tmp_path)
    (tmp_path / "1.dcm").write_bytes(HEAD)
    assert holds_dicom(tmp_path)


@pytest.mark.parametrize(
    ("files", "does"),
    [
        ({}, False),
        ({"a__1_dcm": b""}, True),
        ({"a__IM1": HEAD}, True),
        ({"a__IM1": HEAD[:-1]}, False),
        ({"a__IM1": b"text" * 100}, False),
        ({"a__1_dcm": HEAD, "b__scan_nii_gz": b"x"}, False),
        ({"a__1_dcm": HEAD, "b__scan_npy": b"x"}, False),
        ({"a__1_dcm": HEAD, "labels_csv": b"x"}, True),
        ({"notes_txt": HEAD}, False),
    ],
)
def test_a_folder_of_dicom_has_it_and_no_volume_of_another_format(
    tmp_path: Path, files: dict[str, bytes], does: bool
) -> None:
    put(tmp_path, **files)
    assert holds_dicom(tmp_path) is does
