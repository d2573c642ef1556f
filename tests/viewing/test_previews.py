"""A few samples as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view_cases import CLASSES, HOSTILE, SPEC, build, damage, held, members, stated

from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord
from ctgpu.spec import Spec
from ctgpu.viewing.cuts import MOST_SLICES
from ctgpu.viewing.inventory import HeldShard, Inventory
from ctgpu.viewing.previews import (
    BINS,
    LEAST_SLICES,
    PLAIN_WINDOW,
    Preview,
    fit,
    preview_of,
    take_previews,
    window_of,
)
from support.compressed_folders import compress_folder
from support.masks import LABELS, with_masks

pytest.importorskip("PIL.Image")


def first(folder: Path) -> Preview:
    return preview_of(Inventory.of(folder).card, *held(folder))


def size_of(preview: Preview) -> int:
    return sum(len(picture) for plane in preview.planes for picture in plane.pictures)


def test_what_is_known_of_a_sample(made: Path) -> None:
    preview = first(made)
    assert (preview.key, preview.fault) == ("s0", "")
    assert preview.labels == dict(zip(CLASSES, (1.0, 0.0), strict=True))
    assert preview.report == HOSTILE
    assert preview.mask is None
    assert [len(plane.places) for plane in preview.planes] == [6, 9, 20]


def without_padding(folder: Path) -> Any:
    """What is stored of the first sample, which is padded along H."""
    said = stated(folder)["s0"]
    stored = np.frombuffer(members(folder)["s0"]["bin"], "<f2").reshape(SPEC.shape_hwd)
    assert said["pad_before"] == [3, 0, 0]
    return stored[3 : 3 + said["resized_shape"][0]].astype(np.float64)


def test_hu_are_counted_without_padding(made: Path) -> None:
    counts = first(made).hu_counts
    hu = without_padding(made) * 1000
    wanted, _ = np.histogram(hu, np.linspace(-1000, 1000, BINS + 1))
    assert counts is not None
    assert counts.sum() == hu.size < np.prod(SPEC.shape_hwd)
    # float32 may take what lies at an edge to the next bin.
    assert np.abs(counts - wanted).sum() <= hu.size // 100


@pytest.mark.parametrize("dtype", ["int16", "uint8", "bfloat16"])
def test_every_type_and_layout_shows_the_same(
    tmp_path: Path, source: Path, made: Path, dtype: Any
) -> None:
    wanted = first(made)
    spec = replace(SPEC, dtype=dtype, layout="DHW")
    other = first(build(tmp_path / "out", source, spec=spec, limit=1))
    assert other.fault == ""
    assert [plane.size for plane in other.planes] == [plane.size for plane in wanted.planes]
    sizes = [sum(map(len, plane.pictures)) for plane in wanted.planes]
    near = [sum(map(len, plane.pictures)) for plane in other.planes]
    assert near == pytest.approx(sizes, rel=0.05)
    assert other.hu_counts is not None
    assert wanted.hu_counts is not None
    # Cumulated, as rounding moves single voxels to the next bin.
    apart = np.abs(np.cumsum(other.hu_counts) - np.cumsum(wanted.hu_counts)).max()
    assert apart <= wanted.hu_counts.sum() * 0.05


def test_layouts_are_shown_pixel_by_pixel_alike(tmp_path: Path, source: Path, made: Path) -> None:
    other = build(tmp_path / "out", source, spec=replace(SPEC, layout="DHW"), limit=1)
    assert first(other).planes == first(made).planes


def test_a_volume_normalised_by_itself_is_shown_in_hu(tmp_path: Path, source: Path) -> None:
    spec = replace(SPEC, normalise="zscore", hu_window=(-900, 900))
    folder = build(tmp_path / "out", source, spec=spec, limit=1)
    scale = stated(folder)["s0"]["normalisation"]
    preview = first(folder)
    hu = (without_padding(folder) - scale["offset"]) / scale["scale"]
    assert preview.hu_counts is not None
    lowest, highest = np.flatnonzero(preview.hu_counts)[[0, -1]]
    edges = np.linspace(-900, 900, BINS + 1)
    assert edges[lowest] - 30 <= hu.min() <= edges[lowest + 1] + 30
    assert edges[highest] - 30 <= hu.max() <= edges[highest + 1] + 30


def test_the_window_is_the_contract_s() -> None:
    assert window_of(Spec(hu_window=(-160, 240))) == (-160, 240)
    assert window_of(Spec(hu_window=None, dtype="int16")) == PLAIN_WINDOW


@pytest.mark.parametrize("coding", ["pack", "rice"])
def test_compressed_samples_are_shown_alike(tmp_path: Path, made: Path, coding: Any) -> None:
    masked = with_masks(made, tmp_path / "masked", "uint16")
    compressed = compress_folder(masked, tmp_path / "compressed", coding)
    assert repr(first(compressed)) == repr(first(masked))
    assert any(first(compressed).planes[0].outlines)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_voxels_of_a_mask_are_counted(tmp_path: Path, made: Path, dtype: Any) -> None:
    folder = with_masks(made, tmp_path / "masked", dtype)
    stored = np.frombuffer(members(folder)["s0"]["seg"], dtype)
    numbers, counts = np.unique(stored[stored > 0], return_counts=True)
    assert first(folder).mask == dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    assert set(numbers.tolist()) == set(LABELS[dtype].values())


@pytest.mark.parametrize("extension", ["bin", "json", "cls", "txt"])
def test_damage_is_said_in_the_place_of_the_sample(folder: Path, extension: str) -> None:
    damage(folder, "s0", extension)
    preview = first(folder)
    if extension == "txt":
        assert preview.fault == ""  # the JSON has the report too
        return
    assert f"s0.{extension} does not have its checksum" in preview.fault
    assert preview.planes == ()
    assert (preview.metadata is None) == (extension == "json")
    previews = take_previews(Inventory.of(folder), 5, 1 << 20, size_of)
    assert [bool(one.fault) for one in previews] == [True, False, False, False, False]


def test_damage_of_a_compressed_volume_is_said(tmp_path: Path, made: Path) -> None:
    folder = compress_folder(made, tmp_path / "compressed", "rice")
    damage(folder, "s0", "ctz")
    assert "s0.ctz cannot be decoded" in first(folder).fault


def test_a_volume_of_another_size_is_said(folder: Path) -> None:
    plan = Plan.load(folder)
    card = replace(Inventory.of(folder).card, spec=replace(plan.spec, shape_hwd=(20, 9, 7)))
    fault = preview_of(card, *held(folder)).fault
    assert "s0.bin has 2,160 bytes, and its data set's spec asks for 2,520" in fault


def test_a_tar_that_is_gone_is_said(folder: Path) -> None:
    record = ShardRecord.load(folder / "shard-000000.json")
    shard = HeldShard(folder / "shard-000009.tar", record)
    preview = preview_of(Inventory.of(folder).card, shard, record.samples[0])
    assert "shard-000009.tar cannot be opened" in preview.fault


def test_samples_are_evenly_spaced_and_as_many_as_there_is_room_for(made: Path) -> None:
    inventory = Inventory.of(made)
    assert [one.key for one in take_previews(inventory, 2, 1 << 20, size_of)] == ["s1", "s3"]
    assert len(take_previews(inventory, 9, 1 << 20, size_of)) == 5
    assert take_previews(inventory, 0, 1 << 20, size_of) == []
    least = size_of(preview_of(inventory.card, *inventory.entries[0]).thinned(LEAST_SLICES))
    few = take_previews(inventory, 5, round(2.5 * least), size_of)
    assert [one.key for one in few] == ["s1", "s3"]
    assert sum(map(size_of, few)) <= 2.5 * least


def test_room_is_measured_by_a_sample_that_can_be_shown(folder: Path) -> None:
    inventory = Inventory.of(folder)
    least = size_of(preview_of(inventory.card, *inventory.entries[1]).thinned(LEAST_SLICES))
    damage(folder, "s0", "bin")
    few = take_previews(inventory, 5, round(2.5 * least), size_of)
    assert [one.key for one in few] == ["s1", "s3"]
    for path in folder.glob("*.tar"):
        path.write_bytes(b"")
    none = take_previews(inventory, 5, round(2.5 * least), size_of)
    assert [bool(one.fault) for one in none] == [True] * 5


def test_the_most_slices_that_fit_are_kept(made: Path) -> None:
    whole = first(made)
    for most in (0, 1, 5, 13, MOST_SLICES):
        budget = size_of(whole.thinned(most))
        fitted = fit(whole, budget, size_of)
        assert size_of(fitted) <= budget
        assert fitted.planes == whole.thinned(most).planes
    assert [len(plane.places) for plane in fit(whole, 0, size_of).planes] == [0, 0, 0]
