"""A small source and its shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from online_cases import CUT, NOT_HU, OPTIONS, STUDIES

import ctgpu
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import SPACING_MM, chests


@pytest.fixture(scope="session")
def good_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight chests; not to be changed."""
    root = tmp_path_factory.mktemp("good") / "source"
    lay_out_ct_rate(root, chests(STUDIES, (90, 80, 60)))
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of which ``CUT`` and ``NOT_HU`` fail; not to be changed."""
    root = tmp_path_factory.mktemp("bad") / "source"
    volumes = chests(STUDIES, (90, 80, 60))
    volumes[NOT_HU] = Volume(np.zeros((90, 80, 60), np.float32), SPACING_MM)
    lay_out_ct_rate(root, volumes)
    (file,) = root.rglob(f"{CUT}.nii.gz")
    file.write_bytes(file.read_bytes()[:5000])
    return root


@pytest.fixture(scope="session")
def good_shards(good_source: Path) -> Path:
    """The shards of ``good_source``; not to be changed."""
    folder = good_source.parent / "shards"
    assert ctgpu.build(folder, source=good_source, **OPTIONS).exit_code == 0
    return folder


@pytest.fixture(scope="session")
def shards(source: Path) -> Path:
    """The shards of ``source``; not to be changed."""
    folder = source.parent / "shards"
    report = ctgpu.build(folder, source=source, **OPTIONS)
    assert [entry["key"] for entry in report.failures] == [CUT, NOT_HU]
    return folder


@pytest.fixture
def own_source(tmp_path: Path, good_source: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(good_source, tmp_path / "source")
