"""MONAI's pipelines over shards: what they see lies where the scans lie, and what they save too.

Positions are held against the scans as nibabel reads them, by scipy's interpolation.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import map_coordinates

import ctgpu
from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.spec import Spec
from stored import chest_as, rotated, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about what MONAI calls
    torch = pytest.importorskip("torch")
    pytest.importorskip("monai")
    from monai import transforms
    from monai.data import (
        CacheDataset,
        DataLoader,
        Dataset,
        MetaTensor,
        decollate_batch,
        set_track_meta,
    )

    from ctgpu.loading.monai import MonaiDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch|monai"),
]

Floats = npt.NDArray[np.float64]
#: Along axes of the patient that are all unlike each other, in voxels and in millimetres.
SPEC = Spec(target_spacing_mm=(5.0, 6.0, 7.0), shape_hwd=(60, 36, 30))
WAYS = [("LPS", 0), ("RAS", 0), ("PIR", 0), ("SLA", 11)]
OUTPUTS = [("stored", "HWD"), ("RAS", "DHW"), ("LPS", "HWD"), ("SAR", "DHW")]


def marked(codes: str, degrees: float) -> nibabel.Nifti1Image:
    """A chest with a long mark beside each of its axes, as a file that is stored this way."""
    image = chest_as("LPS")
    voxels = np.asanyarray(image.dataobj).copy()
    voxels[10:50, 12:16, 8:11] = 900
    voxels[60:63, 20:60, 5:8] = 700
    voxels[8:12, 66:70, 20:55] = 500
    affine = rotated(degrees) @ rotated(-degrees / 2, 2) @ image.affine
    affine[:3, 3] = (40, -70, 900)
    turned = nibabel.Nifti1Image(voxels, affine)
    start = nibabel.orientations.io_orientation(image.affine)
    end = nibabel.orientations.axcodes2ornt(tuple(codes))
    return turned.as_reoriented(nibabel.orientations.ornt_transform(start, end))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    for codes, degrees in WAYS:
        save(root / f"lies.{codes}.nii", marked(codes, degrees))
    return root


@pytest.fixture(scope="module", params=OUTPUTS, ids="-".join)
def shards(
    request: pytest.FixtureRequest, scans: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    orientation, layout = request.param
    spec = Spec(**{**SPEC.to_dict(), "orientation": orientation, "layout": layout})
    folder = tmp_path_factory.mktemp("shards") / "-".join(request.param)
    report = ctgpu.build(folder, source=scans, spec=spec, device="cpu", axes="stored")
    assert report.exit_code == 0, report.failures
    return folder


def scan_of(root: Path, study_id: str) -> nibabel.Nifti1Image:
    (path,) = root.glob(f"{study_id}.nii*")
    return nibabel.load(path)


def assert_lies_on(voxels: Any, affine: Any, scan: nibabel.Nifti1Image, within_hu: float) -> None:
    """Each voxel has the value of the scan at the place in the world where its affine puts it."""
    affine = np.asarray(affine, np.float64)
    index = np.indices(voxels.shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    to_scan = np.linalg.inv(scan.affine)
    place = to_scan[:3, :3] @ world + to_scan[:3, 3:]
    last = np.reshape(scan.shape, (3, 1)) - 1
    inside = ((place > 1) & (place < last - 1)).all(axis=0)
    assert inside.sum() > 3000
    hu = np.clip(np.asanyarray(scan.dataobj).astype(np.float64), -1000, 1000)
    expected = map_coordinates(hu, place[:, inside], order=1)
    found = np.asarray(voxels, np.float64).reshape(-1)[inside] * 1000
    assert np.abs(found - expected).max() <= within_hu
    assert expected.std() > 200


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_array_and_affine_agree_and_stay_so_through_transforms(
    shards: Path, scans: Path, number: int
) -> None:
    dataset = MonaiDataset(shards)
    item = dataset[number]
    assert item.keys() == {"image", "label", "report", "study_id"}
    image = item["image"]
    assert isinstance(image, MetaTensor)
    assert (image.shape, image.dtype) == ((1, *SPEC.shape_hwd), torch.float32)
    scan = scan_of(scans, item["study_id"])
    assert_lies_on(image[0], image.affine, scan, 0.3)
    assert torch.equal(image.affine, image.meta["affine"])
    assert np.allclose(image.meta["original_affine"], scan.affine, atol=1e-4)
    assert tuple(image.meta["spatial_shape"]) == scan.shape
    geometry = ctgpu.Geometry.of_metadata(VolumeDataset(shards).metadata(number))
    assert np.array_equal(image.affine, geometry.affine)
    chain = transforms.Compose(
        [
            transforms.EnsureChannelFirstd(
                "image"
            ),  # as a script may have it: nothing is left to do
            transforms.Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.RandSpatialCropd("image", (24, 21, 25), random_size=False),
            transforms.RandFlipd("image", 1, 0),
            transforms.RandRotate90d("image", 1, spatial_axes=(0, 2)),
        ]
    ).set_random_state(3)
    turned = chain(item)["image"]
    assert sorted(turned.shape) == [1, 21, 24, 25]
    assert_lies_on(turned[0], turned.affine, scan, 0.3)
    back = chain.inverse({"image": turned})["image"]
    assert back.shape == image.shape
    assert np.allclose(back.affine, image.affine, atol=1e-6)
    kept = back != 0
    assert kept.sum() >= 0.99 * turned.numel() - (turned == 0).sum()
    assert torch.equal(back[kept].as_tensor(), image[kept].as_tensor())


def test_a_spacing_is_taken_in_millimetres_of_the_patient(shards: Path, scans: Path) -> None:
    chain = transforms.Compose(
        [
            transforms.Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.Spacingd("image", (6.0, 5.0, 4.0)),
        ]
    )
    for item in MonaiDataset(shards, chain):
        image = item["image"]
        found = np.linalg.norm(image.affine[:3, :3].numpy(), axis=0)
        assert np.allclose(found, (6, 5, 4), atol=0.01)
        assert nibabel.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")


def test_what_is_saved_lies_on_the_scan(shards: Path, scans: Path, tmp_path: Path) -> None:
    chain = transforms.Compose(
        [
            transforms.Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.SaveImaged(
                "image", output_dir=tmp_path, separate_folder=False, print_log=False
            ),
        ]
    )
    for item, (codes, _) in zip(MonaiDataset(shards, chain), sorted(WAYS), strict=True):
        assert item["study_id"] == f"lies.{codes}"
        saved = nibabel.load(tmp_path / f"lies_{codes}_trans.nii.gz")
        assert nibabel.aff2axcodes(saved.affine) == ("R", "A", "S")
        assert_lies_on(saved.dataobj, saved.affine, scan_of(scans, item["study_id"]), 0.3)


def test_it_is_saved_on_the_grid_of_the_scan_as_save_on_scan_does(
    shards: Path, scans: Path, tmp_path: Path
) -> None:
    chain = transforms.Compose(
        [
            transforms.Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.SaveImaged(
                "image",
                output_dir=tmp_path,
                separate_folder=False,
                print_log=False,
                resample=True,
                mode="bilinear",
            ),
        ]
    )
    dataset = VolumeDataset(shards)
    for number, item in enumerate(MonaiDataset(shards, chain)):
        geometry = ctgpu.Geometry.of_metadata(dataset.metadata(number))
        scan = scan_of(scans, item["study_id"])
        ours = tmp_path / "ours.nii.gz"
        volume = dataset[number]["volume"][0].astype(np.float32)
        ctgpu.save_on_scan(volume, geometry, ours, "linear", layout="DHW", outside=np.nan)
        wanted = nibabel.load(ours)
        key = item["study_id"].replace(".", "_")
        saved = nibabel.load(tmp_path / f"{key}_trans.nii.gz")
        assert saved.shape == wanted.shape == scan.shape
        assert np.allclose(saved.affine, wanted.affine, atol=1e-4)
        # At the edge of the output MONAI goes on into the padding, and ours does not.
        inner = ~np.isnan(wanted.get_fdata())
        for axis, side in itertools.product(range(3), (4, -4)):
            inner &= np.roll(inner, side, axis)
            edge = [slice(None)] * 3
            edge[axis] = slice(0, 4) if side > 0 else slice(-4, None)
            inner[tuple(edge)] = False
        assert inner.sum() > 20_000
        apart = np.abs(saved.get_fdata() - wanted.get_fdata())[inner]
        assert apart.max() < 2e-3


def test_a_real_scan_lies_where_it_lay(real_ct: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    name = "ts_example_ct_sm.nii.gz"
    (tmp_path / "source" / name).symlink_to(real_ct / name)
    spec = Spec(target_spacing_mm=(4.0, 5.0, 6.0), shape_hwd=(90, 70, 60), orientation="RAS")
    assert ctgpu.build(tmp_path / "shards", source=tmp_path / "source", spec=spec).exit_code == 0
    (item,) = MonaiDataset(tmp_path / "shards")
    assert_lies_on(item["image"][0], item["image"].affine, nibabel.load(real_ct / name), 0.6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_monais_loader_collates_them_and_what_it_made_comes_apart(
    shards: Path, num_workers: int
) -> None:
    dataset = MonaiDataset(shards, transforms.RandFlipd("image", 0.5, 1))
    plain = MonaiDataset(shards)
    loader = DataLoader(dataset, batch_size=2, num_workers=num_workers)
    number = 0
    for batch in loader:
        assert batch["image"].shape == (2, 1, *SPEC.shape_hwd)
        assert batch["label"].shape == (2, 0)
        assert isinstance(batch["image"], MetaTensor)
        for item in decollate_batch(batch):
            wanted = plain[number]
            assert item["study_id"] == wanted["study_id"]
            assert item["report"] == wanted["report"]
            flipped = not torch.equal(item["image"].affine, wanted["image"].affine)
            image = item["image"].flip(2) if flipped else item["image"]
            assert torch.equal(image.as_tensor(), wanted["image"].as_tensor())
            for key in ("filename_or_obj", "affine_source"):
                assert item["image"].meta[key] == wanted["image"].meta[key]
            number += 1
    assert number == len(WAYS)


def test_samples_of_patches_become_batches(shards: Path) -> None:
    crops = transforms.RandSpatialCropSamplesd("image", (8, 9, 10), 3, random_size=False)
    (batch,) = DataLoader(MonaiDataset(shards, [crops]), batch_size=4)
    assert batch["image"].shape == (12, 1, 8, 9, 10)
    assert len(batch["study_id"]) == 12


def test_the_seed_of_a_loader_decides_what_is_random(shards: Path) -> None:
    def crops(seed: int) -> list[Any]:
        crop = transforms.RandSpatialCropd("image", (8, 9, 10), random_size=False)
        torch.manual_seed(seed)
        return [b["image"].as_tensor() for b in DataLoader(MonaiDataset(shards, crop))]

    assert all(map(torch.equal, crops(1), crops(1)))
    assert not all(map(torch.equal, crops(1), crops(2)))


def test_it_is_a_data_set_of_monai_and_of_torch(shards: Path) -> None:
    dataset = MonaiDataset(VolumeDataset(shards), transforms.RandFlipd("image", 1, 0))
    assert isinstance(dataset, Dataset)
    assert isinstance(dataset, torch.utils.data.Dataset)
    again = pickle.loads(pickle.dumps(dataset))
    for number in (1, -1, np.int64(2), "lies.PIR"):
        assert torch.equal(again[number]["image"], dataset[number]["image"])
    assert dataset["lies.PIR"]["study_id"] == dataset[1]["study_id"] == "lies.PIR"
    assert [item["study_id"] for item in dataset[1:3]] == ["lies.PIR", "lies.RAS"]
    assert len(dataset[[0, 3]]) == 2
    with pytest.raises(IndexError, match="there is no sample 4"):
        dataset[4]
    with pytest.raises(KeyError):
        dataset["lies.LIP"]
    part = torch.utils.data.Subset(VolumeDataset(shards), [3, 1])
    assert [item["study_id"] for item in MonaiDataset(part)] == ["lies.SLA", "lies.PIR"]


def test_monais_caches_take_it_as_their_data(shards: Path) -> None:
    flip = transforms.Flipd("image", 0)
    cached = CacheDataset(MonaiDataset(shards), flip, num_workers=2, progress=False)
    for one, other in zip(cached, MonaiDataset(shards, flip), strict=True):
        assert torch.equal(one["image"].as_tensor(), other["image"].as_tensor())
        assert torch.equal(one["image"].affine, other["image"].affine)


def test_without_track_meta_images_are_plain_tensors(shards: Path) -> None:
    with_meta = MonaiDataset(shards)[0]["image"]
    set_track_meta(False)
    try:
        image = MonaiDataset(shards)[0]["image"]
    finally:
        set_track_meta(True)
    assert type(image) is torch.Tensor
    assert torch.equal(image, with_meta.as_tensor())


def test_channels_are_the_windows_of_the_loader(shards: Path) -> None:
    windows: list[Any] = ["mediastinum", (-900, 400)]
    (batch,) = make_loader(shards, 4, windows=windows)
    (one,) = make_loader(shards, 4, window="lung")
    for number, item in enumerate(MonaiDataset(shards, windows=windows, dtype=None)):
        found = item["image"].as_tensor()
        assert found.dtype == torch.float16
        assert torch.equal(found.permute(0, 3, 1, 2), batch["volume"][number])
    for number, item in enumerate(MonaiDataset(shards, windows=windows)):
        found = item["image"].as_tensor()
        assert (found.shape, found.dtype) == ((2, *SPEC.shape_hwd), torch.float32)
        assert torch.equal(found.half().permute(0, 3, 1, 2), batch["volume"][number])
    for number, item in enumerate(MonaiDataset(shards, window="lung")):
        assert torch.equal(item["image"].half().permute(0, 3, 1, 2), one["volume"][number])


@pytest.mark.parametrize("dtype", ["bfloat16", "int16", "uint8"])
def test_every_type_that_is_stored_becomes_float32(dtype: Any, scans: Path, tmp_path: Path) -> None:
    spec = Spec(**{**SPEC.to_dict(), "dtype": dtype})
    ctgpu.build(tmp_path / "shards", source=scans, spec=spec, device="cpu", axes="stored")
    (batch,) = make_loader(tmp_path / "shards", 4)
    for number, item in enumerate(MonaiDataset(tmp_path / "shards")):
        expected = batch["volume"][number].permute(0, 2, 3, 1).float()
        assert item["image"].dtype == torch.float32
        assert torch.equal(item["image"].as_tensor(), expected)
    kept = MonaiDataset(tmp_path / "shards", dtype=None)[0]["image"]
    assert torch.equal(kept.as_tensor(), batch["volume"][0].permute(0, 2, 3, 1))


def test_labels_keep_their_nan_and_keys_can_be_chosen(
    part_labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = MonaiDataset(part_labelled, image_key="ct", label_key="findings")
    assert caplog.records[0].getMessage().startswith("3 of 11 samples have no label row")
    stored = VolumeDataset(part_labelled)
    for number, item in enumerate(dataset):
        assert item.keys() == {"ct", "findings", "report", "study_id"}
        assert np.array_equal(item["findings"], stored[number]["labels"], equal_nan=True)
        assert item["report"] == stored[number]["report"] != ""
    assert len(MonaiDataset(part_labelled, labelled_only=True)) == 8


def test_scans_without_an_affine_keep_their_spacing_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("first", "second"):
        image = marked("LPS", 0)
        save(tmp_path / "source" / f"{name}.nii", image, sform_code=0, qform_code=0)
    ctgpu.build(tmp_path / "shards", source=tmp_path / "source", spec=SPEC, device="cpu")
    dataset = MonaiDataset(tmp_path / "shards")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        first, _ = dataset
    assert first["image"].meta["affine_source"] == "spacing"
    assert np.allclose(np.abs(np.diag(first["image"].affine)), (5.04, 6, 7.14, 1), atol=0.01)
    (record,) = caplog.records
    assert record.getMessage().startswith("first was made of a scan that states no affine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_key": "label"}, "image_key is 'label' and label_key 'label'"),
        ({"label_key": "report"}, "report and study_id have theirs"),
        ({"dtype": torch.int16}, r"dtype is torch\.int16; it is a floating torch\.dtype, or None"),
        ({"dtype": np.float32}, "it is a floating torch"),
        ({"windows": ["lung"]}, "holds -1000 to 1000 HU only"),
        ({"windows": ["bone"], "window": "bone"}, "give one of them"),
    ],
)
def test_arguments_outside_their_domain_are_refused(
    hwd: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        MonaiDataset(hwd, **options)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["monai", "torch"])
def test_a_missing_monai_is_one_sentence_with_the_command(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from ctgpu.errors import DeviceError\n"
        "try:\n    import ctgpu.loading.monai\n"
        "except DeviceError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("ctgpu.loading.monai needs MONAI: install it with `pip install ")
    assert "[monai]" in found.stdout


def test_the_rest_of_the_package_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys, ctgpu, ctgpu.loading, ctgpu.loading.webdataset, ctgpu.loading.dali; "
        "sys.exit(', '.join({'torch', 'monai'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
