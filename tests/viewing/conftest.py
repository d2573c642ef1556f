"""A data set to be viewed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from view_cases import build, lay_out


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """It is read only."""
    return build(tmp_path_factory.mktemp("made") / "out", source)


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(made, tmp_path / "out")
