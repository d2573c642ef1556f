"""What the tests of the format share."""

from __future__ import annotations

import pytest
from shard_samples import ODD, WHOLE_PAGES, make_plan

from ctgpu.shards.plan import Plan


@pytest.fixture(params=[ODD, WHOLE_PAGES], ids=["odd", "whole_pages"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Four samples in one shard, with and without a tail after the last whole page."""
    return make_plan(spec=request.param)
