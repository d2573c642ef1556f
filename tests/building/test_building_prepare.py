"""What a file and the tables say of one volume, brought together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from built import read_samples
from ctgpu.buffers import BufferPool
from ctgpu.building.prepare import prepare_sample
from ctgpu.errors import GeometryError, IntensityError, TableError
from ctgpu.sources.tables import SampleRow
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.raw import RawVolume
from ctgpu.volume.ref import SampleRef
from support.building import builds
from support.phantoms import COARSE_SPEC, SPEC, chest

build = builds(spec=SPEC, samples_per_shard=4)


def test_v1_voxels_are_rescaled_and_fixed_ones_are_not(
    tmp_path: Path, phantoms: dict[str, Volume]
) -> None:
    lay_out_ct_rate(tmp_path / "v1", phantoms, fixed=False)
    lay_out_ct_rate(tmp_path / "v2", phantoms)
    build(tmp_path / "v1-out", tmp_path / "v1")
    build(tmp_path / "v2-out", tmp_path / "v2")
    v1, v2 = read_samples(tmp_path / "v1-out"), read_samples(tmp_path / "v2-out")
    for key, sample in v1.items():
        assert sample.volume == v2[key].volume
        assert sample.metadata["source"]["intensity"] == {
            "source": "csv",
            "slope": 1.0,
            "intercept": -1024.0,
        }
        assert v2[key].metadata["source"]["intensity"]["source"] == "hu"


@pytest.mark.parametrize(
    ("fixed", "intensity", "flag"), [(True, "rescale", "--intensity hu"), (False, "hu", "rescale")]
)
def test_a_wrong_intensity_source_is_refused_with_the_flag_that_mends_it(
    tmp_path: Path, phantoms: dict[str, Volume], fixed: bool, intensity: Any, flag: str
) -> None:
    one = {"valid_1_a_1": phantoms["valid_1_a_1"]}
    lay_out_ct_rate(tmp_path / "source", one, fixed=fixed)
    spec = Spec(**(SPEC.to_dict() | {"intensity": intensity}))
    report = build(tmp_path / "out", tmp_path / "source", spec=spec)
    assert report.exit_code == 1
    (failure,) = report.failures
    assert failure["stage"] == "intensity"
    assert flag in failure["message"]


# One volume, without a build.

ROW = SampleRow(np.zeros(0, np.float32))


def volume_of(
    pool: BufferPool, shape_hwd: tuple[int, int, int] = (24, 22, 16), **facts: Any
) -> RawVolume:
    """A chest in a buffer of the pool."""
    voxels = chest(shape_hwd).voxels
    buffer = pool.acquire(voxels.nbytes)
    held = buffer.array(voxels.shape, "<i2")
    held[:] = voxels
    return RawVolume(held, buffer=buffer, **facts)


def prepare(raw: RawVolume, row: SampleRow = ROW, **options: Any) -> PreparedVolume:
    ref = SampleRef.of_file("a.npz", 5)
    rules: dict[str, Any] = {"spec": COARSE_SPEC, "rules": AxisRules(), "hu_guard": "refuse"}
    return prepare_sample(raw, row, options.pop("ref", ref), **(rules | options))


@pytest.mark.parametrize(
    ("stated", "of_file", "chosen"),
    [
        ({"spacing_mm": (3.0, 3.0, 4.0)}, (3.5, 3.0, 5.0), ((3.0, 3.0, 4.0), "csv")),
        ({}, (3.5, 3.0, 5.0), ((3.5, 3.0, 5.0), "header")),
        ({"default_spacing_mm": (1.0, 1.0, 2.0)}, None, ((1.0, 1.0, 2.0), "description")),
    ],
)
def test_a_spacing_is_the_rows_or_the_files_or_the_descriptions(
    stated: dict[str, Any], of_file: Any, chosen: tuple[Any, str]
) -> None:
    pool = BufferPool()
    made = prepare(volume_of(pool, spacing_mm=of_file), replace(ROW, **stated))
    assert (made.plan.spacing_mm, made.spacing_source) == chosen
    made.raw.release()
    assert pool.lent_bytes == 0


def test_what_is_refused_gives_its_buffer_back() -> None:
    pool = BufferPool()
    with pytest.raises(TableError, match="no spacing is stated"):
        prepare(volume_of(pool))
    with pytest.raises(GeometryError):
        prepare(volume_of(pool, spacing_mm=(0.0, 1.0, 1.0)))
    shifted = volume_of(pool, (96, 96, 64), spacing_mm=(3.5, 3.0, 5.0))
    shifted.voxels -= 1024
    with pytest.raises(IntensityError, match="rescaled twice"):
        prepare(shifted)
    assert pool.lent_bytes == 0


def test_slope_and_intercept_of_a_row_count_where_the_path_says_so() -> None:
    pool = BufferPool()
    row = replace(ROW, rescale_pair=(1.0, -1024.0), spacing_mm=(3.5, 3.0, 5.0))
    stored = volume_of(pool)
    stored.voxels += 1024
    ref = SampleRef.of_file("a.npz", 5, None, "v1")
    made = prepare(stored, row, ref=ref)
    assert (made.rescale.slope, made.rescale.intercept, made.rescale.source) == (1, -1024, "csv")
    made.raw.release()
    fixed = SampleRef.of_file("a.npz", 5, None, "fixed")
    made = prepare(volume_of(pool), row, ref=fixed)
    assert made.rescale.is_identity
    made.raw.release()
    assert pool.lent_bytes == 0
