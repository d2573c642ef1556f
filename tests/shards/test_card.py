"""What is read of a manifest, of any writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from shard_samples import MASKS, make_plan, write_shard

from ctgpu.errors import StorageError, UsageError
from ctgpu.shards.card import Card, Claims
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.spec import CT_RATE


def state(folder: Path, card: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(card))
    return folder


def claims_of(folder: Path, **stated: object) -> Claims:
    return Claims.if_readable(state(folder, stated))


def test_a_data_set_says_the_same_with_its_manifest_and_without(tmp_path: Path) -> None:
    plan = make_plan(6, samples_per_shard=2)
    Plan.create(tmp_path, plan)
    during = Card.load(tmp_path)
    write_shard(tmp_path, plan, 0)
    write_manifest(tmp_path)
    card = Card.load(tmp_path)
    assert card == during
    for of_one in (card, during):
        assert (of_one.planned_shards, of_one.planned_samples) == (3, 6)
    claims = Claims.load(tmp_path)
    assert claims is not None
    assert (claims.spec, claims.split) == (plan.spec, plan.split)
    assert claims.class_names == card.class_names == plan.class_names
    assert claims.selection == plan.selection
    assert claims.preprocessed
    assert claims.sample_shape == plan.spec.stored_shape


def test_a_card_that_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no plan\.json"):
        Card.load(tmp_path)
    with pytest.raises(UsageError, match=r"not the manifest of a ctgpu.*`ctgpu manifest "):
        Card.load(state(tmp_path, {"class_names": ["a"]}))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StorageError, match=r"manifest\.json cannot be read.*`ctgpu manifest "):
        Card.load(tmp_path)


def test_a_manifest_names_the_classes(tmp_path: Path) -> None:
    assert claims_of(tmp_path, class_names=["a", "b"]).class_names == ("a", "b")
    assert claims_of(tmp_path, class_names=[]).class_names == ()


@pytest.mark.parametrize(
    "card", [{}, [], None, "x", {"class_names": "ab"}, {"class_names": [1]}, {"num_classes": 3}]
)
def test_what_names_no_classes_is_no_manifest_of_them(tmp_path: Path, card: object) -> None:
    assert Claims.if_readable(state(tmp_path, card)).class_names is None


def test_a_manifest_that_cannot_be_read_names_none(tmp_path: Path) -> None:
    assert Claims.if_readable(tmp_path).class_names is None
    (tmp_path / "manifest.json").write_text("{")
    assert Claims.if_readable(tmp_path).class_names is None
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    assert Claims.if_readable(tmp_path).class_names is None


def test_a_missing_manifest_claims_nothing_and_a_damaged_one_is_refused_where_it_counts(
    tmp_path: Path,
) -> None:
    assert Claims.load(tmp_path) is None
    for content, why in (("{", ""), ("[]", "it is no JSON object"), ('{"a": NaN}', "NaN is no")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UsageError, match=rf"manifest\.json is damaged: {why}"):
            Claims.load(tmp_path)
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UsageError, match=r"manifest\.json cannot be read: it is a pipe"):
        Claims.load(tmp_path)


@pytest.mark.parametrize(
    ("stated", "split"),
    [("train", "train"), ("valid", "valid"), ("validation", "valid"), ("test", None), (1, None)],
)
def test_splits_have_the_names_that_writers_give_them(
    tmp_path: Path, stated: object, split: str | None
) -> None:
    assert claims_of(tmp_path, split=stated).split == split
    assert claims_of(tmp_path).split is None


def test_one_claim_that_makes_no_sense_spoils_no_other(tmp_path: Path) -> None:
    claims = claims_of(
        tmp_path, spec={"voxels": 3}, selection=[], preprocessed="yes", class_names=["a"]
    )
    with pytest.raises(UsageError, match="unknown fields"):
        _ = claims.spec
    assert (claims.selection, claims.preprocessed, claims.class_names) == ({}, False, ("a",))


def test_a_manifest_says_how_masks_are_stored(tmp_path: Path) -> None:
    assert claims_of(tmp_path, masks=MASKS.to_dict()).masks == MASKS
    for stated in (None, True, {}, {"dtype": "float32"}):
        assert claims_of(tmp_path, masks=stated).masks is None
    plan = make_plan(masks=MASKS)
    (tmp_path / "manifest.json").unlink()
    Plan.create(tmp_path, plan)
    stated = write_manifest(tmp_path)
    stated["masks"]["dtype"] = "float32"
    with pytest.raises(UsageError, match=r"not the manifest of a ctgpu.*float32.*`ctgpu manifest "):
        Card.load(state(tmp_path, stated))


def test_the_shape_is_three_whole_numbers_or_not_stated(tmp_path: Path) -> None:
    assert claims_of(tmp_path, sample_shape=[72, 72, 36]).sample_shape == (72, 72, 36)
    assert claims_of(tmp_path, sample_shape=None).sample_shape is None
    assert claims_of(tmp_path, spec=CT_RATE.to_dict()).sample_shape is None
    for stated in ([72, 72], 72, [72, 72, "x"]):
        with pytest.raises(UsageError, match=r"manifest\.json has the sample_shape"):
            _ = claims_of(tmp_path, sample_shape=stated).sample_shape
