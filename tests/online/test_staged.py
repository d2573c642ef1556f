"""Samples in files of their own: whole, or as if they were not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctgpu.online.staged import StagedSamples
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.volume.ref import SampleRef

REF = SampleRef("study_1", "study.1", "a/study.1.nii.gz", 100, None, "unknown")
VOLUME = (np.arange(5000) % 251).astype(np.uint8)
SAMPLE = PackedSample(
    "study_1", VOLUME, checksum(VOLUME), b"\0\xff\xc0\x7f", "Größe".encode(), b'{"a":1}', "LPS"
)


@pytest.fixture
def staged(tmp_path: Path) -> StagedSamples:
    return StagedSamples(tmp_path / "staged", "f" * 16)


def blank() -> np.ndarray:
    return np.zeros(5000, np.uint8)


def test_a_sample_comes_back_as_it_was(staged: StagedSamples) -> None:
    assert not staged.has(REF)
    assert staged.get(REF, blank()) is None
    staged.put(SAMPLE)
    assert staged.has(REF)
    out = blank()
    found = staged.get(REF, out)
    assert isinstance(found, PackedSample)
    assert np.shares_memory(found.volume, out)
    assert np.array_equal(out, VOLUME)
    assert found.volume_file == staged.folder / "study_1.sample"
    assert replace(found, volume=VOLUME, volume_file=None) == SAMPLE
    assert [path.name for path in staged.folder.iterdir()] == ["study_1.sample"]
    staged.remove(REF)
    assert not staged.has(REF)


def test_compressed_volumes_have_a_size_of_their_own(tmp_path: Path) -> None:
    staged = StagedSamples(tmp_path / "staged", "f" * 16, compressed=True)
    assert staged.taken_bytes() == 0
    sample = replace(SAMPLE, compressed=True)
    staged.put(sample)
    out = np.zeros(9000, np.uint8)
    found = staged.get(REF, out)
    assert isinstance(found, PackedSample)
    assert np.array_equal(found.volume, VOLUME)
    assert np.shares_memory(found.volume, out)
    assert replace(found, volume=VOLUME, volume_file=None) == sample
    assert staged.taken_bytes() == len(VOLUME)
    # One that is larger than any can be.
    assert staged.get(REF, out[:4999]) is None
    assert staged.taken_bytes() == 0


def test_a_failure_comes_back_as_it_was(staged: StagedSamples) -> None:
    failure = LedgerEntry("study_1", REF.path, "decode", "DecodeError", "it ends too early")
    staged.put_failure(failure)
    assert staged.has(REF)
    assert staged.get(REF, blank()) == failure
    staged.remove(REF)
    assert staged.get(REF, blank()) is None


@pytest.mark.parametrize("damage", ["cut", "in the volume", "no trailer", "empty", "bit", "other"])
def test_what_is_not_whole_counts_as_nothing_and_goes(staged: StagedSamples, damage: str) -> None:
    staged.put(SAMPLE)
    path = staged.folder / "study_1.sample"
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "in the volume": content[:4000],
            "no trailer": content[:5000],
            "empty": b"",
            "bit": content[:100] + bytes([content[100] ^ 1]) + content[101:],
            "other": content.replace(b"f" * 16, b"e" * 16),
        }[damage]
    )
    assert staged.get(REF, blank()) is None
    assert not path.exists()
