"""Volumes that are the same bytes are found, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctgpu.sources import duplicates as module
from ctgpu.sources.duplicates import duplicates
from ctgpu.volume.ref import SampleRef

SIZE = 300_000


def write(folder: Path, **contents: bytes) -> list[SampleRef]:
    for name, content in contents.items():
        (folder / f"{name}.nii").write_bytes(content)
    return [SampleRef.of_file(f"{name}.nii", len(c)) for name, c in contents.items()]


def found(folder: Path, refs: list[SampleRef]) -> list[list[str]]:
    groups = duplicates(refs, lambda ref: folder / ref.path)
    return [[ref.study_id for ref in group] for group in groups]


def test_files_of_the_same_bytes_are_named_together(tmp_path: Path) -> None:
    one, other = os.urandom(SIZE), os.urandom(SIZE)
    refs = write(tmp_path, a=one, b=other, c=one, d=other, e=one, f=os.urandom(SIZE), g=one[:-1])
    assert found(tmp_path, refs) == [["a", "c", "e"], ["b", "d"]]


@pytest.mark.parametrize("place", [0, 70_000, SIZE // 2, 200_000, SIZE - 1])
def test_one_byte_makes_another_scan_wherever_it_is(tmp_path: Path, place: int) -> None:
    one = bytes(SIZE)
    other = bytearray(one)
    other[place] = 1
    assert found(tmp_path, write(tmp_path, a=one, b=bytes(other))) == []


def test_files_of_different_sizes_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = write(tmp_path, a=b"1", b=b"22", c=b"333")
    monkeypatch.setattr(module, "_probe", lambda path: pytest.fail(f"{path} was opened"))
    assert found(tmp_path, refs) == []


def test_files_without_a_byte_and_those_that_are_gone_are_no_duplicates(tmp_path: Path) -> None:
    refs = write(tmp_path, a=b"", b=b"", c=b"11", d=b"11", e=b"11")
    (tmp_path / "e.nii").unlink()
    assert found(tmp_path, refs) == [["c", "d"]]


def test_what_the_source_states_decides_without_a_file() -> None:
    refs = [
        SampleRef.of_file(f"{name}.nii.gz", 5, checksum)
        for name, checksum in [("a", "sha256:1"), ("b", "sha256:2"), ("c", "sha256:1"), ("d", None)]
    ]
    (group,) = duplicates(refs)
    assert [ref.study_id for ref in group] == ["a", "c"]
