"""Where HU come from, and the guard: on real volumes, as they are and as mistakes make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ctgpu.errors import IntensityError
from ctgpu.volume.intensity import HuEvidence, check_hu, resolve_rescale
from ctgpu.volume.raw import RawVolume, Rescale

HU = Rescale()
VOLUMES = [
    "acrinflt013",
    "lidcidri0001_small",
    "lidcidri0002_small",
    "lidcidri0003_small",
    "qin_QIN-LSC-0028",
    "ts_aorta_ct_cropped",
    "ts_example_ct",
    "ts_example_ct_sm",
    "ts_pulmonary_ct_cropped",
]


@pytest.fixture(scope="module")
def volumes(real_ct: Path) -> dict[str, np.ndarray]:
    """The nine real volumes, in HU."""
    return {
        name: np.asanyarray(nibabel.load(real_ct / f"{name}.nii.gz").dataobj) for name in VOLUMES
    }


@pytest.fixture(params=VOLUMES)
def hu(request: pytest.FixtureRequest, volumes: dict[str, np.ndarray]) -> np.ndarray:
    """One of them, thinned to about 16 slices where it has many large ones."""
    whole = volumes[request.param]
    return whole[:, :, :: max(1, whole.size >> 22)]


def padded(hu: np.ndarray, value: int) -> np.ndarray:
    """With `value` outside the round field of view, as GE scanners write it."""
    h, w, _ = hu.shape
    i, j = np.ogrid[:h, :w]
    outside = ((i - h / 2) / (h / 2)) ** 2 + ((j - w / 2) / (w / 2)) ** 2 > 1
    result = hu.astype(np.int16)
    result[outside] = value
    return result


def noisy(hu: np.ndarray, sigma: float) -> np.ndarray:
    """With the noise of a sharp kernel, which padding has none of."""
    noise = np.random.default_rng(5).standard_normal(hu.shape, np.float32)
    return np.where(hu < -1500, hu, hu + np.float32(sigma) * noise)


def crop(hu: np.ndarray, lung: bool) -> np.ndarray:
    """The 160 × 160 column that holds the most lung, or the least air and lung."""
    wanted = ((hu > -950) & (hu < -600)) if lung else hu > -300
    columns = np.lib.stride_tricks.sliding_window_view(wanted.mean(2), (160, 160))[::32, ::32]
    i, j = np.unravel_index(columns.mean((2, 3)).argmax(), columns.shape[:2])
    return hu[32 * i : 32 * i + 160, 32 * j : 32 * j + 160]


WAYS: dict[str, Any] = {
    "as it is": lambda hu: hu,
    "padding -2048": lambda hu: padded(hu, -2048),
    "padding -3024": lambda hu: padded(hu, -3024),
    "padding -8192": lambda hu: padded(hu, -8192),
    "noise 150 HU": lambda hu: noisy(hu, 150),
}


@pytest.mark.slow
def test_whole_real_volumes_are_accepted_and_their_mistakes_refused(volumes):
    for voxels in volumes.values():
        check_hu(voxels, HU)
        for intercept, fault in [
            (-1024, "twice"),
            (-8192, "twice"),
            (1024, "never"),
            (8192, "never"),
        ]:
            with pytest.raises(IntensityError, match=fault):
                check_hu(voxels, Rescale(1, intercept, "csv"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_real_volumes_are_accepted(hu, way):
    check_hu(WAYS[way](hu), HU)


@pytest.mark.slow
@pytest.mark.parametrize("name", [v for v in VOLUMES if v.startswith(("lidc", "qin", "acrin"))])
@pytest.mark.parametrize("lung", [True, False], ids=["lung", "solid"])
def test_crops_are_accepted(name, lung, volumes):
    part = crop(volumes[name], lung)
    check_hu(part, HU)
    check_hu(noisy(part, 200), HU)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_doubly_rescaled_volumes_are_refused(hu, way, intercept):
    with pytest.raises(IntensityError, match=r"rescaled twice.*--intensity hu"):
        check_hu(WAYS[way](hu), Rescale(1, intercept, "csv"))
    stored = (WAYS[way](hu).astype(np.float32) + intercept).astype(np.int16)
    with pytest.raises(IntensityError, match=r"rescaled twice.*--intensity hu nor rescale"):
        check_hu(stored, HU)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("offset", [1024, 8192])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_never_rescaled_volumes_are_refused(hu, way, offset, dtype):
    stored = np.maximum(
        WAYS[way](hu).astype(np.float32) + offset, 0 if dtype is np.uint16 else -9999
    )
    with pytest.raises(IntensityError, match=r"never rescaled.*--intensity rescale"):
        check_hu(stored.astype(dtype), HU)
    check_hu(stored.astype(dtype), Rescale(1, -offset, "csv"))


@pytest.mark.slow
def test_a_pair_that_leaves_voxels_unscaled_is_named(volumes):
    with pytest.raises(IntensityError, match="another pair than 1 and 1024 \\(csv\\)"):
        check_hu(volumes["qin_QIN-LSC-0028"], Rescale(1, 1024, "csv"))


@pytest.mark.slow
def test_inverted_voxels_are_judged_after_rescaling(volumes):
    check_hu(-volumes["ts_aorta_ct_cropped"], Rescale(-1, 0, "csv"))


@pytest.mark.slow
def test_memory_order_and_byte_order_do_not_matter(volumes):
    hu = volumes["ts_pulmonary_ct_cropped"]
    wanted = HuEvidence.measure(hu, HU)
    for other in (np.ascontiguousarray(hu), hu.astype(">i2"), hu.astype("f4"), hu[:, ::-1]):
        measured = HuEvidence.measure(other, HU)
        assert measured is not None
        assert measured.air_and_lung == pytest.approx(wanted.air_and_lung, abs=0.02)
    before = hu.copy()
    check_hu(hu, HU)
    np.testing.assert_array_equal(hu, before)


def test_shares_are_of_what_is_not_padding():
    volume = np.zeros((64, 64, 128), np.int16)
    volume[:, :, :32] = -3024
    volume[:, :, 32:64] = -2048
    volume[:, :, 64:80] = -1200
    volume[:, :, 80:96] = -1150
    volume[:, :, 96:112] = 950
    evidence = HuEvidence.measure(volume, HU)
    assert evidence == HuEvidence(0.5, 0.5, 0.25, 0.25, 0.0, 0.25)


def test_shares_of_a_volume_too_small_to_judge_say_nothing():
    shifted = np.random.default_rng(1).integers(5000, 6000, (63, 64, 64), np.int16)
    assert HuEvidence.measure(shifted, HU) is None
    check_hu(shifted, HU)
    assert HuEvidence.measure(np.tile(shifted, (2, 1, 1)), HU) is not None
    with pytest.raises(IntensityError, match="never rescaled"):
        check_hu(np.tile(shifted, (2, 1, 1)), HU)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("place", [(0, 0, 0), (6, 8, 4), (3, 0, 2)])
def test_voxels_that_are_not_finite_are_refused(value, dtype, order, place):
    noise = np.random.default_rng(1).normal(-400, 300, (7, 9, 5))
    voxels = np.array(noise, dtype, order=order)
    check_hu(voxels, HU)
    voxels[place] = value
    for view in (voxels, voxels[::-1], voxels.transpose(1, 2, 0)):
        with pytest.raises(IntensityError, match="not finite"):
            check_hu(view, HU)


def test_a_double_beyond_float32_is_not_finite():
    voxels = np.zeros((4, 4, 4))
    voxels[1, 2, 3] = 1e300
    with pytest.raises(IntensityError, match="not finite"):
        check_hu(voxels, HU)


def nifti(rescale: Rescale = HU) -> RawVolume:
    return RawVolume(np.zeros((2, 2, 2), "i2"), header_rescale=rescale, format="nifti")


def npz(rescale: Rescale = HU) -> RawVolume:
    return RawVolume(np.zeros((2, 2, 2), "i2"), header_rescale=rescale, format="npz")


HEADER, METADATA, CSV = (
    Rescale(2, -10, "header"),
    Rescale(1, -1024, "metadata"),
    Rescale(1, -8192, "csv"),
)


@pytest.mark.parametrize(
    ("raw", "intensity", "provenance", "wanted"),
    [
        # The double rescale of CT-RATE's v2 volumes (CT-CLIP issue 50) cannot happen unasked.
        (nifti(), "auto", "fixed", HU),
        (nifti(), "auto", "unknown", HU),
        (nifti(), "auto", "v1", CSV),
        (nifti(), "hu", "v1", HU),
        (nifti(), "rescale", "fixed", CSV),
        (nifti(HEADER), "auto", "fixed", HEADER),
        (nifti(HEADER), "hu", "v1", HEADER),
        (npz(), "auto", "v1", HU),
        (npz(), "rescale", "unknown", CSV),
        (npz(METADATA), "auto", "fixed", METADATA),
        (npz(METADATA), "rescale", "fixed", METADATA),
        (npz(METADATA), "hu", "v1", HU),
    ],
)
def test_which_pair_applies(raw, intensity, provenance, wanted):
    pair = (1.0, -8192.0)
    resolved = resolve_rescale(raw, intensity=intensity, provenance=provenance, csv_pair=pair)
    assert resolved == wanted


@pytest.mark.parametrize(
    ("raw", "pair", "message"),
    [
        (nifti(), None, "--intensity hu"),
        (nifti(), (float("nan"), 0.0), "finite"),
        (nifti(), (1.0, float("inf")), "finite"),
        (nifti(), (0.0, -1024.0), "slope other than zero"),
        (nifti(HEADER), (1.0, -1024.0), "again by 1 and -1024"),
    ],
)
def test_v1_volumes_without_one_usable_pair_are_refused(raw, pair, message):
    with pytest.raises(IntensityError, match=message):
        resolve_rescale(raw, intensity="auto", provenance="v1", csv_pair=pair)
