"""Boxes of voxels: where they lie, and that no more than their rows is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import volumes

from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.region import random_start, stored_order, to_dhw
from ctgpu.shards.reader import ShardReader
from ctgpu.spec import Layout

#: Written down: a resumed run must cut the same boxes, whatever NumPy it has.
STARTS = [(3, 0, 3), (22, 0, 11), (0, 0, 12)]


@pytest.mark.parametrize("box", [(3, 36, 24), (5, 7, 24), (5, 7, 9), (44, 1, 1), (24, 3, 3)])
def test_a_box_reads_no_more_than_its_rows(
    folder: Path, box: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(folder, verify="first")
    stored = dataset.spec.stored_shape
    box = tuple(min(k, n) for k, n in zip(box, stored, strict=True))  # type: ignore[assignment]
    start = tuple(min(2, n - k) for k, n in zip(box, stored, strict=True))
    whole = np.empty(stored, np.float16)
    dataset.read_into(3, whole)
    expected = whole[tuple(slice(a, a + k) for a, k in zip(start, box, strict=True))]
    read_bytes = []
    read_part = ShardReader.read_part

    def counted(self: ShardReader, entry: Any, extension: str, at: int, out: memoryview) -> None:
        read_bytes.append(len(out) if extension == "bin" else 0)
        read_part(self, entry, extension, at, out)

    monkeypatch.setattr(ShardReader, "read_part", counted)
    out = np.empty(box, np.float16)
    dataset.read_into(3, out, start)  # type: ignore[arg-type]
    assert np.array_equal(out, expected)
    row = stored[2]
    assert sum(read_bytes) == 2 * box[0] * ((box[1] - 1) * row + box[2])
    # Where the volume was not verified yet, all of it is read, and checked.
    read_bytes.clear()
    dataset.read_into(4, out, start)  # type: ignore[arg-type]
    assert sum(read_bytes) == dataset.spec.size_bytes


@pytest.mark.parametrize("verify", ["first", "off"])
def test_random_crops_depend_on_seed_epoch_and_sample_alone(folder: Path, verify: Any) -> None:
    torch = pytest.importorskip("torch")
    expected = volumes(folder)
    dataset = VolumeDataset(folder, verify=verify)

    def crops(**options: Any) -> dict[str, Any]:
        loader = make_loader(dataset, random_crop_hwd=(9, 36, 5), copy=True, **options)
        loader.set_epoch(options.pop("epoch", 0))
        return {b["study_id"][0]: b["volume"][0] for b in loader}

    first = crops(seed=1)
    places = set()
    for study_id, crop in first.items():
        assert crop.shape == (1, 5, 9, 36)
        windows = expected[study_id].unfold(1, 5, 1).unfold(2, 9, 1)  # (1, 20, 36, 36, 5, 9)
        same = (windows.permute(0, 1, 2, 4, 5, 3) == crop[:, None, None]).flatten(3).all(3)
        assert same.any()
        places.add(tuple(torch.nonzero(same)[0].tolist()))
    assert len(places) > 5
    again = crops(seed=1, shuffle=True)
    assert all(torch.equal(again[study_id], crop) for study_id, crop in first.items())
    other = crops(seed=2)
    assert any(not torch.equal(other[study_id], crop) for study_id, crop in first.items())


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_stored_axes_are_seen_as_depth_height_and_width(layout: Layout) -> None:
    shape_hwd = (2, 3, 5)
    stored = stored_order(shape_hwd, layout)
    assert sorted(stored) == sorted(shape_hwd)
    volume = np.arange(2 * 30).reshape(2, *stored)
    seen = to_dhw(volume, layout)
    assert seen.shape == (2, 5, 2, 3)
    assert np.shares_memory(seen, volume)
    h, w, d = 1, 2, 4
    at = (h, w, d) if layout == "HWD" else (d, h, w)
    assert seen[1, d, h, w] == volume[(1, *at)]


def test_where_a_box_begins_is_the_same_in_every_version() -> None:
    def starts(**changed: int) -> list[tuple[int, int, int]]:
        facts = {"seed": 3, "epoch": 1, "index": 5} | changed
        return [random_start((44, 36, 24), (9, 36, 5), **facts, repeat=n) for n in range(3)]

    assert starts() == STARTS
    for other in ({"seed": 4}, {"epoch": 2}, {"index": 6}):
        assert starts(**other) != STARTS


def test_every_box_lies_within_and_each_place_is_found() -> None:
    stored, box = (4, 3, 5), (3, 3, 4)
    found = {random_start(stored, box, seed=0, epoch=0, index=index) for index in range(60)}
    assert found == {(first, 0, third) for first in (0, 1) for third in (0, 1)}
