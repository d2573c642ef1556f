"""A few samples of many tars."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from checking_cases import STUDIES

from ctgpu.checking.picking import pick
from ctgpu.errors import UsageError
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.tar_samples import samples_of_tar


def test_a_few_samples_are_spread_over_the_tars(built: Path) -> None:
    tars = expand_pattern(built / "out")
    assert [sample.key for sample in pick(tars, None)] == STUDIES
    assert len({sample.tar for sample in pick(tars, 2)}) == 2
    assert len(list(pick(tars, 1))) == 1


def write_tars(folder: Path, counts: list[int]) -> list[Path]:
    """Tars that hold so many samples each, named after tar and place."""
    tars = []
    for index, count in enumerate(counts):
        tars.append(folder / f"shard-{index:06d}.tar")
        with tarfile.open(tars[-1], "w") as archive:
            for place in range(count):
                archive.addfile(tarfile.TarInfo(f"t{index}_{place}.bin"))
    return tars


@pytest.mark.parametrize(
    ("counts", "wanted", "taken"),
    [
        ([2, 1], 3, [2, 1]),
        ([2, 1], 2, [1, 1]),
        ([2, 1], 8, [2, 1]),
        ([1, 9, 1], 8, [1, 6, 1]),
        ([9, 1, 9, 2], 11, [4, 1, 4, 2]),
        ([0, 5, 0, 0], 3, [0, 3, 0, 0]),
        ([4, 4, 4], 8, [2, 3, 3]),
        ([0, 0, 7], 1, [0, 0, 1]),
        ([3], 2, [2]),
    ],
)
def test_as_many_samples_are_picked_as_there_are(
    tmp_path: Path, counts: list[int], wanted: int, taken: list[int]
) -> None:
    tars = write_tars(tmp_path, counts)
    picked = [(tars.index(sample.tar), sample.key) for sample in pick(tars, wanted)]
    assert len(set(picked)) == len(picked) == min(wanted, sum(counts))
    assert [sum(tar == index for tar, _ in picked) for index in range(len(tars))] == taken
    everything = [(tars.index(sample.tar), sample.key) for sample in pick(tars, None)]
    assert picked == [sample for sample in everything if sample in picked]


def test_no_more_tars_are_scanned_than_samples_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[Path] = []

    def counted(tar: Path) -> Any:
        scanned.append(tar)
        return samples_of_tar(tar)

    monkeypatch.setattr("ctgpu.checking.picking.samples_of_tar", counted)
    tars = write_tars(tmp_path, [5] * 40)
    assert len(list(pick(tars, 4))) == len(scanned) == len(set(scanned)) == 4
    scanned.clear()
    with tarfile.open(tars[5], "w"):
        pass  # the first of the four is empty now
    assert len(list(pick(tars, 4))) == 4
    assert len(scanned) == len(set(scanned)) == 5


@pytest.mark.parametrize("wanted", [None, 1, 8])
def test_tars_without_a_sample_are_no_comparison(tmp_path: Path, wanted: int | None) -> None:
    with pytest.raises(UsageError, match=r"shard-000000\.tar, nor in 2 other tars .*to compare"):
        list(pick(write_tars(tmp_path, [0, 0, 0]), wanted))
