"""Versions of the format: what takes a later one, and what is said of newer ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shard_samples import MASKS, NEW_SPEC, make_plan, write_shard

from ctgpu.errors import NewerFormatError
from ctgpu.shards.card import Card
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.versions import Kind, format_name, of_newer, parse_version, version_of
from ctgpu.spec import Spec

ASSUMING = {"order": "path", "assume_orientation": "LPS"}
DICOM = {"kind": "dicom", "location": "dicom", "revision": "1"}


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, 1),
        ({"selection": {"order": "path", "assume_orientation": None}}, 1),
        ({"spec": Spec(layout="DHW", pad_value=0.5, clip="after")}, 1),
        ({"spec": NEW_SPEC}, 2),
        ({"spec": Spec(hu_window=None, normalise="minmax")}, 2),
        ({"selection": ASSUMING}, 2),
        ({"source": DICOM}, 4),
        ({"source": DICOM, "spec": NEW_SPEC}, 4),
        ({"data_set": {"name": "mine"}}, 3),
        ({"data_set": {"name": "mine", "masks": {"files": "{name}.nii.gz"}}}, 4),
        ({"masks": MASKS}, 4),
        ({"compression": "pack"}, 5),
        ({"compression": "rice", "source": DICOM, "masks": MASKS, "spec": NEW_SPEC}, 5),
        ({"masks": MASKS, "spec": NEW_SPEC, "data_set": {"name": "mine"}}, 4),
    ],
)
def test_only_what_is_new_takes_a_later_version(
    tmp_path: Path, changes: dict[str, Any], version: int
) -> None:
    plan = replace(make_plan(), **changes)
    Plan.create(tmp_path, plan)
    stated = json.loads((tmp_path / PLAN_NAME).read_bytes())
    assert (plan.version, stated["format"]) == (version, f"ctgpu-plan-{version}")
    assert Plan.load(tmp_path) == plan


def test_the_second_version_is_stated_by_plan_record_and_manifest(tmp_path: Path) -> None:
    plan = make_plan(spec=NEW_SPEC)
    Plan.create(tmp_path, plan)
    record = write_shard(tmp_path, plan)
    manifest = write_manifest(tmp_path)
    assert record.version == 2
    assert ShardRecord.load(tmp_path / "shard-000000.json") == record
    assert (tmp_path / "shard-000000.json").read_bytes().startswith(b'{"format":"ctgpu-shard-2",')
    assert manifest["manifest_format"] == "ctgpu-manifest-2"
    assert (manifest["sample_dtype"], manifest["format"]) == ("int16", "webdataset")
    assert manifest["spec"]["orientation"] == "LPS"
    assert Card.load(tmp_path).spec == NEW_SPEC


def test_masks_take_a_version_of_plan_record_and_manifest(tmp_path: Path) -> None:
    plan = make_plan(masks=MASKS)
    Plan.create(tmp_path, plan)
    assert write_shard(tmp_path, plan).version == 3
    assert ShardRecord.load(tmp_path / "shard-000000.json").version == 3
    manifest = write_manifest(tmp_path)
    assert manifest["manifest_format"] == "ctgpu-manifest-3"
    assert manifest["masks"] == {"dtype": "uint16", "labels": {"lung": 1, "nodule": 300}}
    assert plan.fingerprint == make_plan().fingerprint
    assert plan.differences(make_plan()) == [
        "masks.dtype: found 'uint16', wanted None",
        "masks.labels.lung: found 1, wanted None",
        "masks.labels.nodule: found 300, wanted None",
    ]
    # Masks that were left out are in the description alone, so that any ctgpu loads the shards.
    left_out = replace(make_plan(), data_set={"name": "mine", "masks": {"files": "{name}.nii"}})
    assert left_out.shard_version == 1
    by_manifest = Card.load(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert by_manifest.masks == Card.load(tmp_path).masks == MASKS


def test_compression_takes_a_version_of_plan_record_and_manifest(tmp_path: Path) -> None:
    plan = make_plan(masks=MASKS, compression="pack")
    Plan.create(tmp_path, plan)
    assert write_shard(tmp_path, plan).version == 4
    assert (tmp_path / "shard-000000.json").read_bytes().startswith(b'{"format":"ctgpu-shard-4",')
    manifest = write_manifest(tmp_path)
    assert manifest["manifest_format"] == "ctgpu-manifest-4"
    assert (manifest["compression"], manifest["fingerprint"]) == ("pack", make_plan().fingerprint)
    by_manifest = Card.load(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert by_manifest.compression == Card.load(tmp_path).compression == "pack"
    # How it is compressed makes no other data set of it.
    assert by_manifest == replace(by_manifest, compression=None)


def test_the_first_version_is_what_it_always_was(tmp_path: Path) -> None:
    plan = make_plan()
    Plan.create(tmp_path, plan)
    assert write_shard(tmp_path, plan).version == 1
    manifest = write_manifest(tmp_path)
    assert "manifest_format" not in manifest
    assert manifest["sample_dtype"] == "float16"


def test_two_plans_differ_in_what_they_say_not_in_their_version() -> None:
    plan = replace(make_plan(), selection={})
    assuming = replace(plan, selection={"assume_orientation": "LPS"})
    assert plan.differences(assuming) == ["selection.assume_orientation: found None, wanted 'LPS'"]


@pytest.mark.parametrize(
    ("kind", "newest"), [("plan", 5), ("shard", 4), ("manifest", 4)], ids=lambda value: str(value)
)
def test_what_is_newer_than_any_that_is_known_is_told_from_what_is_none(
    kind: Kind, newest: int
) -> None:
    for version in range(1, newest + 1):
        assert parse_version(format_name(kind, version), kind) == version
        content = json.dumps({"format": format_name(kind, version), "else": [1]}).encode()
        assert version_of(content, kind) == version
    for version in (newest + 1, 999_999_999):
        with pytest.raises(
            NewerFormatError, match=f"{kind}-{version}, and ctgpu-{kind}-{newest} is"
        ):
            parse_version(format_name(kind, version), kind)
    other = "plan" if kind == "shard" else "shard"
    for stated in ("", f"ctgpu-{kind}-0", f"ctgpu-{kind}-01", f"ctgpu-{kind}", f"ctgpu-{other}-1"):
        with pytest.raises(ValueError, match=f"its format is not ctgpu-{kind}-1"):
            parse_version(stated, kind)
    for content in (b"", b"[]", b"{}", b'{"format": 1}'):
        with pytest.raises(ValueError, match=r"\w"):
            version_of(content, kind)


def test_a_newer_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    error = of_newer(tmp_path / "plan.json", NewerFormatError("its format is ctgpu-plan-9"))
    assert str(error) == (
        f"{tmp_path / 'plan.json'} was written by a newer ctgpu; update ctgpu to go on with it "
        "(its format is ctgpu-plan-9)"
    )
