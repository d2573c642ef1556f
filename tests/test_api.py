"""``ctgpu.preprocess``: one call on one scan."""

from __future__ import annotations

import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import ctgpu
from built import assert_within_contract
from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import DecodeError, DeviceError, GeometryError, IntensityError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from ctgpu.testing.masks import labels_of, write_nifti
from ctgpu.volume.stored import numbers_of
from support.phantoms import SPACING_MM

SMALL = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(72, 64, 40))


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


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_large_result_lies_in_pages_that_may_be_huge(chest: np.ndarray, device: str) -> None:
    spec = Spec(target_spacing_mm=(2.0, 2.0, 4.0), shape_hwd=(160, 160, 80))
    made = ctgpu.preprocess(chest, SPACING_MM, spec, device=device)
    assert made.ctypes.data % (2 << 20) == 0


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
    with pytest.raises(UsageError, match="output is 'jax'; it is numpy or torch or cupy"):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", output="jax")
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


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<i4", ">f8"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_wider_types_of_either_byte_order_give_the_same_bits(
    chest: np.ndarray, device: str, dtype: str
) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device=device)
    made = ctgpu.preprocess(chest.astype(dtype), SPACING_MM, SMALL, device=device)
    assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))


@pytest.mark.slow
def test_files_of_64_bit_integers_give_the_same_bits(tmp_path: Path, chest: np.ndarray) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    affine = np.diag([*SPACING_MM, 1.0])
    for dtype in ("<i8", ">i8"):
        wide = nibabel.Nifti1Image(chest.astype("i8"), affine, dtype="i8")
        header = wide.header.as_byteswapped(dtype[0])
        nibabel.Nifti1Image(chest.astype("i8"), affine, header).to_filename(tmp_path / "a.nii.gz")
        np.savez(tmp_path / "a.npz", chest.astype(dtype), spacing=np.array(SPACING_MM))
        for name in ("a.nii.gz", "a.npz"):
            made = ctgpu.preprocess(tmp_path / name, spec=SMALL, device="cpu")
            assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))


def _spacings() -> dict[str, object]:
    return {
        "array": np.array(SPACING_MM),
        "float32 of nibabel": nibabel.affines.voxel_sizes(np.diag([*SPACING_MM, 1])),
        "zooms": np.array(SPACING_MM, np.float32),
        "list": list(SPACING_MM),
        "tensor": torch.tensor(SPACING_MM),
        "tensor with a gradient": torch.tensor(SPACING_MM, requires_grad=True),
        "list of tensors": [torch.tensor(s) for s in SPACING_MM],
        "decimals": [Decimal(s) for s in SPACING_MM],
    }


@pytest.mark.parametrize("kind", list(_spacings()))
def test_the_spacing_may_be_any_three_numbers(chest: np.ndarray, kind: str) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    made, geometry = ctgpu.preprocess(
        chest, _spacings()[kind], SMALL, device="cpu", return_geometry=True
    )
    assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))
    assert geometry.spacing_mm == SPACING_MM
    assert {type(s) for s in geometry.spacing_mm} == {float}


@pytest.mark.parametrize(
    "spacing",
    [(), (1, 2), "123", b"123", 3.5, {1, 2, 3}, {1: 1, 2: 2, 3: 3}, np.ones((3, 1)), ["a"] * 3],
)
def test_another_spacing_is_one_sentence(chest: np.ndarray, spacing: object) -> None:
    with pytest.raises(UsageError, match=r"spacing_mm is .*; wanted three numbers"):
        ctgpu.preprocess(chest, spacing, SMALL, device="cpu")


def test_tensors_and_lists_are_volumes_too(chest: np.ndarray) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    for volume in (
        torch.from_numpy(chest),
        torch.from_numpy(chest).long().permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.from_numpy(chest).double().requires_grad_(),
        chest.tolist(),
        nibabel.Nifti1Image(chest, np.eye(4)).dataobj,
    ):
        made = ctgpu.preprocess(volume, SPACING_MM, SMALL, device="cpu")
        assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))
    rounded = torch.from_numpy(chest).to(torch.bfloat16)
    made = ctgpu.preprocess(rounded, SPACING_MM, SMALL, device="cpu")
    assert np.abs(made.astype(np.float32) - expected).max() <= 2**-7


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ([[[1, 2], [3]]], "the volume is a list that NumPy cannot look at"),
        ([["a", "b"]], "the list has dtype <U1"),
        (None, "the NoneType has dtype object.*pass the path of a file"),
        (nibabel.Nifti1Image(np.zeros((2, 2, 2), "i2"), np.eye(4)), "the Nifti1Image has dtype"),
        (np.zeros((2, 2, 2), bool), "the array has dtype bool; wanted an integer or floating"),
        (np.zeros((2, 2, 2), np.longdouble), "the array has dtype .*at most 64 bits"),
        (torch.zeros(2, 2, 2).to_sparse(), "the volume is a Tensor that NumPy cannot look at"),
    ],
    ids=str,
)
def test_what_is_no_volume_is_one_sentence(volume: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ctgpu.preprocess(volume, SPACING_MM, SMALL, device="cpu")
    assert str(caught.value).isprintable()


def test_a_path_may_be_bytes(tmp_path: Path, chest: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", chest)
    path = bytes(tmp_path / "a.npz")
    made = ctgpu.preprocess(path, SPACING_MM, SMALL, device="cpu")
    assert made.shape == SMALL.stored_shape


@pytest.mark.parametrize(("name", "kind"), [("a.nii.gz", "a pipe"), ("a.npz", "a folder")])
def test_what_is_no_file_is_neither_waited_for_nor_read(
    tmp_path: Path, name: str, kind: str
) -> None:
    (os.mkfifo if kind == "a pipe" else os.mkdir)(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name} cannot be read: it is {kind}"):
        ctgpu.preprocess(tmp_path / name, SPACING_MM, SMALL, device="cpu")


def test_a_file_that_is_written_while_it_is_read_is_refused(
    tmp_path: Path, chest: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, chest)
    acquire = BufferPool.acquire

    def writing(pool: BufferPool, size_bytes: int) -> Buffer:
        path.write_bytes(bytes(path.stat().st_size))
        return acquire(pool, size_bytes)

    monkeypatch.setattr(BufferPool, "acquire", writing)
    with pytest.raises(UsageError, match="it was written while it was read"):
        ctgpu.preprocess(path, SPACING_MM, SMALL, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None}, "output is None; it is numpy or torch or cupy"),
        ({"intensity": "foo"}, "intensity is 'foo'; it is auto or hu or rescale"),
        ({"intensity": None}, "intensity is None; it is auto"),
        ({"hu_guard": ["warn"]}, r"hu_guard is \['warn'\]; it is refuse or warn"),
        ({"spec": None}, r"spec is None; wanted a ctgpu.Spec, such as ctgpu.PRESETS\['ct-rate'\]"),
        ({"spec": "ct-rate"}, "spec is 'ct-rate'; wanted a ctgpu.Spec"),
        ({"threads": -3}, "threads is -3; it takes a whole number from 1"),
        ({"threads": 0}, "threads is 0; it takes a whole number from 1"),
        ({"threads": 2.5}, "threads is 2.5; it takes a whole number"),
        ({"threads": "2"}, "threads is '2'; it takes a whole number"),
        ({"device": None}, "device is None; wanted auto, cpu, cuda"),
        ({"device": torch.device("cpu")}, r"device is device\(type='cpu'\); wanted auto"),
        ({"axes": None}, "axes is None"),
        ({"out": [1, 2]}, "out is a list; wanted a NumPy array, or a torch tensor on the CPU, of"),
        pytest.param(
            {"out": memoryview(b"12")}, "out is a memoryview; wanted a NumPy array", id="memoryview"
        ),
    ],
    ids=str,
)
def test_another_argument_is_one_sentence_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ctgpu.preprocess(tmp_path / "a.nii.gz", **({"spec": SMALL, "device": "cpu"} | options))


def _unaligned() -> np.ndarray:
    size_bytes = 2 * int(np.prod(SMALL.stored_shape))
    memory = np.zeros(size_bytes + 1, np.uint8)
    return memory[1:].view(np.float16).reshape(SMALL.stored_shape)


def _read_only() -> np.ndarray:
    array = np.empty(SMALL.stored_shape, np.float16)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty(SMALL.stored_shape, np.float16, order="F"), "out is not C-contiguous; wanted"),
        (_read_only(), "out is read-only; wanted a NumPy array"),
        (_unaligned(), "out is not aligned; wanted a NumPy array"),
        (np.empty(SMALL.stored_shape, ">f2"), r"out is >f2 \(72, 64, 40\); wanted"),
        (torch.empty(40, 64, 72, dtype=torch.float16).permute(2, 1, 0), "out is not C-contiguous"),
        (torch.empty(SMALL.stored_shape), r"out is float32 \(72, 64, 40\); wanted"),
        (
            torch.empty(SMALL.stored_shape, dtype=torch.float16, device="meta"),
            "out is a tensor of torch.float16 on meta that NumPy cannot look at",
        ),
        (
            torch.empty(SMALL.stored_shape, dtype=torch.float16).requires_grad_(),
            r"out is a tensor of torch.float16 on cpu that NumPy .*requires grad",
        ),
        (
            torch.empty(SMALL.stored_shape, dtype=torch.bfloat16),
            "out is bfloat16",
        ),
    ],
    ids=["F order", "read-only", "unaligned", ">f2", "permuted", "float32", "meta", "grad", "bf16"],
)
def test_an_output_that_cannot_be_written_as_it_is_is_one_sentence(
    chest: np.ndarray, out: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", out=out)
    assert "float16 and shape (72, 64, 40)" in str(caught.value)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_the_output_may_be_a_tensor(chest: np.ndarray, output: Any) -> None:
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    out = torch.full(SMALL.stored_shape, 7, dtype=torch.float16)
    made = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", out=out, output=output)
    assert np.array_equal(out.numpy().view(np.uint16), expected.view(np.uint16))
    assert np.shares_memory(np.asarray(made), out.numpy())
    assert isinstance(made, torch.Tensor if output == "torch" else np.ndarray)


def test_a_volume_is_not_written_over_while_it_is_read() -> None:
    volume = np.ascontiguousarray(chest_phantom((72, 64, 40), SPACING_MM, 1), np.float16)
    before = volume.copy()
    with pytest.raises(UsageError, match="out lies in the memory of the volume"):
        ctgpu.preprocess(volume, SPACING_MM, SMALL, device="cpu", out=volume)
    assert np.array_equal(volume, before)


def test_without_torch_its_output_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match=r"output='torch' needs torch: install it with `pip"):
        ctgpu.preprocess(tmp_path / "missing.nii.gz", spec=SMALL, device="cpu", output="torch")


def test_a_mask_comes_beside_the_volume(chest: np.ndarray, tmp_path: Path) -> None:
    labels = labels_of(chest)
    path = write_nifti(tmp_path / "labels.nii.gz", labels, np.diag([*SPACING_MM, 1.0]))
    expected = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu")
    for mask in (path, labels, labels.astype(">f4"), torch.from_numpy(labels)):
        volume, made, geometry = ctgpu.preprocess(
            chest, SPACING_MM, SMALL, device="cpu", mask=mask, return_geometry=True
        )
        assert np.array_equal(volume, expected)
        assert (made.dtype, made.shape) == (np.uint8, SMALL.stored_shape)
        assert {0, 1, 2} <= set(np.unique(made))
        # Far from any border a label is the density that it was made of.
        assert (numbers_of(volume, "float16")[made == 2] < -0.2).mean() > 0.99
        back = geometry.to_scan(made, order="nearest")
        assert (back == labels).mean() > 0.85  # the scan reaches beyond the output
    wide = labels.astype(np.int32) * 300
    _, tensor = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", mask=wide, output="torch")
    assert tensor.dtype == torch.int32
    assert np.array_equal(tensor.numpy(), made.astype(np.int32) * 300)
    _, numbers = ctgpu.preprocess(chest, SPACING_MM, SMALL, device="cpu", mask=wide)
    assert numbers.dtype == np.uint16


def test_a_crop_to_the_mask_is_about_its_labels(chest: np.ndarray) -> None:
    labels = np.zeros(chest.shape, np.uint8)
    labels[10:50, 20:40, 5:30] = 3
    spec = Spec(target_spacing_mm=SPACING_MM, shape_hwd=(40, 20, 25), crop="mask")
    volume, mask = ctgpu.preprocess(chest, SPACING_MM, spec, "cpu", mask=labels)
    inside = np.ascontiguousarray(chest[10:50, 20:40, 5:30])
    plain = Spec(target_spacing_mm=SPACING_MM, shape_hwd=(40, 20, 25))
    assert np.array_equal(volume, ctgpu.preprocess(inside, SPACING_MM, plain, "cpu"))
    assert (mask == 3).all()
    with pytest.raises(UsageError, match="crop is 'mask', and there is none; pass mask"):
        ctgpu.preprocess(chest, SPACING_MM, spec, "cpu")
    with pytest.raises(GeometryError, match="no voxel of the mask has a label"):
        ctgpu.preprocess(chest, SPACING_MM, spec, "cpu", mask=np.zeros_like(labels))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m[1:], GeometryError, "mask has 71 × 80 × 60 voxels, and its volume 72 × 80"),
        (lambda m: m - 1.0, DecodeError, "mask has a voxel of -1; wanted whole numbers from 0"),
        (lambda m: m + 0.25, DecodeError, r"mask has a voxel of 0\.25; wanted whole numbers"),
        (lambda m: m * 70000.0, DecodeError, "mask has a voxel of .*; wanted whole numbers"),
    ],
)
def test_a_mask_that_is_none_is_one_sentence(
    chest: np.ndarray, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ctgpu.preprocess(chest, SPACING_MM, SMALL, "cpu", mask=change(labels_of(chest)))
