"""What JSON and labels say, against what anybody counts who reads the tars."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view_cases import CLASSES, SCANS, damage, members, stated

from ctgpu.shards.record import ShardRecord
from ctgpu.viewing import census
from ctgpu.viewing.census import take_census
from ctgpu.viewing.inventory import Inventory


def test_it_is_what_the_tars_hold(made: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = take_census(Inventory.of(made), looked_at=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    said = list(stated(made).values())
    assert (found.read, found.of, found.damaged) == (5, 5, {})
    assert found.spacing_mm.tolist() == [one["source"]["spacing_mm"] for one in said]
    assert found.shape.tolist() == [one["source"]["shape"] for one in said]
    assert found.resized.tolist() == [one["resized_shape"] for one in said]
    assert found.tilt_degrees.tolist() == [0.0] * 5
    assert found.words["orientation"] == Counter(codes for _, _, codes, *_ in SCANS.values())
    assert found.words["dtype"] == {"int16": 5}
    assert found.words["intensity"] == {"hu": 5}
    assert found.words["finding"] == {}
    assert found.columns == {
        "maker": Counter(maker for *_, maker, _, _ in SCANS.values()),
        "<b>kvp</b>": {"120": 5},
    }


def test_labels_are_counted_as_negative_positive_and_not_known(made: Path) -> None:
    found = take_census(Inventory.of(made)).labels
    values = np.stack([np.frombuffer(one["cls"], "<f4") for one in members(made).values()])
    for place in range(len(CLASSES)):
        column = values[:, place]
        wanted = [(column == 0).sum(), (column == 1).sum(), np.isnan(column).sum()]
        assert found[place].tolist() == wanted
    assert found.tolist() == [[1, 3, 1], [1, 2, 2]]


def test_few_bytes_of_a_sample_are_read_and_none_of_its_volume(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = Inventory.of(made)
    read: list[tuple[int, int]] = []
    really = os.preadv

    def noted(fd: int, buffers: Any, offset: int) -> int:
        count = really(fd, buffers, offset)
        read.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", noted)
    take_census(inventory)
    entries = [entry for _, entry in inventory.entries]
    wanted = [
        (entry.members[name].offset, entry.members[name].size_bytes)
        for entry in entries
        for name in ("cls", "json")
        if name == "json" or entry.labelled
    ]
    assert sorted(read) == sorted(wanted)
    assert len(read) == 5 + 4


def test_of_many_samples_evenly_spaced_ones_are_read(made: Path) -> None:
    found = take_census(Inventory.of(made), most=2)
    said = list(stated(made).values())
    assert (found.read, found.of) == (2, 5)
    assert found.shape.tolist() == [said[place]["source"]["shape"] for place in (0, 3)]


def test_a_damaged_sample_is_left_out_and_named(folder: Path) -> None:
    damage(folder, "s1", "json")
    damage(folder, "s2", "cls")
    found = take_census(Inventory.of(folder))
    assert (found.read, found.of, list(found.damaged)) == (3, 5, ["s1", "s2"])
    assert "s1.json does not have its checksum" in found.damaged["s1"]
    assert "s2.cls does not have its checksum" in found.damaged["s2"]
    assert found.labels.sum(1).tolist() == [3, 3]


def test_a_tar_that_goes_away_meanwhile_is_damage(folder: Path) -> None:
    inventory = Inventory.of(folder)
    (folder / "shard-000001.tar").unlink()
    found = take_census(inventory)
    assert (found.read, list(found.damaged)) == (3, ["s2", "s3"])
    assert "shard-000001.tar cannot be opened" in found.damaged["s2"]


def test_a_column_of_too_many_values_is_no_distribution(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "MOST_VALUES", 1)
    found = take_census(Inventory.of(made)).columns
    assert found == {"maker": {}, "<b>kvp</b>": {"120": 5}}


def test_no_sample_at_all(folder: Path) -> None:
    for path in folder.glob("shard-*"):
        path.unlink()
    found = take_census(Inventory.of(folder))
    assert (found.read, found.of, found.shape.shape) == (0, 0, (0, 3))
    assert found.labels.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_labels_of_another_number_are_damage(folder: Path) -> None:
    inventory = Inventory.of(folder)
    fewer = ShardRecord.load(folder / "shard-000000.json")
    assert fewer.samples[0].members["cls"].size_bytes == 4 * len(CLASSES)
    card = inventory.card
    object.__setattr__(card, "class_names", (*card.class_names, "third"))
    found = take_census(inventory)
    assert list(found.damaged) == ["s0", "s1", "s2", "s4"]  # all that have labels
    assert "s0.cls has 8 bytes; wanted 3 little-endian float32 values" in found.damaged["s0"]
