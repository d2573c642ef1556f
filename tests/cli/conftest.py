"""A small source, and what was built of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ctgpu
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import SPEC, chests, study_ids


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chests."""
    root = tmp_path_factory.mktemp("source")
    lay_out_ct_rate(root, chests(study_ids(3)))
    return root


@pytest.fixture(scope="session")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of them, to be read only."""
    folder = tmp_path_factory.mktemp("built") / "out"
    ctgpu.build(folder, source=source, spec=SPEC, samples_per_shard=2, device="cpu")
    return folder
