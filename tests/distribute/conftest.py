"""A small source, and what one undisturbed process makes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FAULTS = Path(__file__).resolve().parent.parent / "faults"
sys.path.insert(0, str(FAULTS))

from driving import SAMPLES_PER_SHARD  # noqa: E402
from scenarios import SPEC, make_source, snapshot  # noqa: E402

import ctgpu  # noqa: E402

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
