"""The source of many builds."""

from __future__ import annotations

import shutil
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


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory, phantoms: dict[str, Volume]) -> Path:
    """They as CT-RATE lays them out."""
    root = tmp_path_factory.mktemp("laid_out")
    lay_out_ct_rate(root, phantoms)
    return root


@pytest.fixture
def source(tmp_path: Path, laid_out: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(laid_out, tmp_path / "source"))
