"""The plan of what is read raw is the one that a build would make, or has made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from online_cases import OPTIONS, SPEC

from ctgpu.building.request import Request
from ctgpu.errors import MismatchError, UsageError
from ctgpu.online.settling import folder_of_plan, open_unchanged_source, settle
from ctgpu.shards.plan import Plan


def test_without_a_folder_the_plan_is_that_of_a_build(
    tmp_path: Path, good_source: Path, good_shards: Path
) -> None:
    request = Request(source=good_source, **OPTIONS)
    for folder in (None, tmp_path / "not-there-yet"):
        settled = settle(request, folder)
        assert settled.plan.differences(Plan.load(good_shards)) == []
        assert settled.source is not None
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_folder_that_was_begun_has_its_plan(good_source: Path, good_shards: Path) -> None:
    settled = settle(Request(), good_shards)
    assert (settled.plan, settled.source) == (Plan.load(good_shards), None)
    with pytest.raises(MismatchError, match=r"spec\.layout"):
        settle(Request(spec=replace(SPEC, layout="DHW")), good_shards)


def test_auto_keeps_to_the_arithmetic_of_the_folder(good_shards: Path) -> None:
    assert settle(Request(device="auto"), good_shards).device == "auto"
    with pytest.raises(MismatchError, match="arithmetic"):
        settle(Request(device="reference"), good_shards)


def test_a_plan_is_named_by_itself_or_by_its_folder(good_source: Path, good_shards: Path) -> None:
    assert folder_of_plan(good_shards) == folder_of_plan(good_shards / "plan.json") == good_shards
    with pytest.raises(UsageError, match=r"there is no plan\.json"):
        folder_of_plan(good_source)


def test_only_what_is_needed_of_a_source_must_be_there(own_source: Path) -> None:
    request = Request(source=own_source, **OPTIONS)
    plan = settle(request, None).plan
    (gone,) = own_source.rglob("valid_2_a_1.nii.gz")
    gone.unlink()
    needed = {ref.path for ref in plan.samples if ref.study_id != "valid_2_a_1"}
    open_unchanged_source(plan, request, None, needed).close()
    with pytest.raises(MismatchError, match=r"valid_2_a_1\.nii\.gz"):
        open_unchanged_source(plan, request, None)
