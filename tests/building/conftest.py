"""The source of many builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import chests

#: Three patients of two reconstructions, in the order of a plan.
STUDIES = [f"valid_{n}_a_{recon}" for n in (1, 2, 10) for recon in (1, 2)]


@pytest.fixture(scope="session")
def phantoms() -> dict[str, Volume]:
    """A chest for each of six studies, three patients of two reconstructions."""
    return chests(STUDIES, (100, 96, 64))


@pytest.fixture
def source(tmp_path: Path, phantoms: dict[str, Volume]) -> Path:
    """They as CT-RATE lays them out; a test may change it."""
    lay_out_ct_rate(tmp_path / "source", phantoms)
    return tmp_path / "source"
