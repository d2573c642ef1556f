"""``ctgpu.preprocess_batch``: one call on several scans."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import ctgpu
from ctgpu.engines import Engine, open_engine
from ctgpu.errors import DecodeError, IntensityError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom

SPEC = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(40, 36, 28))
SIZES_MM = ((1.5, 1.25, 3.0), (2.0, 2.0, 2.5), (3.0, 1.0, 5.0))
SHAPES = ((72, 80, 50), (64, 50, 60), (40, 96, 33))


@pytest.fixture(scope="module")
def chests() -> list[np.ndarray]:
    return [
        chest_phantom(shape, size, n)
        for n, (shape, size) in enumerate(zip(SHAPES, SIZES_MM, strict=True))
    ]


@pytest.fixture(scope="module")
def files(chests: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scans")
    paths = []
    for n, (chest, size) in enumerate(zip(chests, SIZES_MM, strict=True)):
        paths.append(folder / f"scan {n}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(chest, np.diag([*size, 1.0])), paths[-1])
    return paths


def bits(volume: Any) -> np.ndarray:
    array = np.asarray(volume)
    return array.view(f"u{array.itemsize}")


def one_by_one(scans: Any, spec: Spec = SPEC, **options: Any) -> np.ndarray:
    return np.stack([ctgpu.preprocess(scan, spec=spec, device="cpu", **options) for scan in scans])


@pytest.mark.parametrize("threads", [1, 2, 7, None])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
def test_each_is_what_one_call_makes_of_it(
    files: list[Path], dtype: Any, threads: int | None
) -> None:
    spec = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(40, 36, 28), dtype=dtype)
    made = ctgpu.preprocess_batch(files, spec=spec, device="cpu", threads=threads)
    assert np.array_equal(bits(made.volume), bits(one_by_one(files, spec)))
    assert made.indices == (0, 1, 2)
    assert made.failures == {}
    for path, geometry in zip(files, made.geometries, strict=True):
        wanted = ctgpu.preprocess(path, spec=spec, device="cpu", return_geometry=True)[1]
        assert repr(geometry) == repr(wanted)


def test_arrays_with_one_voxel_size_or_one_each(chests: list[np.ndarray]) -> None:
    each = ctgpu.preprocess_batch(chests, spec=SPEC, spacing_mm=SIZES_MM, device="cpu")
    for n, (chest, size) in enumerate(zip(chests, SIZES_MM, strict=True)):
        alone = ctgpu.preprocess(chest, size, SPEC, "cpu")
        assert np.array_equal(bits(each.volume[n]), bits(alone))
    same = ctgpu.preprocess_batch(chests, spec=SPEC, spacing_mm=SIZES_MM[1], device="cpu")
    for n, chest in enumerate(chests):
        alone = ctgpu.preprocess(chest, SIZES_MM[1], SPEC, "cpu")
        assert np.array_equal(bits(same.volume[n]), bits(alone))


def test_files_and_arrays_together(files: list[Path], chests: list[np.ndarray]) -> None:
    scans = [files[0], torch.from_numpy(chests[1]), str(files[2])]
    sizes = np.array(SIZES_MM)
    made = ctgpu.preprocess_batch(
        scans, spec=SPEC, spacing_mm=[None, sizes[1], None], device="cpu", output="torch"
    )
    assert isinstance(made.volume, torch.Tensor)
    assert np.array_equal(bits(made.volume), bits(one_by_one(files)))


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_into_memory_of_the_caller(files: list[Path], device: str) -> None:
    out = torch.full((3, *SPEC.stored_shape), 7, dtype=torch.float16)
    made = ctgpu.preprocess_batch(files, spec=SPEC, device=device, output="torch", out=out)
    assert made.volume.data_ptr() == out.data_ptr()
    alone = np.stack([ctgpu.preprocess(path, spec=SPEC, device=device) for path in files])
    assert np.array_equal(bits(out), bits(alone))


@pytest.fixture
def with_bad_ones(files: list[Path], chests: list[np.ndarray], tmp_path: Path) -> list[Any]:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(files[0].read_bytes()[:-4000])
    labels = np.zeros((20, 30, 40), np.uint8)
    return [cut, files[0], tmp_path / "not there.nii.gz", labels, files[2], chests[0]]


def test_bad_ones_do_not_lose_the_others(files: list[Path], with_bad_ones: list[Any]) -> None:
    out = np.full((6, *SPEC.stored_shape), 7, np.float16)
    sizes = [None, None, None, SIZES_MM[0], None, None]
    made = ctgpu.preprocess_batch(
        with_bad_ones, spec=SPEC, spacing_mm=sizes, device="cpu", on_error="skip", out=out
    )
    assert made.indices == (1, 4)
    assert np.array_equal(bits(made.volume), bits(one_by_one([files[0], files[2]])))
    assert np.shares_memory(made.volume, out)
    assert len(made.geometries) == 2
    kinds = {index: type(error) for index, error in made.failures.items()}
    assert kinds == {0: DecodeError, 2: UsageError, 3: IntensityError, 5: UsageError}
    assert "cut.nii.gz" in str(made.failures[0])
    assert "states no spacing" in str(made.failures[5])


def test_the_first_bad_one_is_named(with_bad_ones: list[Any]) -> None:
    with pytest.raises(DecodeError, match=r"^volumes\[0\]: cut\.nii\.gz "):
        ctgpu.preprocess_batch(with_bad_ones, spec=SPEC, device="cpu")
    with pytest.raises(UsageError, match=r"^volumes\[1\]: .*not there\.nii\.gz cannot be read"):
        ctgpu.preprocess_batch(with_bad_ones[1:3], spec=SPEC, device="cpu")
    with pytest.raises(UsageError, match=r"^volumes\[0\]: .*; none of the volumes can be made$"):
        ctgpu.preprocess_batch(with_bad_ones[2:3], spec=SPEC, device="cpu", on_error="skip")


def test_what_is_taken_with_a_warning_is_in_the_log(
    chests: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.clip(chests[0] // 8 + 128, 0, 255).astype(np.uint8)
    with caplog.at_level(logging.WARNING, logger="ctgpu"):
        made = ctgpu.preprocess_batch(
            [grey], spec=SPEC, spacing_mm=SIZES_MM[0], device="cpu", hu_guard="warn"
        )
    assert made.indices == (0,)
    assert "taken as HU" in caplog.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"volumes": []}, r"volumes is \[\]; wanted a sequence of paths or arrays, one at least"),
        ({"volumes": "scan.nii.gz"}, "volumes is 'scan.nii.gz'; wanted a sequence of paths"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it is raise or skip"),
        ({"output": "cupy"}, "output='cupy' needs a CUDA device and the engine is cpu"),
        ({"spacing_mm": [None, None]}, "spacing_mm has 2 voxel sizes for 1 volume; wanted one "),
        ({"spacing_mm": [[1, 2]]}, r"spacing_mm is \[1, 2\]; wanted three numbers"),
        ({"spacing_mm": (1, 2)}, r"spacing_mm is \(1, 2\); wanted three numbers"),
        ({"spacing_mm": 2.0}, "spacing_mm is 2.0; wanted three numbers"),
        ({"out": np.empty(SPEC.stored_shape, np.float16)}, r"out is float16 \(40, 36, 28\); want"),
        ({"threads": 0}, "threads is 0"),
        ({"spec": None}, "spec is None"),
    ],
)
def test_what_it_does_not_take(options: dict[str, Any], sentence: str) -> None:
    given = {"volumes": [np.zeros((9, 9, 9), np.int16)], "spec": SPEC, "device": "cpu"} | options
    with pytest.raises(UsageError, match=sentence):
        ctgpu.preprocess_batch(**given)


def test_memory_of_a_volume_is_no_output() -> None:
    memory = np.zeros(SPEC.size_bytes * 2, np.uint8)
    out = memory.view(np.float16).reshape(2, *SPEC.stored_shape)
    voxels = chest_phantom((20, 24, 18), SIZES_MM[0], 1)
    inside = memory[: voxels.nbytes].view(np.int16).reshape(voxels.shape)
    with pytest.raises(UsageError, match=r"volumes\[1\]: out lies in the memory of the volume"):
        ctgpu.preprocess_batch(
            [voxels, inside], spec=SPEC, spacing_mm=(3, 3, 6), device="cpu", out=out
        )


def test_an_engine_of_the_caller_stays_open_and_no_thread_is_left(files: list[Path]) -> None:
    before = threading.active_count()
    engine: Engine = open_engine("cpu")
    for _ in range(2):
        made = ctgpu.preprocess_batch(files, spec=SPEC, device=engine)
        assert np.array_equal(bits(made.volume), bits(one_by_one(files)))
    engine.close()
    assert threading.active_count() == before
