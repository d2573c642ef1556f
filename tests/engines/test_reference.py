"""The oracle itself, against the contract's formula and against plain numpy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from engine_cases import GEOMETRIES, check_ramp, make_job, random_voxels, run

from ctgpu.engines.reference import ReferenceEngine
from ctgpu.errors import DeviceError
from ctgpu.spec import Spec
from ctgpu.volume.raw import Rescale


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_axis_lands_where_the_contract_says(name: str, layout: Any) -> None:
    check_ramp(ReferenceEngine(), name, layout, "C")


def test_rescales_clips_and_scales_in_that_order() -> None:
    voxels = random_voxels(1, (6, 5, 4), "int16")
    job = make_job(voxels, (0.75, 0.75, 1.5), Spec(shape_hwd=(6, 5, 4), hu_window=(-200.0, 300.0)))
    job.rescale = Rescale(0.5, -100.0, "csv")
    hu = np.clip(voxels.astype(np.float32) * 0.5 - 100, -200, 300)
    assert np.array_equal(run(ReferenceEngine(), job), ((hu - 50) / 250).astype(np.float16))


def test_has_an_arithmetic_of_its_own() -> None:
    engine = ReferenceEngine()
    assert engine.arithmetic != "ctgpu"
    assert engine.describe()["name"] == engine.name == "reference"


def test_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match="torch"):
        ReferenceEngine()


def test_voxels_that_may_not_be_written_to_are_taken_without_a_warning() -> None:
    voxels = random_voxels(1, (6, 5, 4), "float32")
    job = make_job(voxels, (1.0, 1.0, 1.5), Spec(shape_hwd=(6, 5, 4)))
    wanted = run(ReferenceEngine(), job)
    voxels.flags.writeable = False
    assert np.array_equal(run(ReferenceEngine(), job), wanted)


def test_an_axis_of_one_voxel_may_be_flipped() -> None:
    voxels = random_voxels(1, (6, 5, 1), "float32")
    spec = Spec(shape_hwd=(6, 5, 1))
    wanted = run(ReferenceEngine(), make_job(voxels, (1.0, 1.0, 1.5), spec))
    flipped = make_job(voxels[:, :, ::-1], (1.0, 1.0, 1.5), spec)
    assert np.array_equal(run(ReferenceEngine(), flipped), wanted)
