"""Volumes to build from, and what was built."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking_cases import SPEC, STUDIES

import ctgpu
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import chests, study_ids


@pytest.fixture(scope="session")
def phantoms() -> dict[str, Volume]:
    return chests(STUDIES)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, phantoms: dict[str, Volume]) -> Path:
    root = tmp_path_factory.mktemp("built")
    lay_out_ct_rate(root / "source", phantoms)
    ctgpu.build(root / "out", source=root / "source", spec=SPEC, samples_per_shard=2, device="cpu")
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    lay_out_ct_rate(root, chests(study_ids(2), first_seed=1))
    return root
