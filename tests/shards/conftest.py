"""What the tests of the format share."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_samples import ODD, WHOLE_PAGES, make_plan, write_shard

from ctgpu.shards.plan import Plan


@pytest.fixture(params=[ODD, WHOLE_PAGES], ids=["odd", "whole_pages"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Four samples in one shard, with and without a tail after the last whole page."""
    return make_plan(spec=request.param)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Nine samples in three shards; one failed."""
    plan = make_plan(9)
    Plan.create(tmp_path, plan)
    for index in range(plan.shards):
        write_shard(tmp_path, plan, index, failing=("scan_5",))
    return tmp_path
