"""A small source, and what one undisturbed process makes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FAULTS = Path(__file__).resolve().parent.parent / "faults"
sys.path.insert(0, str(FAULTS))

from driving import SAMPLES_PER_SHARD  # noqa: E402
from scenarios import make_source, snapshot  # noqa: E402

import ctgpu  # noqa: E402
from ctgpu.spec import Spec  # noqa: E402

SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(90, 90, 50))
SAMPLES = 32


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_source(root, SAMPLES)
    return root


@pytest.fixture(scope="session")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    ctgpu.build(folder, source=source, spec=SPEC, samples_per_shard=SAMPLES_PER_SHARD, device="cpu")
    return snapshot(folder)
