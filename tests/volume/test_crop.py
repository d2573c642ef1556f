"""The box that a volume is made of: foreground, body, margin, and where there is none."""

from __future__ import annotations

import itertools
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from crop_cases import BODY, FOREGROUND, SPACING_MM, Voxels, crop, on_a_table

import ctgpu
from ctgpu.errors import EnvironmentFailure, IntensityError
from ctgpu.spec import Spec
from ctgpu.volume.crop import crop_box
from ctgpu.volume.foreground import Box
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.orientation import Reorientation
from ctgpu.volume.prepare import prepare_volume
from ctgpu.volume.raw import RawVolume, Rescale
from ctgpu.volume.statistics import statistics_of


def test_the_centre_needs_no_box() -> None:
    assert crop_box(on_a_table(), Rescale(), SPACING_MM, Spec()) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("margin", [(0, 0, 0), (4, 5, 3), (1, 100, 7)], ids=str)
def test_foreground_is_what_monai_crops_to(margin: tuple[int, int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what MONAI calls
        transforms = pytest.importorskip("monai.transforms")
        theirs = transforms.CropForeground(
            select_fn=lambda x: x > -500, margin=list(margin), allow_smaller=True
        )
        voxels = on_a_table()
        start, stop = theirs.compute_bounding_box(voxels[None])
        cropped = theirs(voxels[None])[0]
    box = crop(voxels, FOREGROUND).widened(margin, voxels.shape)
    assert (box.start, box.stop) == (tuple(map(int, start)), tuple(map(int, stop)))
    assert np.array_equal(box.of(voxels), np.asarray(cropped))


@pytest.mark.parametrize(
    ("margin_mm", "voxels"),
    [(0, (0, 0, 0)), (4.8, (3, 4, 2)), (5, (4, 4, 2)), (0.1, (1, 1, 1)), (1e9, (218, 178, 108))],
)
def test_a_margin_is_at_least_so_wide_on_every_axis(
    margin_mm: float, voxels: tuple[int, int, int]
) -> None:
    scan = on_a_table()
    for spec in (FOREGROUND, BODY):
        wanted = crop(scan, spec).widened(voxels, scan.shape)
        assert crop(scan, replace(spec, margin_mm=margin_mm)) == wanted


def test_a_margin_of_decimal_numbers_is_not_rounded_up_once_more() -> None:
    voxels = np.full((60, 60, 60), -1000, np.int16)
    voxels[30, 30, 30] = 0
    spec = replace(FOREGROUND, margin_mm=3)  # 3 / 0.3 is above 10 in floating point
    assert crop(voxels, spec, (0.3, 0.1, 3)) == Box((20, 0, 29), (41, 60, 32))


@pytest.mark.slow
def test_real_foreground_is_every_voxel_above(real_ct: Path) -> None:
    for path in sorted(real_ct.glob("*.nii.gz")):
        voxels = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        places = np.argwhere(voxels > -500)
        wanted = (places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist())
        box = crop(voxels, FOREGROUND)
        assert ([*box.start], [*box.stop]) == wanted


def test_the_box_is_the_same_however_voxels_are_held() -> None:
    hu = on_a_table()
    for spec in (FOREGROUND, BODY):
        wanted = crop(hu, spec)
        held = [
            (np.ascontiguousarray(hu), Rescale()),
            (hu.astype(">i2"), Rescale()),
            (hu.astype(np.int32), Rescale()),
            (hu.astype(np.float64), Rescale()),
            (np.ascontiguousarray(hu.transpose(2, 0, 1)).transpose(1, 2, 0), Rescale()),
            (np.ascontiguousarray(hu[::-1, :, ::-1])[::-1, :, ::-1], Rescale()),
            ((hu + 1024).clip(0).astype(np.uint16), Rescale(1, -1024)),
            (-hu, Rescale(-1, 0)),
            (hu.astype(np.float32) / 4 + 100, Rescale(4, -400)),
        ]
        for voxels, rescale in held:
            assert crop(voxels, spec, rescale=rescale) == wanted


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3)))[1:], ids=str)
def test_the_axes_may_lie_in_any_order(axes: tuple[int, int, int]) -> None:
    voxels, turned = on_a_table(), Reorientation(axes)
    for spec in (FOREGROUND, BODY):
        start, stop = zip(*turned.along(crop(voxels, spec).ends), strict=True)
        found = crop(turned.view(voxels), spec, turned.along(SPACING_MM))
        assert found == Box(start, stop)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 2), (3, 1, 50)], ids=str)
def test_thin_scans_have_a_body_too(shape: tuple[int, int, int]) -> None:
    voxels = np.zeros(shape, np.int16)
    for spacing in (0.1, 1.0, 9.0):
        for spec in (FOREGROUND, BODY):
            assert crop(voxels, spec, (spacing,) * 3) == Box((0, 0, 0), shape)


@pytest.mark.parametrize("rescale", [Rescale(), Rescale(-1, 0), Rescale(0.5, -700)])
def test_without_foreground_a_sample_fails_with_the_way_out(rescale: Rescale) -> None:
    voxels = np.where(np.indices((6, 7, 8)).sum(axis=0) % 2, 300, 350).astype(np.int16)
    highest = f"{rescale.hu_of(voxels).max():g}"
    spec = replace(FOREGROUND, foreground_hu=400)
    with pytest.raises(IntensityError) as caught:
        crop_box(voxels, rescale, SPACING_MM, spec)
    for words in ("'foreground'", f"is {highest} HU", "above 400 HU", "--foreground-hu"):
        assert words in str(caught.value)


def test_what_is_too_small_is_no_body() -> None:
    voxels = np.full((40, 40, 40), -1000, np.int16)
    voxels[20, 20, 20] = 500
    assert crop(voxels, FOREGROUND, (1, 1, 1)) == Box((20, 20, 20), (21, 21, 21))
    voxels[20, 20, 20] = -1000
    voxels[19, 19, 19] = 500  # beside those that are looked at
    with pytest.raises(IntensityError, match=r"is 500 HU; wanted something 4 mm across above -500"):
        crop_box(voxels, Rescale(), (1, 1, 1), BODY)


def test_a_flat_scale_has_all_or_nothing_above() -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    assert crop(voxels, FOREGROUND, rescale=Rescale(0, 7)) == Box((0, 0, 0), (3, 4, 5))
    with pytest.raises(IntensityError, match="-600 HU"):
        crop_box(voxels, Rescale(0, -600), SPACING_MM, FOREGROUND)


def test_the_library_is_asked_for_before_a_scan_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cc3d", None)
    for scan in ("none/there.nii.gz", on_a_table()):
        with pytest.raises(EnvironmentFailure, match=r"connected-components-3d.*\[crop\]"):
            ctgpu.preprocess(scan, SPACING_MM, BODY, "cpu")
    crop(on_a_table(), FOREGROUND)  # does without


def prepared(voxels: Voxels, spec: Spec, affine: Any = None) -> Any:
    return prepare_volume(
        RawVolume(voxels, spacing_mm=SPACING_MM, affine=affine),
        spec=spec,
        spacing_mm=SPACING_MM,
        spacing_source="header",
        intensity="hu",
    )


def test_the_box_is_as_if_the_file_held_nothing_else() -> None:
    """Size, place and values, turned or not, are those of a file that was cut out."""
    voxels = on_a_table()
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = (170, 130, -300)
    box = crop(voxels, BODY)
    for fields in (
        {},
        {"orientation": "RSA", "target_spacing_mm": (2.0, 2.5, 1.5), "grid": "origin"},
        {"fit": "contain", "shape_hwd": (90, 60, 40)},
        {"fit": "stretch", "shape_hwd": (50, 70, 30), "orientation": "LPI"},
    ):
        spec = replace(BODY, **fields)
        found = prepared(voxels, spec, affine)
        cut_out = prepared(box.of(voxels), replace(spec, crop="centre"), box.affine_of(affine))
        assert found.box == box
        assert np.array_equal(found.voxels, cut_out.voxels)
        np.testing.assert_allclose(found.output_affine, cut_out.output_affine, atol=1e-9)
        for ours, theirs in zip(found.plan.axes, cut_out.plan.axes, strict=True):
            assert (ours.n_resized, ours.step, ours.first) == (
                theirs.n_resized,
                theirs.step,
                theirs.first,
            )
        geometry = Geometry.of(found)
        assert geometry.crop_box == box.ends
        assert geometry.source_shape == voxels.shape


def test_statistics_are_of_the_whole_scan() -> None:
    voxels = on_a_table()
    spec = replace(BODY, normalise="zscore", hu_window=None)
    assert prepared(voxels, spec).statistics == statistics_of(voxels, Rescale(), spec)


def test_what_is_brought_back_lies_where_it_was() -> None:
    """A marked cube, and nothing outside of the box."""
    voxels = on_a_table()
    voxels[90:100, 70:78, 40:46] = 900
    spec = replace(BODY, target_spacing_mm=(1.6, 1.5, 2.5), shape_hwd=(200, 150, 80), dtype="int16")
    volume, geometry = ctgpu.preprocess(
        voxels, SPACING_MM, spec, "cpu", return_geometry=True, hu_guard="warn"
    )
    back = geometry.to_scan(volume, outside=-1024)
    box = Box(*map(tuple, zip(*geometry.crop_box, strict=True)))
    assert np.array_equal(box.of(back), box.of(voxels).clip(-1000, 1000))
    box.of(back)[...] = -1024
    assert (back == -1024).all()
