"""Volumes that something else has preprocessed are stored as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_cases import poisoned

from ctgpu.engines import Engine, Job
from ctgpu.engines.adopting import AdoptingEngine
from ctgpu.spec import Dtype, Layout, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.stored import numpy_dtype

SHAPE_HWD = (4, 5, 6)


def adopted(dtype: Dtype, layout: Layout, voxels: Any) -> Any:
    spec = Spec(shape_hwd=SHAPE_HWD, dtype=dtype, layout=layout)
    # Whatever the plan asks for: nothing is computed.
    plan = plan_volume(SHAPE_HWD, (3.0, 2.0, 1.0), spec)
    job = Job(voxels, Rescale(7.0, -3.0, "csv"), plan, poisoned(spec))
    AdoptingEngine().run([job])
    return job.out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint8"])
def test_every_voxel_stays_what_it_is(dtype: Dtype) -> None:
    codes = np.random.default_rng(1).integers(0, 1 << 8, 2 * 120, np.uint8)
    held = numpy_dtype(dtype)
    voxels = codes[: 120 * held.itemsize].view(held).reshape(SHAPE_HWD)
    assert adopted(dtype, "HWD", voxels).tobytes() == voxels.tobytes()
    dhw = adopted(dtype, "DHW", voxels)
    assert dhw.shape == (6, 4, 5)
    assert dhw.tobytes() == voxels.transpose(2, 0, 1).tobytes()


def test_strided_voxels_are_taken() -> None:
    voxels = np.arange(240, dtype=np.int16).reshape(4, 5, 12)[:, ::-1, ::2]
    assert np.array_equal(adopted("int16", "HWD", voxels), voxels)


def test_it_shares_no_folder_with_engines_that_compute() -> None:
    engine = AdoptingEngine()
    assert engine.arithmetic == engine.name == engine.describe()["name"] == "adopted"
    assert engine.arithmetic != Engine.arithmetic
    assert (engine.takes_hu, engine.concurrency, engine.batch_size) == (False, 1, 1)
