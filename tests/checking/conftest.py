"""Volumes to build from, and what was built."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking_cases import SPACING_MM, SPEC, STUDIES

import ctgpu
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate


@pytest.fixture(scope="session")
def phantoms() -> dict[str, Volume]:
    return {
        study: Volume(chest_phantom((90, 80, 60), SPACING_MM, seed), SPACING_MM)
        for seed, study in enumerate(STUDIES)
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, phantoms: dict[str, Volume]) -> Path:
    root = tmp_path_factory.mktemp("built")
    lay_out_ct_rate(root / "source", phantoms)
    ctgpu.build(root / "out", source=root / "source", spec=SPEC, samples_per_shard=2, device="cpu")
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = {
        f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
        for n in (1, 2)
    }
    lay_out_ct_rate(root, volumes)
    return root
