"""A data set to be exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from exporting_cases import build


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is read only."""
    return build(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(made, tmp_path / "shards")
