"""Masks on the grid of the output, against PyTorch's and MONAI's own nearest neighbours."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from ctgpu._native import cpu_variants, gather_labels
from ctgpu.buffers import BufferPool
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.mask_gather import gather_mask, nearest_indices
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume

torch = pytest.importorskip("torch")

SHAPE, SPACING_MM = (23, 17, 11), (0.8, 1.3, 2.5)
AFFINES = {
    "LPS": np.diag([-0.8, -1.3, 2.5, 1.0]),
    "PRI": np.array([[0, 1.3, 0, -7], [-0.8, 0, 0, 30], [0, 0, -2.5, 12], [0, 0, 0, 1.0]]),
}
#: Every grid and fit; padded along some axes, cropped along others, up and down.
CONTRACTS: dict[str, dict[str, Any]] = {
    "finer": {"target_spacing_mm": (0.5, 0.9, 1.1), "shape_hwd": (40, 21, 30)},
    "coarser": {"target_spacing_mm": (2.1, 1.9, 3.0), "shape_hwd": (6, 14, 12)},
    "as it is": {"target_spacing_mm": SPACING_MM, "shape_hwd": (20, 20, 11)},
    "far coarser": {"target_spacing_mm": (9.0, 12.0, 14.0), "shape_hwd": (5, 1, 2)},
    "stretch": {"fit": "stretch", "shape_hwd": (31, 9, 20)},
    "contain": {"fit": "contain", "shape_hwd": (24, 20, 40)},
    "origin": {"grid": "origin", "target_spacing_mm": (0.55, 1.7, 2.9), "shape_hwd": (36, 9, 13)},
}


def labels_of(shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """Numbers among which no two neighbours are alike, so that each voxel tells its place."""
    h, w, d = np.indices(shape)
    numbers = (h * 7 + w * 29 + d * 83) % 251
    if np.dtype(dtype) == np.uint16:
        numbers += (h + w + d) % 5 * 999
    labels: npt.NDArray[Any] = numbers.astype(dtype)
    return labels


def prepared(
    labels: npt.NDArray[Any],
    spec: Spec,
    *,
    affine: npt.NDArray[np.float64] | None = None,
    order: Any = "F",
    spacing_mm: Any = SPACING_MM,
) -> PreparedVolume:
    """A scan with this mask, with everything decided."""
    hu = np.random.default_rng(3).integers(-900, 900, labels.shape).astype(np.int16)
    raw = RawVolume(np.asarray(hu, order=order), spacing_mm, affine)
    mask = LabelVolume.empty(raw.voxels, labels.dtype, BufferPool())
    assert mask.take(labels, np.ones(65536, np.uint8)) is None
    return prepare_volume(
        raw,
        spec=spec,
        spacing_mm=spacing_mm,
        spacing_source="header",
        intensity="hu",
        hu_guard=None,
        mask=mask,
    )


def by_torch(volume: PreparedVolume) -> npt.NDArray[Any]:
    """The mask by PyTorch's own resizing of all of it, then cropped and padded."""
    assert volume.mask is not None
    plan, spec = volume.plan, volume.plan.spec
    labels = volume.mask.voxels if volume.box is None else volume.box.of(volume.mask.voxels)
    turned = np.ascontiguousarray(plan.reorientation.view(labels)).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(turned)[None, None], size=plan.resized_shape, mode="nearest-exact"
    )[0, 0].numpy()
    for axis, (n, wanted) in enumerate(zip(resized.shape, spec.shape_hwd, strict=True)):
        start = max(0, n - wanted) // 2
        before = max(0, wanted - n) // 2
        resized = np.take(resized, range(start, start + min(n, wanted)), axis)
        pads = [(0, 0)] * 3
        pads[axis] = (before, wanted - resized.shape[axis] - before)
        resized = np.pad(resized, pads)
    placed: npt.NDArray[Any] = resized if spec.layout == "HWD" else resized.transpose(2, 0, 1)
    return placed.astype(labels.dtype)


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("name", [name for name in CONTRACTS if name != "origin"])
def test_extent_is_torchs_nearest_exact(name: str, layout: Any) -> None:
    for dtype, order, axes, orientation, variant in itertools.product(
        (np.uint8, np.uint16), ("C", "F"), AFFINES, ("stored", "LPS", "SAR"), cpu_variants()
    ):
        spec = Spec(**CONTRACTS[name], layout=layout, orientation=orientation)
        volume = prepared(labels_of(SHAPE, dtype), spec, affine=AFFINES[axes], order=order)
        out = np.full(spec.stored_shape, 77, dtype)
        assert gather_mask(volume, out, variant=variant) is out
        np.testing.assert_array_equal(out, by_torch(volume), f"{dtype} {order} {axes} {variant}")


def test_every_index_is_torchs() -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 5), (5, 1), (512, 480), (480, 512), *rng.integers(1, 900, (300, 2)).tolist()]
    for n, n_out in sizes:
        spec = Spec(fit="stretch", shape_hwd=(n_out, 1, 1))
        axis = plan_volume((n, 1, 1), (1, 1, 1), spec).axes[0]
        theirs = torch.nn.functional.interpolate(
            torch.arange(n, dtype=torch.float32)[None, None], size=n_out, mode="nearest-exact"
        )[0, 0]
        assert np.array_equal(nearest_indices(axis, "extent"), theirs.numpy()), (n, n_out)


def spacing_of_monai(labels: Any, affine: Any, target: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what MONAI calls
        transforms = pytest.importorskip("monai.transforms")
        from monai.data import MetaTensor

        image = MetaTensor(torch.from_numpy(labels)[None].float(), affine=torch.from_numpy(affine))
        return transforms.Spacing(target, mode="nearest")(image)[0].numpy().astype(labels.dtype)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("target", [(0.55, 1.7, 2.9), (1.7, 0.61, 1.1), (3.1, 2.3, 7.7)], ids=str)
@pytest.mark.parametrize("axes", AFFINES)
def test_origin_is_monais_spacing(axes: str, target: Any) -> None:
    labels = labels_of(SHAPE)
    theirs = spacing_of_monai(labels, AFFINES[axes], target)
    spec = Spec(grid="origin", target_spacing_mm=target, shape_hwd=theirs.shape)
    for order, variant in itertools.product(("C", "F"), cpu_variants()):
        volume = prepared(labels, spec, affine=AFFINES[axes], order=order)
        np.testing.assert_array_equal(gather_mask(volume, variant=variant), theirs)


def test_halfway_the_even_neighbour_is_taken() -> None:
    # 0.8 to 1.2 mm is 1.5 voxels but for rounding; so is what lies halfway on paper.
    for spacing, target in ((2.0, 1.0), (1.0, 1.5), (0.8, 1.2)):
        spec = Spec(grid="origin", target_spacing_mm=(target, 1, 1), shape_hwd=(999, 1, 1))
        axis = plan_volume((400, 1, 1), (spacing, 1, 1), spec).axes[0]
        index = nearest_indices(axis, "origin")
        place = np.round(np.arange(len(index)) * target / spacing, 6)
        halfway = place % 1 == 0.5
        assert halfway.sum() > 100
        assert np.array_equal(index, np.minimum(np.rint(place), 399))
        assert not (index[halfway & (place < 399)] % 2).any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_monai_takes_one_of_the_two_where_a_voxel_is_halfway() -> None:
    labels = labels_of((12, 9, 7))
    theirs = spacing_of_monai(labels, np.diag([2.0, 2, 2, 1]), (1.0, 2.0, 2.0))
    spec = Spec(grid="origin", target_spacing_mm=(1, 2, 2), shape_hwd=theirs.shape)
    mine = gather_mask(prepared(labels, spec, spacing_mm=(2.0, 2.0, 2.0)))
    assert np.array_equal(mine[::2], theirs[::2])
    for line, (below, above) in enumerate(itertools.pairwise(labels)):
        for one in (mine, theirs):
            halfway = one[2 * line + 1]
            assert (np.array_equal(halfway, below)) or np.array_equal(halfway, above)


def test_crop_to_the_mask_is_the_crop_of_its_box() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:14, 3:12, 2:9] = labels_of(SHAPE)[5:14, 3:12, 2:9] | 1
    spec = Spec(crop="mask", target_spacing_mm=(0.9, 1.1, 1.9), shape_hwd=(12, 12, 12))
    volume = prepared(labels, spec)
    assert volume.box is not None
    assert volume.box.ends == ((5, 14), (3, 12), (2, 9))
    np.testing.assert_array_equal(gather_mask(volume), by_torch(volume))
    assert set(np.unique(gather_mask(volume))) - {0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["ts_pulmonary_ct_cropped.nii.gz", "ts_example_ct_sm.nii.gz"])
def test_real_ct(real_ct: Path, name: str) -> None:
    """Labels by thresholds, on the scan's own grid of float32 spacings."""
    image: Any = nibabel.load(real_ct / name)
    voxels = np.asarray(image.dataobj)[:140, :130, :90]
    labels = np.digitize(voxels, np.linspace(voxels.min(), voxels.max(), 40)).astype(np.uint8)
    h, w, d = (float(s) for s in image.header.get_zooms()[:3])
    spacing = (h, w, d)
    for layout in ("HWD", "DHW"):
        spec = Spec(layout=layout, target_spacing_mm=(1.7, 1.1, 2.3), shape_hwd=(90, 130, 60))
        volume = prepared(labels, spec, affine=image.affine, spacing_mm=spacing)
        np.testing.assert_array_equal(gather_mask(volume), by_torch(volume))
    target = (h * 0.837, w * 0.837, d * 0.837)
    theirs = spacing_of_monai(labels, image.affine, target)
    spec = Spec(grid="origin", target_spacing_mm=target, shape_hwd=theirs.shape)
    mine = gather_mask(prepared(labels, spec, affine=image.affine, spacing_mm=spacing))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lines_of_every_length_and_step_by_every_variant(dtype: npt.DTypeLike) -> None:
    """Blocks, their remainders, flips, and voxels too far apart for one vector."""
    rng = np.random.default_rng(5)
    for shape in ((1, 1, 1), (3, 2, 300), (150, 3, 70), (2, 310, 33), (17, 16, 15)):
        source = rng.integers(0, 1 << 8 * np.dtype(dtype).itemsize, shape).astype(dtype)
        for order, step in itertools.product(itertools.permutations(range(3)), (0.4, 1, 1.9, 9.7)):
            labels = np.ascontiguousarray(source.transpose(order)).transpose(np.argsort(order))
            labels = labels[:, ::-1, ::-1]
            indices = [np.arange(0, n, step).astype(np.int32) for n in shape]
            pads = [0, 2, 3]
            sizes = [len(i) + pad + 1 for i, pad in zip(indices, pads, strict=True)]
            wanted = np.zeros(sizes, dtype)
            inner = tuple(slice(p, p + len(i)) for i, p in zip(indices, pads, strict=True))
            wanted[inner] = labels[np.ix_(*indices)]
            for variant in cpu_variants():
                out = np.full(sizes, 9, dtype)
                gather_labels(labels, indices, pads, out, variant)
                assert np.array_equal(out, wanted), (shape, order, step, variant)


def test_without_the_compiled_code_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec(**CONTRACTS["finer"], layout="DHW", orientation="RAS")
    volume = prepared(labels_of(SHAPE), spec, affine=AFFINES["PRI"])
    wanted = gather_mask(volume)
    monkeypatch.setitem(sys.modules, "ctgpu._native", None)
    assert np.array_equal(gather_mask(volume), wanted)


def test_tables_that_leave_source_or_output_are_refused() -> None:
    labels, out = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    good = np.arange(4, dtype=np.int32)
    for bad in ([0, 4], [-1, 0], [2, 1]):
        with pytest.raises(ValueError, match="outside its source"):
            gather_labels(labels, [good, np.array(bad, np.int32), good], [0, 0, 0], out, "")
    with pytest.raises(ValueError, match="does not fit"):
        gather_labels(labels, [good, good, good], [0, 1, 0], out, "")
    with pytest.raises(ValueError, match="no variant"):
        gather_labels(labels, [good, good, good], [0, 0, 0], out, "mmx")


def test_a_volume_without_a_mask_has_none_to_gather() -> None:
    volume = prepared(labels_of(SHAPE), Spec())
    volume.mask = None
    with pytest.raises(ValueError, match="without a mask"):
        gather_mask(volume)
