"""What RawDataset is held against makes the same volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ctgpu
from benchmarks.peers.raw_loaders import OPENERS
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import SPACING_MM, chest

pytestmark = pytest.mark.slow

#: Largest mean distance in HU: MONAI's grid is shifted by a part of a voxel.
MOST_APART_HU = {"old way, DataLoader workers": 1.0, "MONAI, ThreadDataLoader": 40.0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume: Volume = chest((72, 80, 60), 1)
    paths = lay_out_ct_rate(tmp_path_factory.mktemp("scan"), {"valid_1_a_1": volume})
    return paths["valid_1_a_1"]


@pytest.fixture(scope="module")
def ours(file: Path) -> NDArray[np.float32]:
    made: NDArray[np.float32] = ctgpu.preprocess(file, device="cpu").astype(np.float32)
    return made


@pytest.mark.parametrize("name", MOST_APART_HU)
def test_a_contender_makes_ct_rates_contract(
    name: str, file: Path, ours: NDArray[np.float32]
) -> None:
    pytest.importorskip("monai")
    loader = OPENERS[name]([file, file], SPACING_MM, 1)
    for _ in range(2):  # an epoch, and another
        batches = list(loader)
        assert len(batches) == 2
    volume = batches[0]["image"] if isinstance(batches[0], dict) else batches[0]
    assert tuple(volume.shape) == (1, 1, 480, 480, 240)
    assert str(volume.dtype) == "torch.float16"
    apart_hu = 1000 * np.abs(np.asarray(volume, np.float32)[0, 0] - ours).mean()
    assert apart_hu < MOST_APART_HU[name]
    assert 1000 * np.abs(np.asarray(volume, np.float32)[0, 0, ::-1] - ours).mean() > 1.0
