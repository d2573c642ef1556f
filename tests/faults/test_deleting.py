"""Killed conversions that delete their inputs, some of which are replaced meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from deleting import convert_and_delete


@pytest.mark.slow
def test_no_input_is_deleted_that_no_output_holds(tmp_path: Path) -> None:
    result = convert_and_delete(tmp_path, conversions=12, seed=3)
    assert result.conversions == 12
    assert result.kills >= 12
    assert result.replaced >= 4
    assert result.deleted >= 20
    assert result.kept >= 1
    assert result.lost == []
    assert result.kept_for_nothing == []
