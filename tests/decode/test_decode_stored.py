"""What is held against a file before anything is allocated for it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import BufferPool
from ctgpu.decode.inflate import MAX_RATIO
from ctgpu.decode.stored import (
    MAX_VOLUME_BYTES,
    StoredVolume,
    check_affine,
    check_plausible,
    check_voxels,
    metadata_facts,
    metadata_rescale,
)
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import Rescale

AFFINE = [[-0.7, 0, 0, 90], [0, 0.8, 0, -80], [0, 0, 1.5, 30], [0, 0, 0, 1]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_voxels_lie_where_it_says(order: Any) -> None:
    pool = BufferPool()
    wanted = np.arange(24, dtype=">i2").reshape((2, 3, 4), order=order)
    buffer = pool.acquire(352 + wanted.nbytes)
    buffer.bytes[352:] = np.frombuffer(wanted.tobytes(order), np.uint8)
    facts = {"spacing_mm": (1.0, 2.0, 3.0), "format": "nifti"}
    stored = StoredVolume((2, 3, 4), np.dtype(">i2"), order, 352, 0, lambda _: None, facts)
    volume = stored.volume(buffer)
    assert np.array_equal(volume.voxels, wanted)
    assert np.shares_memory(volume.voxels, buffer.bytes)
    assert (volume.spacing_mm, volume.format) == ((1.0, 2.0, 3.0), "nifti")
    volume.release()
    assert pool.lent_bytes == 0


@pytest.mark.parametrize("dtype", ["u1", "i1", ">u2", "<i4", "u8", "f2", "f4", ">f8"])
def test_the_size_of_a_volume_is_known_by_its_shape_and_type(dtype: str) -> None:
    kind = np.dtype(dtype)
    assert check_voxels("it", (1, 2, 1 << 20), kind) == (2 << 20) * kind.itemsize


@pytest.mark.parametrize(
    "shape", [(), (5,), (4, 5), (1, 4, 5, 6), (0, 5, 6), (4, -5, 6), (4, 5, (1 << 20) + 1)]
)
def test_what_is_not_three_axes_is_no_volume(shape: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError, match=r"^it has shape .*; wanted three axes of 1 to 1048576"):
        check_voxels("it", shape, np.dtype("i2"))


@pytest.mark.parametrize("dtype", ["?", "c8", "U3", "O", "V4", "M8[s]", "longdouble"])
def test_what_is_no_number_of_64_bits_is_no_voxel(dtype: str) -> None:
    with pytest.raises(DecodeError, match=r"it holds .*; wanted an integer of at most 64 bits"):
        check_voxels("it", (4, 5, 6), np.dtype(dtype))


def test_a_size_is_believed_up_to_what_deflate_can_hold_and_no_volume_has_more() -> None:
    check_plausible("it", MAX_RATIO * 1000, 1000, MAX_VOLUME_BYTES)
    with pytest.raises(DecodeError, match=r"which 1,000 stored bytes cannot hold: fetch the file"):
        check_plausible("it", MAX_RATIO * 1000 + 1, 1000, MAX_VOLUME_BYTES)
    check_plausible("it", 5000, 5000, 5000)
    with pytest.raises(DecodeError, match="it declares 5,001 bytes; at most 5,000 are accepted"):
        check_plausible("it", 5001, 5000, 5000)


@pytest.mark.parametrize(
    "metadata",
    [
        {"XYSpacing": [0.7, 0.8], "ZSpacing": 1.5},
        {"XYSpacing": "[0.7, 0.8]", "ZSpacing": "1.5"},
        {"spacing_mm": [0.7, 0.8, 1.5]},
        {"spacing": "[0.7, 0.8, 1.5]"},
        {"XYSpacing": [0.7, 0.8], "ZSpacing": 1.5, "spacing": [9, 9, 9]},
        {"XYSpacing": [0.7, 0.8], "spacing": [0.7, 0.8, 1.5]},
        {"spacing_mm": None, "spacing": [0.7, 0.8, 1.5]},
        {"affine": AFFINE},
        {"affine": json.dumps(AFFINE), "spacing": [0.7, 0.8, 1.5]},
    ],
    ids=json.dumps,
)
def test_each_spelling_of_a_spacing_is_the_same(metadata: dict[str, Any]) -> None:
    facts = metadata_facts("it", metadata)
    assert facts["spacing_mm"] == pytest.approx((0.7, 0.8, 1.5))
    assert facts["metadata"] is metadata
    assert facts.get("spacing_contradiction") is None


def test_what_says_nothing_of_geometry_leaves_it_open() -> None:
    for metadata in ({}, {"XYSpacing": [1, 1]}, {"affine": None}, {"note": "a scan"}):
        assert set(metadata_facts("it", metadata)) == {"metadata"}


def test_an_affine_that_was_made_of_a_spacing_says_so() -> None:
    made = metadata_facts("it", {"affine": AFFINE, "source": {"affine_source": "spacing"}})
    assert made["affine_source"] == "spacing"
    for source in (None, "spacing", {"affine_source": "header"}):
        assert "affine_source" not in metadata_facts("it", {"affine": AFFINE, "source": source})


def test_a_spacing_that_contradicts_the_affine_is_told() -> None:
    facts = metadata_facts("it", {"affine": AFFINE, "spacing": [2, 0.8, 1.5]})
    assert "it" in facts["spacing_contradiction"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing", [1, 2]),
        ("spacing", "0.7"),
        ("spacing", "[0.7"),
        ("spacing_mm", {"h": 1}),
        ("spacing_mm", [1, 2, 10**400]),
        ("affine", [[1, 0], [0, 1]]),
        ("affine", "[" * 10_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_number_of_that_shape_is_one_sentence(key: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=f"the metadata of it has {key} .*: correct the") as error:
        metadata_facts("it", {key: value})
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "change",
    [(0, 0, math.nan), (1, 3, math.inf), (0, 0, 0), (3, 0, 1), (3, 3, 2)],
)
def test_what_maps_no_volume_is_no_affine(change: tuple[int, int, float]) -> None:
    affine = np.array(AFFINE, float)
    assert check_affine("it", affine) is affine
    row, column, value = change
    affine[row, column] = value
    with pytest.raises(DecodeError, match="the metadata of it has an affine that maps no volume"):
        check_affine("it", affine)


def test_a_rescale_is_told_from_none() -> None:
    assert metadata_rescale("it", {}) == metadata_rescale("it", {"RescaleSlope": None}) == Rescale()
    assert metadata_rescale("it", {"RescaleSlope": 1, "RescaleIntercept": "0"}) == Rescale()
    pair = {"RescaleSlope": "2", "RescaleIntercept": -1024}
    assert metadata_rescale("it", pair) == Rescale(2.0, -1024.0, "metadata")
    assert metadata_rescale("it", {"RescaleIntercept": -1024}) == Rescale(1.0, -1024.0, "metadata")


@pytest.mark.parametrize(
    "pair",
    [
        {"RescaleSlope": 0},
        {"RescaleSlope": math.nan},
        {"RescaleIntercept": math.inf},
        {"RescaleSlope": "one"},
        {"RescaleIntercept": [1, 2]},
    ],
    ids=str,
)
def test_what_scales_nothing_is_refused(pair: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"the metadata of it has .*correct the metadata"):
        metadata_rescale("it", pair)
