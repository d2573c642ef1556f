"""Presets against what the projects' own code does: on phantoms, and on real CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

import ctgpu
from built import ulp_distance
from ctgpu.spec import Spec
from ctgpu.spec.presets import presets

public_pipelines = pytest.importorskip("public_pipelines")
PIPELINES = public_pipelines.PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

#: Presets with the project's own arithmetic, in the project's own order.
SAME = [name for name, one in presets().items() if one.mean_hu is None]
OTHER = [name for name in PIPELINES if name not in SAME]
#: These interpolate in float64.
IN_FLOAT64 = [name for name, one in presets().items() if one.precision_hu is not None]
#: This one takes the axes as they are stored, and is meant for LPS.
AS_STORED = ["hlip"]
#: These crop to what is above the least voxel, which is all of a scan without a margin.
CROPPED_TO_LEAST = ["m3d", "med3dvlm"]

SHAPE, SPACING_MM = (61, 47, 33), (0.8, 1.3, 2.5)
SMALL, LARGE = (30, 28, 16), (100, 124, 84)
REAL = ["lidcidri0002_small", "ts_pulmonary_ct_cropped", "ts_example_ct_sm"]


def phantom(
    path: Path, codes: str, spacing_mm: tuple[float, ...] = SPACING_MM, *, margin: bool = True
) -> Path:
    """A scan whose axes differ in length, size and rise, stored as these letters say."""
    i, j, k = np.indices(SHAPE)
    noise = np.random.default_rng(3).normal(0, 60, SHAPE)
    hu = -1000 + 9 * i + 17 * j + 23 * k + noise
    if margin:
        hu[:6], hu[:, -7:], hu[..., :2] = -1024, -1040, -2000
    # A bar along each axis, the last of metal.
    hu[20:23, 10:40, 8], hu[30:34, 30, 5:30], hu[10:50, 22, 20] = 900, 1800, 3000
    image = nibabel.Nifti1Image(hu.astype(np.int16), np.diag([*spacing_mm, 1.0]))
    image.affine[:3, 3] = (-30, 11, 700)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(image.as_reoriented(turn), path)
    return path


def made(path: Path, spec: Spec, device: str = "cpu") -> npt.NDArray[Any]:
    # RAD-ChestCT's description states 0.8 mm, of which a header has the nearest float32.
    spacing = (0.8, 0.8, 0.8) if path.name.startswith("own") else None
    result: npt.NDArray[Any] = ctgpu.preprocess(
        path, spacing, spec=spec, device=device, axes="stored", hu_guard="warn"
    )
    return result


def hold(mine: npt.NDArray[Any], theirs: npt.NDArray[Any], share: float = 1e-3) -> None:
    """At most a step of the type, or 2.4e-7, and that in a share of the voxels."""
    assert mine.shape == theirs.shape
    rounded = theirs.astype(np.float16)
    apart = np.abs(mine.astype(np.float32) - rounded.astype(np.float32))
    differ = apart > 2.4e-7
    assert np.all(ulp_distance(mine[differ], rounded[differ]) <= 1)
    assert np.count_nonzero(differ) <= max(1, share * mine.size)


def follow(
    name: str, path: Path, shape: tuple[int, int, int], devices: tuple[str, ...] = ("cpu",)
) -> None:
    spec, stated = Spec.preset(name, shape_hwd=shape), presets()[name]
    theirs = PIPELINES[name](path, shape)
    in_float32 = theirs
    if stated.precision_hu is not None:
        in_float32 = PIPELINES[name](path, shape, precision=np.float32)
    for device in devices:
        mine = made(path, spec, device)
        hold(mine, in_float32, stated.step_share)
        if stated.precision_hu is not None:  # and half a step of float16
            apart = np.abs(mine.astype(np.float64) - theirs)
            assert apart.max() <= 2**-12 + stated.precision_hu * spec.scale_offset[0]


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["cropped", "padded"])
@pytest.mark.parametrize("name", SAME)
def test_a_phantom_becomes_what_the_project_makes_of_it(
    tmp_path: Path, name: str, shape: Any
) -> None:
    for codes in ["LPS"] if name in AS_STORED else ["LPS", "RAS", "AIR"]:
        # RAD-ChestCT's own volumes are at 0.8 mm.
        spacing = (0.8, 0.8, 0.8) if name == "rad-chestct" else SPACING_MM
        margin = name not in CROPPED_TO_LEAST
        path = tmp_path / f"{'own' if name == 'rad-chestct' else 'scan'} {codes}.nii.gz"
        phantom(path, codes, spacing, margin=margin)
        follow(name, path, shape, ("cpu", "reference"))


@pytest.mark.slow
@pytest.mark.parametrize("scan", REAL)
@pytest.mark.parametrize("name", [name for name in SAME if name != "rad-chestct"])
def test_real_ct_becomes_what_the_project_makes_of_it(real_ct: Path, name: str, scan: str) -> None:
    if name in AS_STORED and scan.startswith("ts_example"):
        pytest.skip("is stored as RAS")
    follow(name, real_ct / f"{scan}.nii.gz", (100, 140, 60))


@pytest.mark.slow
def test_real_ct_at_rad_chestcts_spacing(tmp_path: Path, real_ct: Path) -> None:
    own = tmp_path / "own.nii.gz"
    scan = real_ct / "ts_pulmonary_ct_cropped.nii.gz"
    nibabel.save(public_pipelines.by_cubic_splines(scan), own)
    follow("rad-chestct", own, (150, 230, 260))


@pytest.mark.slow
def test_a_whole_chest_at_full_size(real_ct: Path) -> None:
    follow("merlin", real_ct / "qin_QIN-LSC-0028.nii.gz", (224, 224, 160))


# ---- where a project does something else --------------------------------------------------------

#: A slab of few slices, one that 2 mm divide, and one whose sizes end in halves.
UNLIKE = ["lidcidri0003_small", "acrinflt013", "ts_pulmonary_ct_cropped"]


def distances_hu(name: str, path: Path, tmp_path: Path) -> npt.NDArray[Any]:
    """Of all voxels that are no padding."""
    spec, read = Spec.preset(name), path
    if name == "rad-chestct":
        read = tmp_path / "own.nii.gz"
        nibabel.save(public_pipelines.by_cubic_splines(path), read)
    if name == "colipri":
        # Sizes of which no half voxel is left, for TorchIO puts that elsewhere.
        grid = np.array(resampled(path, spec))
        spec = replace(spec, shape_hwd=tuple(192 - grid % 2))
    mine, geometry = ctgpu.preprocess(
        path, spec=spec, device="cpu", axes="stored", hu_guard="warn", return_geometry=True
    )
    theirs = PIPELINES[name](read, spec.shape_hwd)
    sizes = zip(geometry.pad_before, geometry.resized_shape, spec.shape_hwd, strict=True)
    h, w, d = (slice(before, before + min(n, wanted)) for before, n, wanted in sizes)
    scan = (d, h, w) if spec.layout == "DHW" else (h, w, d)
    apart = np.abs(mine[scan].astype(np.float32) - theirs[scan].astype(np.float32))
    distances: npt.NDArray[Any] = apart / spec.scale_offset[0]
    return distances


def resampled(path: Path, spec: Spec) -> tuple[int, ...]:
    _, geometry = ctgpu.preprocess(
        path, spec=spec, device="cpu", hu_guard="warn", return_geometry=True
    )
    shape: tuple[int, ...] = geometry.resized_shape
    return shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # Its splines take a quarter of a minute.
    [pytest.param(n, marks=[pytest.mark.exhaustive] * (n == "rad-chestct")) for n in OTHER],
)
def test_the_stated_distances_in_hu_hold_and_are_needed(
    tmp_path: Path, real_ct: Path, name: str
) -> None:
    means, most = [], []
    # Splines of the largest take minutes.
    for scan in UNLIKE if name != "rad-chestct" else UNLIKE[::2]:
        distances = distances_hu(name, real_ct / f"{scan}.nii.gz", tmp_path)
        means.append(distances.mean())
        most.append(np.quantile(distances, 0.999))
    stated = presets()[name]
    for found, bound in ((max(means), stated.mean_hu), (max(most), stated.most_hu)):
        assert bound is not None
        assert bound / 2 < found <= bound


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["cropped", "padded"])
def test_ct2rep_is_the_same_where_nothing_was_clipped_before(tmp_path: Path, shape: Any) -> None:
    path = phantom(tmp_path / "scan.nii.gz", "LPS")
    theirs = PIPELINES["ct2rep"](path, shape, before=None)
    apart = np.abs(made(path, Spec.preset("ct2rep", shape_hwd=shape)).astype(np.float64) - theirs)
    assert apart.max() <= 2**-12 + 0.05 / 600


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["cropped", "padded"])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "AIR"])
def test_clip_3d_ct_is_the_same_where_sizes_are_rounded_down(
    tmp_path: Path, shape: Any, codes: str
) -> None:
    path = phantom(tmp_path / "scan.nii.gz", codes)
    theirs = PIPELINES["clip-3d-ct"](path, shape, size_of=int).astype(int)
    mine = made(path, Spec.preset("clip-3d-ct", shape_hwd=shape)).astype(int)
    assert set(np.unique(mine - theirs)) <= {0, 1}  # cut off, not rounded


@pytest.mark.parametrize("codes", ["LPS", "RAS", "AIR"])
def test_colipri_is_the_same_where_voxels_divide_the_scan(tmp_path: Path, codes: str) -> None:
    path = phantom(tmp_path / "scan.nii.gz", codes, (2.0, 4.0, 1.0))
    spec = Spec.preset("colipri", shape_hwd=(61, 48, 36))
    # 61, 94 and 16.5, so cut to 16: only the last is not what divides the scan.
    theirs = PIPELINES["colipri"](path, (61, 48, 36))
    mine = made(path, spec)
    hu = np.abs(mine.astype(np.float32) - theirs)[..., 10 + 8] * 1000  # the middle of the scan
    assert mine.shape == theirs.shape
    assert hu.max() < 150


def test_colipri_puts_the_odd_voxel_of_padding_first(tmp_path: Path) -> None:
    path = phantom(tmp_path / "scan.nii.gz", "RAS", (2.0, 2.0, 2.0))
    mine = made(path, Spec.preset("colipri", shape_hwd=(64, 50, 34)))
    theirs = PIPELINES["colipri"](path, (64, 50, 34))
    # 61, 47 and 33 voxels: 3, 3 and 1 to pad.
    np.testing.assert_allclose(mine[:-1, :-1, :-1], theirs[1:, 1:, 1:], atol=2**-11)


@pytest.mark.slow
def test_what_ct_fm_crops_to_is_within_the_volume(real_ct: Path) -> None:
    for scan in REAL:
        path = real_ct / f"{scan}.nii.gz"
        shape = PIPELINES["ct-fm"](path, (0, 0, 0), crop=True).shape
        assert all(n <= wanted for n, wanted in zip(shape, (128, 512, 512), strict=True))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "AIR"])
def test_m3d_with_a_margin_is_a_crop_to_what_is_above_it(tmp_path: Path, codes: str) -> None:
    path = phantom(tmp_path / "scan.nii.gz", codes)
    spec = Spec.preset("m3d", shape_hwd=SMALL, crop="foreground", foreground_hu=-2000)
    hold(made(path, spec), PIPELINES["m3d"](path, SMALL))


@pytest.mark.slow
def test_what_m3d_crops_to_is_the_whole_of_most_scans(real_ct: Path) -> None:
    for scan in REAL:
        voxels = np.asarray(nibabel.load(real_ct / f"{scan}.nii.gz").dataobj)
        above = np.argwhere(voxels > voxels.min())
        assert tuple(np.ptp(above, axis=0) + 1) == voxels.shape, scan


def test_a_size_that_ends_in_a_half_may_lack_a_slice_of_monais(tmp_path: Path) -> None:
    """16 slices of 2.5 mm are 13.5 of 3 mm: MONAI rounds what its affine leaves of that."""
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).integers(-900, 900, (20, 22, 16), np.int16),
        np.array([[-1.5, 0, 0, 166], [0, -1.5, 0, 171.7], [0, 0, 2.5, -132.5], [0, 0, 0, 1]]),
    )
    nibabel.save(image, path := tmp_path / "scan.nii.gz")
    theirs = PIPELINES["merlin"](path, (20, 22, 14))
    mine = made(path, Spec.preset("merlin", shape_hwd=(20, 22, 14)))
    hold(mine[..., :13].copy(), theirs[..., :13])
