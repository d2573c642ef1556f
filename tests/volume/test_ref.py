"""How a volume is called: its key, its study id, and names in more than one spelling."""

from __future__ import annotations

import unicodedata

import pytest

from ctgpu.volume.ref import SampleRef, Spelling, normal_form, strip_volume_suffix


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("valid_1_a_1.nii.gz", "valid_1_a_1"),
        ("a.nii", "a"),
        ("a.npz", "a"),
        ("a.bin", "a"),
        ("a.ctz", "a"),
        ("A.NII.GZ", "A"),
        ("a.b.nii.gz", "a.b"),
        ("a.nii.gz.nii.gz", "a.nii.gz"),
        ("a.gz", "a.gz"),
        ("a.csv", "a.csv"),
        ("nii.gz", "nii.gz"),
        ("", ""),
    ],
)
def test_the_suffix_of_a_volume_is_taken_off_once(name: str, left: str) -> None:
    assert strip_volume_suffix(name) == left


@pytest.mark.parametrize(
    ("path", "study_id", "key"),
    [
        ("dataset/valid/valid_1_a_1.nii.gz", "valid_1_a_1", "valid_1_a_1"),
        ("scan.nii", "scan", "scan"),
        ("a/b.c.npz", "b.c", "b_c"),
        ("a/two words.nii", "two words", "two_words"),
        ("a/tab\tand\x00nul.nii", "tab\tand\x00nul", "tab_and_nul"),
        ("a/Müller.é.nii", "Müller.é", "Müller_é"),
    ],
)
def test_a_file_is_called_by_its_name(path: str, study_id: str, key: str) -> None:
    ref = SampleRef.of_file(path, 7, "sha256:00", "fixed")
    assert ref == SampleRef(key, study_id, path, 7, "sha256:00", "fixed")
    # A key is one word to every reader of tars.
    assert not set(ref.key) & set("./\\ \t\0")


def test_a_description_may_call_it_otherwise() -> None:
    ref = SampleRef.of_file("a/image.nii.gz", 7, study_id="patient/7.nii.gz")
    assert (ref.study_id, ref.key) == ("patient/7", "patient_7")
    assert (ref.path, ref.checksum, ref.provenance) == ("a/image.nii.gz", None, "unknown")


def test_a_name_is_found_in_whichever_form_it_is_asked_for() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert normal_form(decomposed) == normal_form(composed) == composed
    for stored in (composed, decomposed):
        spelling = Spelling(["other", stored])
        assert spelling.find(composed) == spelling.find(decomposed) == stored
        assert spelling.find("Muller") is None
    # Where both are stored, each is itself.
    both = Spelling([composed, decomposed])
    assert (both.find(composed), both.find(decomposed)) == (composed, decomposed)
    assert Spelling().find("other") is None
