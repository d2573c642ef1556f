"""What the tests of the format share."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_samples import MASKS, ODD, WHOLE_PAGES, make_plan, write_shard

from ctgpu.shards.plan import Plan


@pytest.fixture(
    params=[(ODD, None), (WHOLE_PAGES, None), (ODD, MASKS)], ids=["odd", "whole_pages", "masks"]
)
def plan(request: pytest.FixtureRequest) -> Plan:
    """Four samples in one shard, with and without a tail after the last whole page, or masks."""
    spec, masks = request.param
    return make_plan(spec=spec, masks=masks)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Nine samples in three shards; one failed."""
    plan = make_plan(9)
    Plan.create(tmp_path, plan)
    for index in range(plan.shards):
        write_shard(tmp_path, plan, index, failing=("scan_5",))
    return tmp_path
