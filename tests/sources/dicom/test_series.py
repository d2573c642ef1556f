"""Files put together: series, what is left out, and series that may lack slices."""

from __future__ import annotations

from headers import file, series

from ctgpu.sources.dicom.private import SeriesFile
from ctgpu.sources.dicom.scan import BROKEN
from ctgpu.sources.dicom.series import sorted_out, studies_of_several


def key_of(uid: str) -> str:
    return f"key-{uid}"


def test_files_go_together_by_their_series_wherever_they_lie() -> None:
    found = sorted_out(
        [
            file("b/2.dcm", "1.9", study_uid=""),
            file("a/1.dcm", "1.8"),
            file("a/2.dcm", "1.9", study_uid="5.5"),
            SeriesFile("a/3.dcm", 1, 2, None, "a localizer"),
            file("c/1.dcm", "1.9", study_uid="5.5"),
        ],
        key_of,
    )
    assert [*found.series] == ["key-1.8", "key-1.9"]
    one = found.series["key-1.9"]
    assert (one.series_uid, one.study_uid) == ("1.9", "5.5")
    assert [each.path for each in one.files] == ["a/2.dcm", "b/2.dcm", "c/1.dcm"]
    assert [each.path for each in found.others] == ["a/3.dcm"]


def test_the_order_of_the_files_does_not_matter() -> None:
    files = [file(f"{n}.dcm", f"1.{n % 2}") for n in range(8)]
    assert sorted_out(files, key_of) == sorted_out(reversed(files), key_of)


def test_what_is_left_out_is_counted_by_its_reason_alone() -> None:
    reasons = ["a localizer", "a report", "a localizer", f"{BROKEN}cut", f"{BROKEN}a bomb"]
    others = [SeriesFile(f"{n}.dcm", 1, 2, None, reason) for n, reason in enumerate(reasons)]
    said = "a localizer (2), not readable (2), a report (1)"
    assert sorted_out(others, key_of).left_out == said
    assert sorted_out([file("1.dcm")], key_of).left_out == ""


def test_series_in_a_folder_with_a_file_that_cannot_be_read_are_doubtful() -> None:
    found = sorted_out(
        [
            *(file("a/1.dcm", "1.1"), file("b/1.dcm", "1.2"), file("c/1.dcm", "1.3")),
            *(file("a/2.dcm", "1.4"), file("b/2.dcm", "1.4")),
            SeriesFile("a/3.dcm", 1, 2, None, f"{BROKEN}it is cut"),
            SeriesFile("a/4.dcm", 1, 2, None, f"{BROKEN}it is cut"),
            SeriesFile("b/3.dcm", 1, 2, None, f"{BROKEN}it is cut"),
            SeriesFile("c/2.dcm", 1, 2, None, "a localizer"),
            SeriesFile("d/2.dcm", 1, 2, None, f"{BROKEN}it is cut"),
        ],
        key_of,
    )
    assert found.doubtful == {"key-1.1": 2, "key-1.2": 1, "key-1.4": 3}


def test_studies_of_several_series_are_counted() -> None:
    found = {
        "a": series("1", series_uid="1", study_uid="9"),
        "b": series("2", series_uid="2", study_uid="9"),
        "c": series("3", series_uid="3", study_uid="8"),
        "d": series("4", series_uid="4", study_uid=""),
        "e": series("5", series_uid="5", study_uid=""),
    }
    assert studies_of_several(found) == 1
