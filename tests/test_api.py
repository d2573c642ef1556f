"""``ctgpu.preprocess``: one call on one scan."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ctgpu
from built import assert_within_contract
from ctgpu.errors import DecodeError, DeviceError, GeometryError, IntensityError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

SMALL = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(72, 64, 40))
SPACING_MM = (3.5, 3.0, 5.0)


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return chest_phantom((72, 80, 60), SPACING_MM, 1)


def test_an_array_and_its_files_give_the_same_bits(tmp_path: Path, chest: np.ndarray) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    assert expected.shape == (72, 64, 40)
    assert expected.dtype == np.float16
    for layout in ({"format": ".nii.gz"}, {"format": ".nii"}):
        root = tmp_path / layout["format"]
        paths = lay_out_ct_rate(root, {"valid_1_a_1": Volume(chest, SPACING_MM)}, **layout)
        made = ctgpu.preprocess(paths["valid_1_a_1"], spec=SMALL, device="cpu")
        assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("intensity", ["auto", "hu"])
def test_it_agrees_with_the_reference(chest: np.ndarray, intensity: str) -> None:
    made = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", intensity=intensity)
    reference = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="reference")
    assert_within_contract(made, reference)


def test_threads_and_a_given_output_do_not_change_the_bits(chest: np.ndarray) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", threads=1)
    out = np.empty(SMALL.stored_shape, np.float16)
    made = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", threads=3, out=out)
    assert made is out
    assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))


def test_a_mark_is_found_again_through_the_geometry() -> None:
    source = np.full((60, 50, 40), -1000, np.int16)
    mark = (33, 21, 17)
    source[tuple(slice(m - 1, m + 2) for m in mark)] = 1000
    spec = Spec(target_spacing_mm=(1.5, 2.5, 4.0), shape_hwd=(72, 80, 40))
    made, geometry = ctgpu.preprocess(
        source, (2.0, 3.0, 5.0), spec, device="cpu", intensity="hu", return_geometry=True
    )
    assert geometry.source_shape == (60, 50, 40)
    where = np.argwhere(made.astype(np.float32) > 0.2).mean(axis=0)
    world_mm = geometry.affine @ [*where, 1]
    expected_mm = np.diag([2.0, 3.0, 5.0, 1.0]) @ [*mark, 1]
    assert np.allclose(world_mm, expected_mm, atol=1.0)


def test_torch_output_shares_the_memory(chest: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    made = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", output="torch")
    assert made.dtype == torch.float16
    assert tuple(made.shape) == SMALL.stored_shape


def test_bad_requests_are_one_sentence(tmp_path: Path, chest: np.ndarray) -> None:
    with pytest.raises(UsageError, match="states no spacing"):
        ctgpu.preprocess(chest, spec=SMALL, device="cpu")
    with pytest.raises(UsageError, match="complex64"):
        ctgpu.preprocess(chest.astype(np.complex64), SPACING_MM, SMALL, device="cpu")
    with pytest.raises(UsageError, match=r"out is float32 \(3,\)"):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", out=np.empty(3, np.float32))
    with pytest.raises(UsageError, match="needs a CUDA device"):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", output="cupy")
    with pytest.raises(GeometryError, match="the spacing is"):
        ctgpu.preprocess(chest, (1.0, float("nan"), 1.0), SMALL, device="cpu")
    with pytest.raises(GeometryError, match="three axes"):
        ctgpu.preprocess(chest[0], SPACING_MM, SMALL, device="cpu")
    with pytest.raises(IntensityError, match="states none"):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", intensity="rescale")
    with pytest.raises(UsageError, match=r"missing\.nii\.gz cannot be read"):
        ctgpu.preprocess(tmp_path / "missing.nii.gz", spec=SMALL, device="cpu")
    (tmp_path / "rubbish.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(DecodeError, match=r"rubbish\.nii\.gz"):
        ctgpu.preprocess(tmp_path / "rubbish.nii.gz", spec=SMALL, device="cpu")


def test_voxels_that_are_not_finite_are_refused(chest: np.ndarray) -> None:
    broken = chest.astype(np.float32)
    broken[3, 4, 5] = np.nan
    with pytest.raises(IntensityError, match="not finite"):
        ctgpu.preprocess(broken, SPACING_MM, SMALL, device="cpu")


def test_an_engine_that_cannot_run_is_never_replaced_in_silence(
    monkeypatch: pytest.MonkeyPatch, chest: np.ndarray
) -> None:
    monkeypatch.delattr(ctgpu, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "ctgpu._native", None)
    with pytest.raises(DeviceError, match="C\\+\\+"):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
