"""Real processes that stand still, and come back when another host has finished their work."""

from __future__ import annotations

from pathlib import Path

import pytest
from frozen import freeze_and_take_over, may_rename_host


@pytest.mark.slow
@pytest.mark.skipif(not may_rename_host(), reason="no process may have a host name of its own")
@pytest.mark.parametrize(("recoded", "trials"), [(False, 8), (True, 3)])
def test_a_builder_that_comes_back_late_changes_nothing(
    tmp_path: Path, recoded: bool, trials: int
) -> None:
    result = freeze_and_take_over(tmp_path, trials=trials, seed=5, recoded=recoded)
    assert result.trials == trials
    assert result.took_over >= trials // 2
    assert len(result.moments) > 1
    assert result.odd_exits == []
    assert result.damaged == []
    assert result.changed == []
