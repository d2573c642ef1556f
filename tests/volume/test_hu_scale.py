"""What is not HU, told from HU: on real volumes and their crops, and on what else people store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from ctgpu.errors import IntensityError
from ctgpu.testing.ctrate import chest_phantom
from ctgpu.volume.hu_scale import Fault
from ctgpu.volume.intensity import check_hu, find_fault
from ctgpu.volume.raw import Rescale

Voxels = npt.NDArray[Any]
HU = Rescale()
WINDOWS_HU = [
    (-1000, 1000),
    (-160, 240),
    (-1000, 200),
    (-1150, 350),
    (-1024, 600),
    (-1000, 400),
    (-125, 225),
    (-110, 110),
    (-1350, 150),
]


def likeness(voxels: Voxels, rescale: Rescale = HU) -> str | None:
    fault = find_fault(voxels, rescale)
    return fault and fault.likeness


def scaled(hu: Voxels, low: float, high: float, top: float) -> Voxels:
    """A window of HU as 0 to `top`."""
    share: Voxels = (np.clip(hu, low, high).astype(np.float32) - low) / (high - low)
    return share * np.float32(top)


def standardised(hu: Voxels) -> Voxels:
    f = hu.astype(np.float32)
    return (f - f.mean()) / f.std()


#: What people make of HU, and what the message must call it.
OTHERS: dict[str, tuple[Callable[[Voxels], Voxels], str]] = {
    "CT-CLIP's [-1, 1]": (lambda v: np.clip(v, -1000, 1000) / np.float32(1000), "[-1, 1]"),
    "float16 [-1, 1]": (lambda v: (np.clip(v, -1000, 1000) / 1e3).astype(np.float16), "[-1, 1]"),
    "[0, 1]": (lambda v: scaled(v, -1000, 1000, 1), "[0, 1]"),
    "window [0, 1]": (lambda v: scaled(v, -160, 240, 1), "[0, 1]"),
    "HU / 1000": (lambda v: v / np.float32(1000), "normalised to [-1, 1]|z-score"),
    "8 bit": (lambda v: scaled(v, -1000, 1000, 255).astype(np.uint8), "8-bit"),
    "8 bit as int16": (lambda v: scaled(v, -1000, 1000, 255).astype(np.int16), "8-bit"),
    "8 bit as float": (lambda v: scaled(v, -1000, 1000, 255), "8-bit"),
    "8 bit, mediastinum": (lambda v: scaled(v, -160, 240, 255).astype(np.uint8), "8-bit"),
    "8 bit, lung": (lambda v: scaled(v, -1350, 150, 255).astype(np.uint8), "8-bit"),
    "signed 8 bit": (lambda v: (scaled(v, -1000, 1000, 255) - 128).astype(np.int16), "8-bit"),
    "percent": (lambda v: scaled(v, -1000, 1000, 100), "percent"),
    "whole percent": (lambda v: scaled(v, -1000, 1000, 100).astype(np.int16), "percent"),
    "signed percent": (lambda v: scaled(v, -1000, 1000, 200) - 100, "percent"),
    "HU / 10": (lambda v: np.clip(v, -1024, None) / np.float32(10), "percent|8-bit"),
    "z-score": (standardised, "z-score"),
    "z-score in a window": (lambda v: standardised(np.clip(v, -1000, 1000)), "z-score"),
    "1/cm": (lambda v: 0.2 * (1 + np.maximum(v, -1000) / 1e3), "linear attenuation"),
    "1/mm": (lambda v: 0.02 * (1 + np.maximum(v, -1000) / 1e3), "linear attenuation"),
    "mask": (lambda v: (v > -300).astype(np.uint8), "labels"),
    "mask of 255": (lambda v: (v > -300) * np.int16(255), "labels"),
    "float mask": (lambda v: (v > -300).astype(np.float32), "labels"),
    "labels from -1": (lambda v: np.digitize(v, [-500, 100]).astype(np.int16) - 1, "labels"),
    "zeros": (np.zeros_like, "one value only"),
    "one value": (lambda v: np.full_like(v, 40), "one value only"),
}


def assert_refused(voxels: Voxels, words: str) -> None:
    found = likeness(voxels)
    assert found is not None
    assert any(word in found for word in words.split("|")), found


PHANTOM = chest_phantom((72, 72, 64), (1.5, 1.5, 3.0))
SMALL_PHANTOM = chest_phantom((24, 20, 18), (4.0, 4.5, 5.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("phantom", [PHANTOM, SMALL_PHANTOM], ids=["large", "small"])
def test_what_is_made_of_hu_is_refused_by_its_name(name: str, phantom: Voxels) -> None:
    make, words = OTHERS[name]
    assert_refused(make(phantom), words)


@pytest.mark.parametrize("phantom", [PHANTOM, SMALL_PHANTOM], ids=["large", "small"])
@pytest.mark.parametrize("window_hu", [*WINDOWS_HU, (0, 400), (-50, 1000), (-2000, 4000)])
def test_hu_clipped_to_a_window_are_hu(phantom: Voxels, window_hu: tuple[int, int]) -> None:
    assert likeness(np.clip(phantom, *window_hu)) is None


def test_hu_are_hu_in_every_dtype_and_order() -> None:
    for hu in (PHANTOM, SMALL_PHANTOM):
        for other in (
            hu + 20,
            hu - 20,
            hu.astype(">f4"),
            hu.astype(np.int64),
            hu.transpose(2, 0, 1),
        ):
            assert likeness(other) is None


def test_the_message_says_what_was_found_and_the_way_out() -> None:
    with pytest.raises(IntensityError) as caught:
        check_hu(np.clip(PHANTOM, -1000, 1000) / np.float32(1000), HU)
    assert "looks normalised to [-1, 1]: its voxels lie between -1 and 0.75" in str(caught.value)
    assert "scale it back to HU" in str(caught.value)
    assert "--hu-guard warn" in str(caught.value)
    with pytest.raises(IntensityError, match="leave masks out of the source"):
        check_hu((PHANTOM > 0).astype(np.uint8), HU)


def test_a_finding_is_returned_instead_where_the_guard_only_warns() -> None:
    found = check_hu(PHANTOM / np.float32(1000), HU, guard="warn")
    assert found is not None
    assert found.startswith("looks normalised to [-1, 1]: its voxels lie between -1.024 and 0.75")
    assert check_hu(PHANTOM, HU, guard="warn") is None
    with pytest.raises(IntensityError, match="not finite"):
        check_hu(np.full((2, 2, 2), np.nan), HU, guard="warn")


def test_voxels_are_judged_after_rescaling() -> None:
    assert (
        likeness((PHANTOM + 1024).astype(np.float32) / 4095, Rescale(4095, -1024, "header")) is None
    )
    assert_refused_after = find_fault(PHANTOM, Rescale(0.001, 0, "header"))
    assert isinstance(assert_refused_after, Fault)
    assert "[-1, 1]" in assert_refused_after.likeness
    assert likeness(-PHANTOM, Rescale(-1, 0, "csv")) is None
    assert likeness((PHANTOM / np.float32(-1000)), Rescale(-1, 0, "csv")) is not None


def test_a_phantom_without_noise_is_hu() -> None:
    phantom = np.full((64, 48, 40), -1000, np.int16)
    phantom[12:50, 8:40] = 40
    phantom[20:30, 12:30] = -850
    assert likeness(phantom) is None
    phantom[20:30, 12:30] = 400
    assert likeness(phantom) is None


@pytest.mark.slow
@pytest.mark.parametrize("padding", [-1024, -3024, -8192])
def test_padding_does_not_hide_what_the_rest_is(padding: int) -> None:
    for make, _ in OTHERS.values():
        voxels = make(PHANTOM).astype(np.float32)
        voxels[:6] = padding
        assert likeness(voxels) is not None
    hu = PHANTOM.copy()
    hu[:6] = padding
    assert likeness(hu) is None


def voronoi(shape: tuple[int, int, int], count: int) -> npt.NDArray[np.int64]:
    """So many structures, numbered from 0, that fill a volume."""
    places = np.indices(shape, np.float32)
    nearest, found = np.full(shape, np.inf), np.zeros(shape, np.int64)
    for number, point in enumerate(np.random.default_rng(3).random((count, 3)) * shape):
        apart = sum((places[axis] - point[axis]) ** 2 for axis in range(3))
        found[apart < nearest] = number
        nearest = np.minimum(nearest, apart)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(24, 20, 18), (56, 60, 48)])
@pytest.mark.parametrize(
    "ids",
    [
        range(105),  # TotalSegmentator
        [0, 205, 420, 500, 550, 600, 820, 850],  # MM-WHS
        np.linspace(0, 2035, 104).astype(int),  # FreeSurfer
        range(0, 60_000, 997),  # instances
        [-1, 0, 1, 2],
        [-100, 400, 1000],
    ],
    ids=["104", "sparse", "2035", "instances", "-1", "ignored"],
)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_label_maps_are_refused(shape: tuple[int, int, int], ids: Any, dtype: Any) -> None:
    labels = np.array(list(ids), dtype)[voronoi(shape, len(ids))]
    assert likeness(labels) == "looks like labels"
    assert likeness(np.pad(labels, 5, constant_values=labels.min())) == "looks like labels"


@pytest.mark.parametrize("label", [1, 255, 500])
def test_a_mask_of_one_voxel_is_refused(label: int) -> None:
    mask = np.zeros((72, 72, 64), np.int16)
    mask[13, 5, 7] = label
    assert likeness(mask) == "looks like labels"


def test_rare_labels_that_an_even_sample_misses_are_found() -> None:
    labels = np.zeros((120, 120, 120), np.int16)
    labels[1:4, 1:2, 1:30:2] = 300
    labels[51, 51, 51] = 600
    assert likeness(labels) == "looks like labels"


def test_one_bright_voxel_that_an_even_sample_misses_speaks_for_hu() -> None:
    clipped = np.clip(np.tile(PHANTOM, (2, 2, 1)), 0, 255)
    assert likeness(clipped) == "looks like 8-bit grey values"
    clipped[1, 1, 1] = 2000
    assert likeness(clipped) is None


@pytest.mark.parametrize("size", [8, 12, 16, 32])
@pytest.mark.parametrize(("mean", "sigma"), [(60, 6), (40, 12), (150, 20), (5, 10), (-100, 12)])
def test_a_crop_of_one_tissue_is_hu(size: int, mean: int, sigma: int) -> None:
    noise = np.random.default_rng(size).normal(mean, sigma, (size, size, size))
    assert likeness(np.rint(noise).astype(np.int16)) is None
    assert likeness(noise) is None


def test_a_volume_of_one_voxel_or_two_is_judged_by_what_it_can_say() -> None:
    assert likeness(np.full((1, 1, 1), 40, np.int16)) == "holds one value only"
    assert likeness(np.array([[[-900, 40]]], np.int16)) is None
    assert likeness(np.array([[[0.25, -0.5]]])) == "looks normalised to [-1, 1]"


@pytest.fixture(scope="module")
def real_volumes(real_ct: Path) -> list[Voxels]:
    """The nine real volumes, thinned to about 8 slices where they have many large ones."""
    wholes = [np.asanyarray(nibabel.load(p).dataobj) for p in sorted(real_ct.glob("*.nii.gz"))]
    assert len(wholes) >= 9
    return [whole[:, :, :: max(1, whole.size >> 21)] for whole in wholes]


def crops(hu: Voxels, size: int, count: int) -> Iterator[Voxels]:
    """Some blocks of `size` voxels along each axis, as far as the volume reaches."""
    random = np.random.default_rng(size)
    for _ in range(count):
        start = [random.integers(max(1, n - size + 1)) for n in hu.shape]
        block = hu[tuple(slice(a, a + size) for a in start)]
        if len(np.unique(block)) > 32:  # air of a scanner that clips it says nothing
            yield block


@pytest.mark.slow
def test_every_crop_of_real_ct_is_hu_however_it_is_clipped(real_volumes: list[Voxels]) -> None:
    random = np.random.default_rng(9)
    judged = 0
    for hu in real_volumes:
        for size in (16, 24, 32, 48, 64):
            for block in crops(hu, size, 3):
                noisy = block + random.normal(0, 150, block.shape).astype(np.float32)
                clipped = (np.clip(block, *window_hu) for window_hu in WINDOWS_HU)
                for made in (block, noisy, block + 0.25, *clipped):
                    if len(np.unique(made)) > 2:
                        judged += 1
                        assert likeness(made) is None, (size, made.min(), made.max())
    assert judged > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_made_of_real_ct_is_refused_by_its_name(
    real_volumes: list[Voxels], name: str
) -> None:
    make, words = OTHERS[name]
    for hu in real_volumes:
        assert_refused(make(hu), words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["CT-CLIP's [-1, 1]", "[0, 1]", "z-score", "1/cm", "1/mm", "8 bit"]
)
def test_crops_of_what_is_made_of_real_ct_are_refused(
    real_volumes: list[Voxels], name: str
) -> None:
    for hu in real_volumes:
        made = OTHERS[name][0](hu)
        for size in (16, 32, 64):
            for block in crops(made, size, 4):
                assert likeness(block) is not None
