"""Volumes that something else has preprocessed are stored as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_cases import poisoned

from ctgpu.engines import Engine, Job
from ctgpu.engines.adopting import AdoptingEngine
from ctgpu.spec import Dtype, Layout, Precision, Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from ctgpu.volume.stored import numpy_dtype

SHAPE_HWD = (4, 5, 6)


def adopted(dtype: Dtype, layout: Layout, voxels: Any, precision: Precision = "exact") -> Any:
    spec = Spec(shape_hwd=SHAPE_HWD, dtype=dtype, layout=layout, precision=precision)
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


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize(("precision", "units"), [("2^-10", 1024), ("2^-11", 2048)])
def test_a_precision_rounds_them_once_and_for_all(
    precision: Precision, units: int, layout: Layout
) -> None:
    voxels = np.random.default_rng(2).uniform(-1, 1, SHAPE_HWD).astype(np.float16)
    # Ties of either sign, what rounds to nothing, and beyond all steps.
    ties = np.array([1, 3, -1, -3, 5, -5]) / (2 * units)
    voxels[0, 0], voxels[0, 1] = ties, [-0.0, -1e-5, 65504, -3.002, 2.5, 1]
    wanted = (np.rint(voxels.astype(np.float32) * units) / units + 0.0).astype(np.float16)
    assert (wanted[0, 0] * units).tolist() == [0, 2, 0, -2, 2, -2]
    found = adopted("float16", layout, voxels, precision)
    in_hwd = found if layout == "HWD" else found.transpose(1, 2, 0)
    assert np.array_equal(in_hwd.view(np.uint16), wanted.view(np.uint16))
    assert adopted("float16", layout, in_hwd, precision).tobytes() == found.tobytes()


def test_strided_voxels_are_taken() -> None:
    voxels = np.arange(240, dtype=np.int16).reshape(4, 5, 12)[:, ::-1, ::2]
    assert np.array_equal(adopted("int16", "HWD", voxels), voxels)


def test_it_shares_no_folder_with_engines_that_compute() -> None:
    engine = AdoptingEngine()
    assert engine.arithmetic == engine.name == engine.describe()["name"] == "adopted"
    assert engine.arithmetic != Engine.arithmetic
    assert (engine.takes_hu, engine.concurrency, engine.batch_size) == (False, 1, 1)
