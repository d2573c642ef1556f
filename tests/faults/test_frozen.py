"""Real processes that stand still, and come back when another host has finished their work."""

from __future__ import annotations

from pathlib import Path

import pytest
from frozen import freeze_and_take_over, may_rename_host


@pytest.mark.slow
@pytest.mark.skipif(not may_rename_host(), reason="no process may have a host name of its own")
def test_a_builder_that_comes_back_late_changes_nothing(tmp_path: Path) -> None:
    result = freeze_and_take_over(tmp_path, trials=8, seed=5)
    assert result.trials == 8
    assert result.took_over >= 4
    assert len(result.moments) > 1
    assert result.odd_exits == []
    assert result.damaged == []
    assert result.changed == []
