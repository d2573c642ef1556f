"""Masks beside the volumes: in samples, batches, boxes and the adapters."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import STUDIES, flip_byte, studies

from ctgpu.errors import FetchError, MismatchError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.webdataset import decoder
from support.masks import LABELS, mask_of, with_masks


@pytest.fixture(scope="session")
def of_masks(_built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("masked")
    return {
        f"{layout}-{dtype}": with_masks(folder, root / dtype / layout, dtype)
        for layout, folder in _built.items()
        for dtype in ("uint8", "uint16")
    }


@pytest.fixture(params=["HWD-uint8", "HWD-uint16", "DHW-uint8", "DHW-uint16"])
def masked(request: pytest.FixtureRequest, of_masks: dict[str, Path]) -> Path:
    """Eleven samples with masks; not to be changed."""
    return of_masks[request.param]


@pytest.fixture
def wide(of_masks: dict[str, Path]) -> Path:
    """The same, in the default layout, of uint16."""
    return of_masks["HWD-uint16"]


def dtype_of(folder: Path) -> Any:
    return folder.parent.name


def assert_masks(batch: Any, dtype: Any) -> None:
    """Every voxel of each mask is the one that belongs to its volume's voxel."""
    torch = pytest.importorskip("torch")
    assert batch["mask"].dtype == (torch.uint8 if dtype == "uint8" else torch.int32)
    assert batch["mask"].shape == batch["volume"].shape
    wanted = mask_of(batch["volume"].numpy(), dtype)
    assert np.array_equal(batch["mask"].numpy(), wanted)
    assert wanted.max() > (128 if dtype == "uint8" else 32768)


def test_a_sample_has_the_mask_of_its_volume(masked: Path) -> None:
    dataset, dtype = VolumeDataset(masked), dtype_of(masked)
    assert dataset.mask_labels == LABELS[dtype]
    assert list(dataset.mask_labels.values()) == sorted(LABELS[dtype].values())
    for study_id in STUDIES:
        sample = dataset[study_id]
        assert sample["mask"].dtype == np.dtype(dtype)
        assert np.array_equal(sample["mask"], mask_of(sample["volume"], dtype))
    assert dataset.metadata(0)["mask"]["dtype"] == dtype
    assert dataset.select([STUDIES[3]])[0]["mask"].any()


def test_without_masks_there_are_none(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    assert (dataset.masks, dataset.mask_labels) == (None, {})
    assert "mask" not in dataset[0]
    assert "mask" not in next(iter(make_loader(hwd)))
    volume = np.empty(dataset.spec.stored_shape, np.float16)
    with pytest.raises(UsageError, match=r"mask is given, and .*HWD has no masks; leave it out"):
        dataset.read_into(0, volume, mask=np.empty(volume.shape, np.uint8))


def test_a_mask_is_read_into_an_array_of_its_type_and_shape(wide: Path) -> None:
    dataset = VolumeDataset(wide)
    volume = np.empty(dataset.spec.stored_shape, np.float16)
    with pytest.raises(UsageError, match=r"mask is uint8, and .* holds uint16; give it an array"):
        dataset.read_into(0, volume, mask=np.empty(volume.shape, np.uint8))
    with pytest.raises(UsageError, match=r"mask has the shape \(3, 4, 5\); give it that of out"):
        dataset.read_into(0, volume, mask=np.empty((3, 4, 5), np.uint16))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("window", [None, "lung"])
def test_batches_have_masks_that_windows_leave_alone(
    masked: Path, copy: bool, window: str | None
) -> None:
    pytest.importorskip("torch")
    plain = {s["study_id"]: s for s in map(VolumeDataset(masked).__getitem__, range(11))}
    loader = make_loader(masked, 4, shuffle=True, copy=copy, window=window)
    for batch in loader:
        assert list(batch) == ["volume", "mask", "labels", "report", "study_id"]
        if window is None:
            assert_masks(batch, dtype_of(masked))
        for mask, study_id in zip(batch["mask"], batch["study_id"], strict=True):
            assert np.array_equal(mask.numpy(), plain[study_id]["mask"])


@pytest.mark.parametrize("verify", ["first", "off"])
@pytest.mark.parametrize("box", [(9, 36, 5), (44, 7, 24), (44, 36, 3), (44, 36, 24)])
def test_boxes_are_cut_out_of_volume_and_mask_alike(masked: Path, box: Any, verify: Any) -> None:
    dataset = VolumeDataset(masked, verify=verify)
    loader = make_loader(dataset, 3, random_crop_hwd=box, seed=5)
    h, w, d = box
    for _ in range(2):
        for batch in loader:
            assert batch["mask"].shape[1:] == (1, d, h, w)
            wanted = mask_of(batch["volume"].numpy(), dtype_of(masked))
            assert np.array_equal(batch["mask"].numpy(), wanted)


def test_channels_of_windows_leave_the_mask_one(masked: Path) -> None:
    batch = next(iter(make_loader(masked, 3, windows=["soft_tissue", "mediastinum"])))
    assert batch["volume"].shape[1] == 2
    assert batch["mask"].shape == (3, 1, 24, 44, 36)
    stored = np.stack([VolumeDataset(masked)[i]["mask"] for i in range(3)])
    assert np.array_equal(batch["mask"].numpy(), stored)


def test_masks_count_as_bytes_that_are_read_ahead(wide: Path, hwd: Path) -> None:
    sample_bytes = VolumeDataset(hwd).spec.size_bytes
    for folder, batch_bytes in ((hwd, sample_bytes), (wide, 3 * sample_bytes)):
        # On the host an int32 for each voxel of a uint16 mask.
        loader = make_loader(folder, 1, prefetch_bytes=3 * batch_bytes)
        next(iter(loader))
        rounding = 4096 + (2 << 20)
        assert 4 * batch_bytes <= loader.buffer_bytes <= 4 * (batch_bytes + rounding)


@pytest.mark.parametrize("extension", ["bin", "seg"])
def test_a_damaged_mask_is_a_damaged_sample(
    wide: Path, tmp_path: Path, extension: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = shutil.copytree(wide, tmp_path / "own")
    shard, entry = VolumeDataset(own).locate(4)
    flip_byte(shard.path, entry.members[extension].offset + 1000)
    with pytest.raises(FetchError, match=rf"valid_5_a_1\.{extension} does not have its checksum"):
        studies(make_loader(own, 2))
    kept = studies(make_loader(own, 1, on_error="skip"))
    assert STUDIES[4] not in kept
    assert f"valid_5_a_1.{extension}" in caplog.text


def test_a_volume_that_was_read_alone_vouches_for_no_mask(wide: Path, tmp_path: Path) -> None:
    own = shutil.copytree(wide, tmp_path / "own")
    dataset = VolumeDataset(own)
    shard, entry = dataset.locate(4)
    flip_byte(shard.path, entry.members["seg"].offset)
    volume = np.empty(dataset.spec.stored_shape, np.float16)
    dataset.read_into(4, volume)
    with pytest.raises(FetchError, match=r"valid_5_a_1\.seg does not have its checksum"):
        dataset.read_into(4, volume, mask=np.empty(volume.shape, np.uint16))


def test_folders_join_where_their_masks_agree(
    wide: Path, hwd: Path, of_masks: dict[str, Path], tmp_path: Path
) -> None:
    both = VolumeDataset([wide, shutil.copytree(wide, tmp_path / "again")])
    assert len(both) == 22
    for other in (hwd, of_masks["HWD-uint8"]):
        with pytest.raises(MismatchError, match="the same spec, class names and masks"):
            VolumeDataset([wide, other])


def test_a_record_whose_masks_are_not_those_of_the_manifest_is_refused(
    wide: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(wide, tmp_path / "own")
    stated = json.loads((own / "manifest.json").read_text())
    stated["masks"]["dtype"] = "uint8"
    stated["masks"]["labels"] = {}
    (own / "manifest.json").write_text(json.dumps(stated))
    with pytest.raises(MismatchError, match=r"seg has 76032 bytes, .* asks for 38016"):
        VolumeDataset(own)
    del stated["masks"]
    (own / "manifest.json").write_text(json.dumps(stated))
    with pytest.raises(MismatchError, match=r"seg has 76032 bytes, .* asks for 0"):
        VolumeDataset(own)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_stock_webdataset_pipeline_gives_masks(masked: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = str(masked / "shard-{000000..000003}.tar")
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    found = list(source.map(decoder))
    assert len(found) == 11
    for sample in found:
        assert sample["mask"].dtype == np.dtype(dtype_of(masked))
        assert np.array_equal(sample["mask"], mask_of(sample["volume"], dtype_of(masked)))
        sample["mask"] *= 0
    del source
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("track", [True, False])
def test_monai_gets_masks_that_lie_where_their_images_lie(masked: Path, track: bool) -> None:
    monai = pytest.importorskip("monai")
    from ctgpu.loading.monai import MonaiDataset

    dataset = MonaiDataset(masked, dtype=None, mask_key="seg")
    monai.data.set_track_meta(track)
    try:
        item = dataset[2]
    finally:
        monai.data.set_track_meta(True)
    image, mask = item["image"], item["seg"]
    assert list(item) == ["image", "label", "report", "study_id", "seg"]
    assert image.shape == mask.shape == (1, 44, 36, 24)
    assert np.array_equal(np.asarray(mask), mask_of(np.asarray(image), dtype_of(masked)))
    assert isinstance(mask, monai.data.MetaTensor) == track
    if track:
        assert np.array_equal(mask.affine, image.affine)
        mask.meta["affine"][0, 0] = 99
        assert image.affine[0, 0] != 99
    with pytest.raises(UsageError, match="mask_key 'image'; each entry"):
        MonaiDataset(masked, mask_key="image")


def test_dali_reads_volumes_beside_masks(wide: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from ctgpu.loading.dali import pipeline

    volume, *_ = pipeline(wide, 2).run()
    wanted = np.stack([VolumeDataset(wide)[i]["volume"][0] for i in range(2)])
    found = np.stack([np.asarray(volume[i]) for i in range(2)])
    assert np.array_equal(found.transpose(0, 3, 1, 2), wanted)
